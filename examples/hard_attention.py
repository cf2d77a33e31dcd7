r"""Hard attention: a digit of binarized MNIST stands in one of nine places; one glimpse must find it and read it.

    p(k|view) = softmax(locator(view))_k,  z ~ p(.|view) one-hot,  loss = E_z CE(reader(sum_k z_k patch_k), label)

The other eight places hold clutter: digits turned by 90 degrees. The view has 4x4 pixels of each place's 28x28. Nothing
tells the locator where the digit is but the reader's loss, through the hard choice. The gradient to z needs all patches
in training; in evaluation the most probable place is read, and no other.

    python examples/hard_attention.py 0 1 2        # the seeds
"""

import sys

import torch
from torch import Tensor, nn

import taugrad
from taugrad.data.binarized_mnist import binarized_mnist
from taugrad.ops.categorical import log_prob


class SoftAttention(taugrad.Pathwise):
    """No choice: the reader gets the average of all patches, weighted by p, which three times the logits sharpen."""

    def sample(self, logits, tau=1.0, dim=-1, *, generator=None):
        return torch.softmax(3 * logits / tau, dim)


def scenes(split, rows: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Patches (batch, 9, 784), their views (batch, 9, 16), the digits' places and labels, for the digits of `rows`."""
    images = split.images[torch.randint(len(split.labels), (len(rows), 9))].rot90(1, (-2, -1)).contiguous()
    places = torch.randint(9, (len(rows),))
    images[torch.arange(len(rows)), places] = split.images[rows]
    patches = images / 255
    return patches.flatten(2), nn.functional.avg_pool2d(patches, 7).flatten(2), places, split.labels[rows]


def train(data, steps, seed, estimator, learned=True) -> list[float]:
    """Test accuracy by one glimpse, how often it is at the digit, and test accuracy by soft attention."""
    torch.manual_seed(seed)
    locator = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 1), nn.Flatten(-2))  # each place alone
    reader = nn.Sequential(nn.Linear(784, 100), nn.ReLU(), nn.Linear(100, 10))
    optimizer = torch.optim.Adam(nn.ModuleList([locator, reader]).parameters())
    lr = taugrad.Linear(2e-3, 2e-5, steps=steps)
    for step in range(steps):
        patches, views, _, labels = scenes(data.train, torch.randint(len(data.train.labels), (100,)))

        def cross_entropy(z: Tensor, patches: Tensor = patches, labels: Tensor = labels) -> Tensor:
            return -log_prob(reader((z @ patches).squeeze(-2)), torch.eye(10)[labels])

        logits = 10 * learned * locator(views).unsqueeze(-2)  # times 10: Adam moves them faster than the reader
        optimizer.param_groups[0]["lr"] = lr(step)
        optimizer.zero_grad()
        estimator.expectation(cross_entropy, logits, tau=1.0).mean().backward()
        optimizer.step()
    right = []
    with torch.no_grad():
        for rows in torch.arange(len(data.test.labels)).split(1000):
            patches, views, places, labels = scenes(data.test, rows)
            k = locator(views).argmax(-1) if learned else torch.randint(9, places.shape)
            one, blend = patches[torch.arange(len(k)), k], SoftAttention().sample(10 * locator(views).unsqueeze(-2))
            hard, soft = (reader(x).argmax(-1) == labels for x in (one, (blend @ patches).squeeze(-2)))
            right.append(torch.stack([hard, k == places, soft], -1))
    return torch.cat(right).double().mean(0).tolist()


def main(steps: int = 1000, seed: int = 0) -> dict[str, float]:
    data, figures, st, exact = binarized_mnist(), {}, taugrad.StraightThrough(), taugrad.Enumeration()
    runs = {"hard": taugrad.STGumbelSoftmax(), "straight_through": st, "enumerated": exact, "soft": SoftAttention()}
    for name, estimator in runs.items():
        figures[name], figures[f"{name}_located"], figures["soft_blended"] = train(data, steps, seed, estimator)
    figures["random"], figures["random_located"], _ = train(data, steps, seed, st, learned=False)
    sys.stdout.write(f"seed {seed}: " + ", ".join(f"{name} {value:.3f}" for name, value in figures.items()) + "\n")
    return figures


if __name__ == "__main__":
    for argument in sys.argv[1:] or ["0"]:
        main(seed=int(argument))
