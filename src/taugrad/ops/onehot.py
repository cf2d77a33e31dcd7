r"""Hard one-hot vectors with the gradient of a relaxation.

z = onehot(i),  dz/dlogits := dy/dlogits          straight-through
"""

from enum import IntEnum

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_unary

from taugrad.ops._checks import compute_dtype


def one_hot(index: Tensor, like: Tensor, dim: int = -1) -> Tensor:
    """Return one-hot vectors along `dim` in the shape and dtype of `like`, without gradient.

    Args:
        index: class indices, int64, the shape of `like` without `dim`.
        like: (..., K, ...), gives shape, dtype and device.
        dim: the dimension of the K classes.

    Returns:
        0.0 and 1.0 in the shape of `like`.

    >>> one_hot(torch.tensor(1), torch.zeros(3))
    tensor([0., 1., 0.])
    """
    zeros = torch.zeros_like(like, memory_format=torch.contiguous_format)
    return zeros.scatter(dim, index.unsqueeze(dim), 1.0)


def straight_through(hard: Tensor, soft: Tensor) -> Tensor:
    """Return the value of `hard`, to the bit, with the gradient of `soft`.

    The difference between `soft` and itself is exactly zero, and NaN where `soft` is NaN.

    Args:
        hard: the value, any shape.
        soft: the same shape and dtype, differentiable.

    Returns:
        `hard` in value, `soft` in gradient.

    >>> pi = torch.tensor([0.3, 0.7], requires_grad=True)
    >>> z = straight_through(torch.tensor([0.0, 1.0]), pi)
    >>> z.tolist(), torch.autograd.grad(z[0], pi)
    ([0.0, 1.0], (tensor([1., 0.]),))
    """
    return hard + (soft - soft.detach())


def tangent(logits: Tensor) -> Tensor:
    """Return zeros whose gradient is the identity: a Jacobian applied to them becomes the gradient of a sample.

    The Jacobian J of a softmax is symmetric, so `J @ tangent(logits)` has the value 0 and the backward J g. Half
    precision becomes float32; a masked class gets no gradient.

    >>> tangent(torch.tensor([1.0, -torch.inf]))
    tensor([0., 0.])
    """
    if has_torch_function_unary(logits):
        return handle_torch_function(tangent, (logits,), logits)
    x = logits.to(compute_dtype(logits.dtype))
    return (x - x.detach()).masked_fill(torch.isinf(x), 0.0)


class Relaxation(IntEnum):
    """Relaxation `y` whose gradient a hard sample takes."""

    NONE = 0
    PERTURBED = 1  # softmax((x + g) / tau)
    PLAIN = 2  # softmax(x / tau)
    GAPPED = 3  # softmax((x + m) / tau), where m gives the drawn class its lead
    MARKED = 4  # softmax(x / tau) with the sign bit of the drawn class set
