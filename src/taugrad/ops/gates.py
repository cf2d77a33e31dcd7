r"""Layers of two-input gates: polynomials of their inputs, exact on 0 and 1.

    y = c_0 + c_1 a + c_2 b + c_3 a b,        c = z C

The contract: a gate is one of the 16 Boolean functions of two inputs, drawn as a one-hot `z` (gates, 16), or mixed as
probabilities of them. C (16, 4) are their polynomials, so that a layer computes four numbers a gate and not sixteen.
The batch is the last dimension, which makes an input of a gate a row of memory.
"""

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from taugrad.ops import _fused
from taugrad.ops._torch import readable

_INTEGERS = (torch.int64, torch.int32)


def truth_table() -> Tensor:
    """Return the outputs of the 16 gates, (16, 4), for the inputs (a, b) = (0, 0), (0, 1), (1, 0) and (1, 1).

    Bit 2 a + b of its number is a gate's output: 8 is `a and b`, 14 `a or b`, 6 `a xor b`, 12 `a`, 0 false, 15 true.

    >>> truth_table()[[8, 6, 12]].tolist()
    [[0.0, 0.0, 0.0, 1.0], [0.0, 1.0, 1.0, 0.0], [0.0, 0.0, 1.0, 1.0]]
    """
    return torch.tensor([[float(gate >> bit & 1) for bit in range(4)] for gate in range(16)])


def gate_polynomials() -> Tensor:
    """Return the polynomials of the 16 gates, C (16, 4): c_0, c_1, c_2 and c_3 of each.

    >>> gate_polynomials()[6].tolist()  # a xor b = a + b - 2 a b
    [0.0, 1.0, 1.0, -2.0]
    """
    f00, f01, f10, f11 = truth_table().unbind(1)
    return torch.stack([f00, f10 - f00, f01 - f00, f11 - f10 - f01 + f00], 1)


def gates(x: Tensor, c: Tensor, a: Tensor, b: Tensor) -> Tensor:
    r"""Compute a layer of two-input gates: $y_i = c_{i0} + c_{i1} x_{a_i} + c_{i2} x_{b_i} + c_{i3} x_{a_i} x_{b_i}$.

    Args:
        x: (inputs, batch), floating point: the layer's inputs, the batch last.
        c: (gates, 4), the gates' polynomials.
        a: (gates,), integers: the first input of each gate, a row of `x`.
        b: (gates,), integers: the second.

    Returns:
        (gates, batch). The gradient is that of the polynomial. Saved for the backward are `x` and `c`, where kernels
        take them, which draw on one thread for each share of the batch; otherwise what torch's operations save.

    Raises:
        TypeError: `a` or `b` are no integers.
        ValueError: a shape does not fit, or on a CPU an input is no row of `x`.

    Source: 2210.08277.

    >>> x = torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.0, 1.0, 0.0, 1.0]])
    >>> gates(x, gate_polynomials()[[8, 6]], torch.tensor([0, 0]), torch.tensor([1, 1])).tolist()
    [[0.0, 0.0, 0.0, 1.0], [0.0, 1.0, 1.0, 0.0]]
    """
    if has_torch_function((x, c, a, b)):
        return handle_torch_function(gates, (x, c, a, b), x, c, a, b)
    _check_gates(x, c, a, b)
    fused = _fused.gates(x, c, a, b)
    if fused is not None:
        return fused
    A, B = x.index_select(0, a), x.index_select(0, b)
    c0, c1, c2, c3 = c.unsqueeze(-1).unbind(1)
    return (c0 + c1 * A) + (c2 + c3 * A) * B


def _check_gates(x: Tensor, c: Tensor, a: Tensor, b: Tensor) -> None:
    if x.ndim != 2:
        raise ValueError(f"x must have shape (inputs, batch), got {tuple(x.shape)}")
    if c.ndim != 2 or c.shape[1] != 4:
        raise ValueError(f"c must have shape (gates, 4), got {tuple(c.shape)}")
    for name, index in (("a", a), ("b", b)):
        if index.dtype not in _INTEGERS:
            raise TypeError(f"{name} must hold integers, got {index.dtype}")
        if index.shape != c.shape[:1]:
            raise ValueError(f"{name} must have shape ({len(c)},), one input a gate, got {tuple(index.shape)}")
        if len(c) and readable(index):
            low, high = (int(end) for end in index.aminmax())
            if low < 0 or high >= len(x):
                raise ValueError(f"{name} must hold rows of x, 0 to {len(x) - 1}, got {low if low < 0 else high}")
