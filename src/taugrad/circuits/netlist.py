"""Circuits of two-input gates as a network of layers gives them, and the smaller netlist that computes the same bits.

Gate g has the output $(g >> (2a + b)) & 1$ for inputs $a, b$: 8 is AND, 14 OR, 6 XOR, 12 is `a`, 3 is NOT `a`.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

GATES = {2: "~a & b", 4: "a & ~b", 6: "a ^ b", 8: "a & b", 14: "a | b"}  # gates of a netlist in C
_COMPUTED: dict[int, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    2: lambda a, b: ~a & b,
    4: lambda a, b: a & ~b,
    6: np.bitwise_xor,
    8: np.bitwise_and,
    14: np.bitwise_or,
}


class Circuit(NamedTuple):
    """Layers of two-input gates over bits; a class is the largest sum of a group of the last layer's outputs.

    Attributes:
        inputs: number of input bits.
        layers: for each layer int64 tensors `a`, `b` and `gate`, (gates,) each: gate i takes outputs `a[i]` and `b[i]`
            of the layer before, or of the inputs, and its output is bit `2 * a + b` of `gate[i]`.
        classes: number of groups; the last layer's outputs are that many consecutive groups of one size.
    """

    inputs: int
    layers: tuple[tuple[Tensor, Tensor, Tensor], ...]
    classes: int


class Netlist(NamedTuple):
    """Gates that are all used, all different and all depend on both inputs, in an order in which they can be computed.

    A net is a number: 0 is the constant false, 1 to `inputs` the inputs, then a net for each gate. A literal is a net
    or its negation: `2 * net + negated`, so that 0 is false and 1 is true.

    Attributes:
        inputs: number of input bits.
        gates: (gates, 3), int64: nets `a` < `b`, both before the gate's own, and the gate's number, of `GATES`.
        outputs: (outputs,), int64: literals, of which `classes` consecutive groups are summed.
        classes: number of groups.
    """

    inputs: int
    gates: np.ndarray
    outputs: np.ndarray
    classes: int


def check_circuit(circuit: Circuit) -> None:
    """Raise unless the layers fit each other and the classes.

    >>> one = torch.tensor([1])
    >>> check_circuit(Circuit(1, ((one, one, one),), 1))
    Traceback (most recent call last):
    ValueError: layers[0] must take inputs 0 to 0, got 1
    """
    if not isinstance(circuit, Circuit):
        raise TypeError(f"circuit must be a Circuit, got {type(circuit).__name__}")
    width = circuit.inputs
    if width < 1 or circuit.classes < 1 or not circuit.layers:
        raise ValueError(
            f"a circuit must have inputs, layers and classes, got {width}, {len(circuit.layers)} and {circuit.classes}"
        )
    for i, layer in enumerate(circuit.layers):
        if len({t.shape for t in layer}) != 1 or layer[0].ndim != 1 or len(layer[0]) < 1:
            raise ValueError(f"layers[{i}] must be three vectors of one size, got {[tuple(t.shape) for t in layer]}")
        for t, name, end in ((layer[0], "inputs", width), (layer[1], "inputs", width), (layer[2], "gates", 16)):
            bad = t[(t < 0) | (t >= end)]
            if len(bad):
                raise ValueError(f"layers[{i}] must take {name} 0 to {end - 1}, got {bad[0]}")
        width = len(layer[0])
    if width % circuit.classes:
        raise ValueError(f"the last layer must have a multiple of {circuit.classes} gates, the classes, got {width}")


def class_sums(circuit: Circuit, bits: Tensor) -> Tensor:
    """Sums of the groups (batch, classes), int64, of input bits (batch, inputs), gate by gate as the layers have them.

    >>> xor = Circuit(2, ((torch.tensor([0]), torch.tensor([1]), torch.tensor([6])),), 1)
    >>> class_sums(xor, torch.tensor([[0, 0], [0, 1], [1, 1]])).flatten()
    tensor([0, 1, 0])
    """
    x = bits.to(torch.uint8).T.contiguous()  # (inputs, batch): a gate takes whole rows
    for a, b, gate in circuit.layers:
        x = gate.to(torch.uint8).unsqueeze(1) >> 2 * x[a] + x[b]
        x &= 1
    return x.unflatten(0, (circuit.classes, -1)).sum(1).T


def netlist_sums(netlist: Netlist, bits: Tensor) -> Tensor:
    """Sums of the groups (batch, classes), int64, of input bits (batch, inputs), by the netlist.

    >>> xor = Circuit(2, ((torch.tensor([0]), torch.tensor([1]), torch.tensor([6])),), 1)
    >>> netlist_sums(simplify(xor), torch.tensor([[0, 0], [0, 1], [1, 1]])).flatten()
    tensor([0, 1, 0])
    """
    packed = np.packbits(bits.numpy(force=True).astype(bool), axis=0).T  # eight images a byte
    v = [np.zeros_like(packed[0]), *np.ascontiguousarray(packed)]
    for a, b, gate in netlist.gates.tolist():
        v.append(_COMPUTED[gate](v[a], v[b]))
    outputs = [v[literal >> 1] ^ np.uint8(255 * (literal & 1)) for literal in netlist.outputs.tolist()]
    groups = np.stack(outputs).reshape(netlist.classes, len(outputs) // netlist.classes, len(v[0]))
    sums = [np.unpackbits(group, axis=1, count=len(bits)).sum(0, dtype=np.int64) for group in groups]
    return torch.from_numpy(np.stack(sums, 1))


def levels(thresholds: int, device: torch.device | None = None) -> Tensor:
    """Return the intensities k / (thresholds + 1) for k = 1 ... thresholds, float32."""
    return torch.arange(1, thresholds + 1, device=device) / (thresholds + 1)


def input_bits(images: Tensor, thresholds: int | None = None) -> Tensor:
    """Return the inputs (n, inputs), bool, of images (n, ...) in [0, 1]: pixels, or whether they are above each level.

    Input `k * pixels + i` is whether pixel i is above `(k + 1) / (thresholds + 1)`.

    >>> input_bits(torch.tensor([[0.1, 0.6]]), thresholds=3).long()
    tensor([[0, 1, 0, 1, 0, 0]])
    """
    x = images.flatten(1)
    if thresholds is None:
        return x > 0
    ends = levels(thresholds, x.device)
    ends = ends.to(x.dtype) if x.is_floating_point() else ends
    return (x.unsqueeze(1) > ends.unsqueeze(1)).flatten(1)


def depths(netlist: Netlist) -> list[int]:
    """Return the number of gates on the longest way from an input to each net."""
    found = [0] * (netlist.inputs + 1)
    for a, b, _ in netlist.gates.tolist():
        found.append(1 + max(found[a], found[b]))
    return found


def simplify(circuit: Circuit) -> Netlist:
    """Return a netlist with the same outputs for every input.

    Constants and gates that pass or negate one input are folded into the gates that take them, a gate that computes
    what another does, or its negation, becomes that gate, and gates that no output needs are left out.

    Raises:
        ValueError: the layers do not fit each other.

    >>> twice = torch.tensor([0, 1]), torch.tensor([1, 0]), torch.tensor([8, 7])  # AND, and NAND the other way round
    >>> netlist = simplify(Circuit(2, (twice,), 2))
    >>> netlist.gates, netlist.outputs
    (array([[1, 2, 8]]), array([6, 7]))
    """
    check_circuit(circuit)
    gates: list[tuple[int, int, int]] = []
    known: dict[tuple[int, int, int], int] = {}
    literals = [2 * net for net in range(1, circuit.inputs + 1)]
    for layer in circuit.layers:
        a, b, gate = (t.tolist() for t in layer)
        literals = [
            _literal(literals[i], literals[j], g, circuit.inputs, gates, known)
            for i, j, g in zip(a, b, gate, strict=True)
        ]
    return _used(circuit.inputs, gates, literals, circuit.classes)


def _literal(
    a: int, b: int, gate: int, inputs: int, gates: list[tuple[int, int, int]], known: dict[tuple[int, int, int], int]
) -> int:
    """Literal of a gate of two literals: a constant, one of them, a gate that is known, or a new one."""
    x, y = a >> 1, b >> 1
    if x > y:
        x, y, a, b = y, x, b, a
        gate = _swapped(gate)
    out = [gate >> (2 * (p ^ a & 1) + (q ^ b & 1)) & 1 for p in (0, 1) for q in (0, 1)]  # at nets (x, y) in (p, q)
    if x == 0:
        out[2:] = out[:2]  # x is never 1
    if x == y:
        out[1], out[2] = out[0], out[3]  # both have one value
        out = [out[0], out[3], out[0], out[3]]
    f, negated = [bit ^ out[0] for bit in out], out[0]  # f(0, 0) = 0
    number = f[1] << 1 | f[2] << 2 | f[3] << 3
    if number in (0, 10, 12):
        return (2 * {0: 0, 10: y, 12: x}[number]) ^ negated
    key = x, y, number
    if key not in known:
        known[key] = inputs + 1 + len(gates)
        gates.append(key)
    return 2 * known[key] ^ negated


def _swapped(gate: int) -> int:
    return gate & 0b1001 | (gate & 0b0010) << 1 | (gate & 0b0100) >> 1


def _used(inputs: int, gates: Sequence[tuple[int, int, int]], literals: Sequence[int], classes: int) -> Netlist:
    """Leave out the gates that no literal depends on; the others keep their order."""
    first = inputs + 1
    needed = np.zeros(first + len(gates), dtype=bool)
    needed[np.array(literals) >> 1] = True
    for net in range(len(needed) - 1, first - 1, -1):
        if needed[net]:
            a, b, _ = gates[net - first]
            needed[a] = needed[b] = True
    needed[:first] = True
    place = np.cumsum(needed) - 1
    kept = np.array(gates, dtype=np.int64).reshape(-1, 3)[needed[first:]]
    kept[:, :2] = place[kept[:, :2]]
    outputs = np.array(literals, dtype=np.int64)
    return Netlist(inputs, kept, 2 * place[outputs >> 1] + (outputs & 1), classes)
