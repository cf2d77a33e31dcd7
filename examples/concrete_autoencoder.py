r"""A concrete autoencoder (1901.09346): which k pixels of binarized MNIST let a network draw the other ones best?

    u_j = <z_j, x>,  z_j ~ softmax(logits_j) one-hot,  loss = |decoder(u) - x|^2

Next to it a decoder that trains on k random pixels. tau falls over the training; in evaluation the pixels are indices.

    python examples/concrete_autoencoder.py 0 1 2        # the seeds
"""

import sys

import torch
from torch import nn

import taugrad
from taugrad.data.binarized_mnist import binarized_mnist
from taugrad.layers import Selector


def train(data, steps, seed, k, learned=True, repetition=True) -> tuple[float, int]:
    """Test error a pixel, and the number of different pixels that are read."""
    torch.manual_seed(seed)
    selector = Selector(784, k, taugrad.GumbelSoftmax(), repetition=repetition)
    decoder = nn.Sequential(nn.Linear(k, 200), nn.LeakyReLU(0.2), nn.Linear(200, 784), nn.Sigmoid())
    if not learned:
        selector.logits.data[torch.arange(k), torch.randperm(784)[:k]] = 1e3
    groups = [{"params": selector.parameters(), "lr": 3e-2 * learned}, {"params": decoder.parameters()}]
    optimizer = torch.optim.Adam(groups, lr=2e-3)
    tau = taugrad.Cosine(5.0, 0.1, steps=steps)
    for step in range(steps):
        x = data.train.images[torch.randint(len(data.train.labels), (100,))].flatten(1) / 255
        loss = (decoder(selector(x, tau(step))) - x).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        x = data.test.images.flatten(1) / 255
        error = (decoder(selector.eval()(x)) - x).square().mean()
    return error.item(), len(selector.indices().unique())


def main(steps: int = 2000, seed: int = 0, k: int = 10) -> dict[str, float]:
    data, figures = binarized_mnist(), {}
    figures["selected"], figures["selected_pixels"] = train(data, steps, seed, k)
    figures["without_repetition"], figures["without_repetition_pixels"] = train(data, steps, seed, k, repetition=False)
    figures["random"], figures["random_pixels"] = train(data, steps, seed, k, learned=False)
    sys.stdout.write(f"seed {seed}: " + ", ".join(f"{name} {value:.4g}" for name, value in figures.items()) + "\n")
    return figures


if __name__ == "__main__":
    for argument in sys.argv[1:] or ["0"]:
        main(seed=int(argument))
