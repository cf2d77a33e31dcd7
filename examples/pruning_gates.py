r"""Pruning by gates: hidden units of a classifier of binarized MNIST are closed one by one by their expected L0 cost.

    h_j = z_j relu(W x)_j,  loss = CE + price * sum_j P(z_j != 0)

Hard concrete gates (1712.01312) next to straight-through gates, which are 0 or 1 in training too. A gate that is closed
in evaluation takes its unit's row and column of weights with it: the smaller network is built and compared.

    python examples/pruning_gates.py 0 1 2        # the seeds
"""

import sys

import torch
from torch import nn

import taugrad
from taugrad.data.binarized_mnist import binarized_mnist
from taugrad.layers import BinaryGate, HardConcreteGate


class Gated(nn.Module):
    def __init__(self, gate: nn.Module, units: int) -> None:
        super().__init__()
        self.first, self.second, self.gate = nn.Linear(784, units), nn.Linear(units, 10), gate
        self.logits = nn.Parameter(2 + 0.01 * torch.randn(units))  # open at the start

    def forward(self, x):
        return self.second(self.first(x).relu() * self.gate(self.logits))

    def pruned(self) -> nn.Module:
        """The network of the open units alone, without gates."""
        z = self.gate.eval()(self.logits)
        (kept,) = z.nonzero(as_tuple=True)
        small = nn.Sequential(nn.Linear(784, len(kept)), nn.ReLU(), nn.Linear(len(kept), 10))
        small[0].weight.data, small[0].bias.data = self.first.weight[kept], self.first.bias[kept]
        small[2].weight.data, small[2].bias.data = self.second.weight[:, kept] * z[kept], self.second.bias
        return small


def train(data, steps, seed, gate, price, units=64) -> tuple[float, int]:
    """Test accuracy of the pruned network, and its number of hidden units."""
    torch.manual_seed(seed)
    model = Gated(gate, units)
    groups = [
        {"params": [model.logits], "lr": 5e-2},
        {"params": [*model.first.parameters(), *model.second.parameters()]},
    ]
    optimizer = torch.optim.Adam(groups, lr=3e-3)
    for _ in range(steps):
        rows = torch.randint(len(data.train.labels), (200,))
        x, labels = data.train.images[rows].flatten(1) / 255, data.train.labels[rows]
        loss = nn.functional.cross_entropy(model(x), labels) + price * gate.expected_l0(model.logits).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        small, x = model.pruned(), data.test.images.flatten(1) / 255
        torch.testing.assert_close(small(x), model.eval()(x))
        return (small(x).argmax(-1) == data.test.labels).double().mean().item(), small[0].out_features


def main(steps: int = 1500, seed: int = 0) -> dict[str, float]:
    data, figures = binarized_mnist(), {}
    gates = {"hard_concrete": HardConcreteGate, "straight_through": lambda: BinaryGate(taugrad.StraightThrough())}
    for name, gate in gates.items():
        for price in (0.0, 1e-2):
            kind = name if price else f"{name}_free"
            figures[kind], figures[f"{kind}_units"] = train(data, steps, seed, gate(), price)
    sys.stdout.write(f"seed {seed}: " + ", ".join(f"{name} {value:.4g}" for name, value in figures.items()) + "\n")
    return figures


if __name__ == "__main__":
    for argument in sys.argv[1:] or ["0"]:
        main(seed=int(argument))
