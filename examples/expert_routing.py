r"""Mixture of experts: a hard Gumbel-Softmax routes each digit of binarized MNIST to one of eight small experts.

    p(k|x) = softmax(router(x))_k,  z ~ p(.|x) one-hot
    loss   = E_z CE(sum_k z_k expert_k(x), label) + KL(mean_x p(k|x) || uniform)

The KL is exact and of the batch's mean: it keeps every expert in use and lets each choice be certain. The gradient to z
needs every expert's output in training; in evaluation the most probable expert is computed, and no other.

    python examples/expert_routing.py 0 1 2        # the seeds
"""

import sys

import torch
from torch import Tensor, nn

import taugrad
from taugrad.data.binarized_mnist import binarized_mnist
from taugrad.ops.categorical import entropy, kl_to_uniform, log_prob


class Routed(nn.Module):
    def __init__(self, experts: int, hidden: int) -> None:
        super().__init__()
        self.router = nn.Linear(784, experts)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(784, hidden), nn.SiLU(), nn.Linear(hidden, 10)) for _ in range(experts)
        )

    def chosen(self, x: Tensor, k: Tensor) -> Tensor:
        """The class that expert k[i], and no other, gives to row x[i]."""
        out = torch.empty_like(k)
        for i, expert in enumerate(self.experts):
            out[k == i] = expert(x[k == i]).argmax(-1)
        return out


def train(data, steps, seed, estimator, experts=8, hidden=4, balance=1.0, learned=True) -> tuple[float, float]:
    """Test accuracy, and the perplexity of the experts' use: `experts` if all are used alike, 1 if only one is."""
    torch.manual_seed(seed)
    model = Routed(experts, hidden)
    optimizer, lr = torch.optim.Adam(model.parameters()), taugrad.Linear(5e-3, 5e-5, steps=steps)
    for step in range(steps):
        rows = torch.randint(len(data.train.labels), (200,))
        x, y = data.train.images[rows].flatten(1) / 255, torch.eye(10)[data.train.labels[rows]]
        logits = model.router(x) * learned  # times False: every expert is as probable as the others
        outputs = torch.stack([expert(x) for expert in model.experts], -2)

        def cross_entropy(z: Tensor, outputs: Tensor = outputs, y: Tensor = y) -> Tensor:
            return -log_prob((z @ outputs).squeeze(-2), y)

        loss = estimator.expectation(cross_entropy, logits.unsqueeze(-2), tau=1.0).mean()
        use = torch.log_softmax(logits, -1).logsumexp(0)  # log mean p(k|x), but for a constant
        optimizer.param_groups[0]["lr"] = lr(step)
        optimizer.zero_grad()
        (loss + balance * kl_to_uniform(use)).backward()
        optimizer.step()
    with torch.no_grad():
        x = data.test.images.flatten(1) / 255
        k = model.router(x).argmax(-1) if learned else torch.randint(experts, (len(x),))
        accuracy = (model.chosen(x, k) == data.test.labels).double().mean()
        return accuracy.item(), entropy(k.bincount(minlength=experts).double().log()).exp().item()


def main(steps: int = 2000, seed: int = 0) -> dict[str, float]:
    data, hard, figures = binarized_mnist(), taugrad.STGumbelSoftmax(), {}
    figures["routed"], figures["routed_perplexity"] = train(data, steps, seed, hard)
    figures["unbalanced"], figures["unbalanced_perplexity"] = train(data, steps, seed, hard, balance=0.0)
    figures["enumerated"], _ = train(data, steps, seed, taugrad.Enumeration())
    figures["random"], _ = train(data, steps, seed, hard, learned=False)
    for hidden in (4, 12, 32):  # an expert's size; what router and expert cost together; what all experts do
        figures[f"one_expert_of_{hidden}"], _ = train(data, steps, seed, hard, experts=1, hidden=hidden)
    sys.stdout.write(f"seed {seed}: " + ", ".join(f"{name} {value:.3f}" for name, value in figures.items()) + "\n")
    return figures


if __name__ == "__main__":
    for argument in sys.argv[1:] or ["0"]:
        main(seed=int(argument))
