"""Encoders and decoders: they know nothing of sampling."""

from collections.abc import Sequence

from torch import nn


def mlp(inputs: int, hidden: Sequence[int], outputs: int) -> nn.Sequential:
    """Linear layers with ReLU between them; the last has no activation.

    Args:
        inputs: size of the input's last dimension.
        hidden: sizes of the hidden layers; none makes the net linear.
        outputs: size of the output's last dimension.

    Returns:
        A module from (..., inputs) to (..., outputs).

    >>> mlp(784, [200], 10)
    Sequential(
      (0): Linear(in_features=784, out_features=200, bias=True)
      (1): ReLU()
      (2): Linear(in_features=200, out_features=10, bias=True)
    )
    """
    layers: list[nn.Module] = []
    for size in hidden:
        layers += [nn.Linear(inputs, size), nn.ReLU()]
        inputs = size
    return nn.Sequential(*layers, nn.Linear(inputs, outputs))
