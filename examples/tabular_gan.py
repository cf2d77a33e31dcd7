r"""A GAN for a table of categorical columns, as CTGAN (1907.00503): every column is sampled in one call.

Columns of K_1, K_2, ... classes become rows of max K logits, padded with -inf, which is never drawn and gets no
gradient. The generator's rows are hard one-hots, as the data's are; the critic is Wasserstein's, with a penalty.
The table: three columns of 2, 5 and 3 classes; the second depends on the first, and the third on both.

    python examples/tabular_gan.py 0 1 2        # the seeds
"""

import sys

import torch
from torch import Tensor, nn

import taugrad

SIZES = (2, 5, 3)


def table(n: int) -> Tensor:
    """Rows of classes, (n, 3)."""
    first = (torch.rand(n) < 0.3).long()
    second = torch.where(first == 1, 4, (torch.rand(n) ** 2 * 4).long())
    third = torch.where(torch.rand(n) < 0.9, (first + second) % 3, torch.randint(3, (n,)))
    return torch.stack([first, second, third], -1)


def padded(blocks: Tensor) -> Tensor:
    """Logits (n, 3, 5) of blocks (n, 2 + 5 + 3), with -inf where a column has no such class."""
    classes = torch.arange(max(SIZES)) < torch.tensor(SIZES).unsqueeze(-1)
    return blocks.new_full((len(blocks), *classes.shape), -torch.inf).masked_scatter(classes, blocks)


def distance(a: Tensor, b: Tensor) -> float:
    """Total variation between two tables' joint distributions."""
    joint = [torch.bincount(t @ torch.tensor([15, 3, 1]), minlength=30) / len(t) for t in (a, b)]
    return 0.5 * (joint[0] - joint[1]).abs().sum().item()


def train(steps, seed, estimator) -> float:
    torch.manual_seed(seed)
    generator = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, sum(SIZES)))
    critic = nn.Sequential(nn.Linear(15, 64), nn.LeakyReLU(0.2), nn.Linear(64, 64), nn.LeakyReLU(0.2), nn.Linear(64, 1))
    of_g, of_c = (torch.optim.Adam(m.parameters(), lr=2e-3, betas=(0.5, 0.9)) for m in (generator, critic))
    sample = lambda n: estimator.sample(padded(generator(torch.randn(n, 8))), 0.5)  # noqa: E731
    for step in range(steps):
        real, fake = nn.functional.one_hot(table(200), 5).float(), sample(200)
        if step % 3:  # two steps of the critic for one of the generator
            fake = fake.detach()
            between = torch.lerp(real, fake, torch.rand(200, 1, 1)).requires_grad_()
            (slope,) = torch.autograd.grad(critic(between.flatten(1)).sum(), between, create_graph=True)
            penalty = (slope.flatten(1).norm(dim=1) - 1).square().mean()
            loss = critic(fake.flatten(1)).mean() - critic(real.flatten(1)).mean() + 10 * penalty
        else:
            loss = -critic(fake.flatten(1)).mean()
        optimizer = of_c if step % 3 else of_g
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        return distance(sample(20_000).argmax(-1), table(20_000))


def main(steps: int = 1500, seed: int = 0) -> dict[str, float]:
    runs = {"hard": taugrad.STGumbelSoftmax(), "soft": taugrad.GumbelSoftmax()}
    figures = {name: train(steps, seed, estimator) for name, estimator in runs.items()}
    figures["untrained"] = train(0, seed, runs["hard"])
    sys.stdout.write(f"seed {seed}: " + ", ".join(f"{name} {value:.3f}" for name, value in figures.items()) + "\n")
    return figures


if __name__ == "__main__":
    for argument in sys.argv[1:] or ["0"]:
        main(seed=int(argument))
