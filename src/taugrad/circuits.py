"""A network of two-input logic gates as plain arrays: what a trained model becomes, and what an exporter takes."""

from typing import NamedTuple

from torch import Tensor


class Circuit(NamedTuple):
    """Layers of gates of two inputs each; the outputs of the last layer vote for `classes` classes in equal groups.

    A layer is (a, b, gate), int64, one entry a gate: the places of its inputs in the layer before, or among the
    circuit's `inputs` bits, and its number 0 to 15. The output of gate g for bits a and b is bit 2a + b of g, counted
    from the lowest: 8 is AND, 14 is OR, 6 is XOR, 12 passes a, 10 passes b.
    """

    inputs: int
    layers: tuple[tuple[Tensor, Tensor, Tensor], ...]
    classes: int
