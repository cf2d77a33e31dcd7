"""Encoders and decoders: they know nothing of sampling."""

from collections.abc import Sequence
from itertools import pairwise

from torch import nn


def mlp(
    inputs: int, hidden: Sequence[int], outputs: int, activation: str = "ReLU", layer_norm: bool = False
) -> nn.Sequential:
    """Linear layers with an activation between them; the last has none.

    Args:
        inputs: size of the input's last dimension.
        hidden: sizes of the hidden layers; none makes the net linear.
        outputs: size of the output's last dimension.
        activation: the name of a class of `torch.nn` that needs no argument, such as ReLU or SiLU.
        layer_norm: normalize before each activation.

    Returns:
        A module from (..., inputs) to (..., outputs).

    Raises:
        ValueError: a size is below 1, or `activation` is not a module of `torch.nn`.

    >>> mlp(784, [200], 10)
    Sequential(
      (0): Linear(in_features=784, out_features=200, bias=True)
      (1): ReLU()
      (2): Linear(in_features=200, out_features=10, bias=True)
    )
    """
    kind = getattr(nn, activation, None)
    if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
        raise ValueError(f"activation must be the name of a module of torch.nn, such as ReLU or SiLU, got {activation}")
    sizes = [inputs, *hidden]
    if min(*sizes, outputs) < 1:
        raise ValueError(f"the sizes of an mlp must be at least 1, got {[*sizes, outputs]}")
    layers: list[nn.Module] = []
    for a, b in pairwise(sizes):
        layers += [nn.Linear(a, b), *([nn.LayerNorm(b)] if layer_norm else []), kind()]
    return nn.Sequential(*layers, nn.Linear(sizes[-1], outputs))
