r"""Discrete sampling as noise + argmax, and its relaxation.

    g_i = -log(-log u_i),  u ~ U(0,1)        Gumbel(0,1) noise
    i   = argmax(logits + g)                 an exact sample of softmax(logits): Gumbel-Max
    y   = softmax((logits + g) / tau)        its relaxation: Gumbel-Softmax (1611.01144, 1611.00712)
    z   = onehot(i),  dz := dy               straight-through

The contract: a sample has the dtype, shape and device of its logits; a hard one is 0.0 and 1.0 to the bit. Noise is
drawn and added in float32 for half precision, in the logits' own dtype otherwise, and is always finite. A class whose
logit is -inf is never drawn and gets zero gradient. A row without a finite logit, or with NaN or +inf, raises. Where
Python must not read values (in a compiled, exported or traced program, under `torch.func` transforms, on a GPU, which
it would have to wait for) its sample is NaN instead; an index, which cannot be NaN, is then arbitrary. Samples and
their gradients are contiguous for any layout of the logits, as torch's are.
"""

import warnings

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_unary

from taugrad.ops import _fused
from taugrad.ops._checks import check_logits, check_rows, compute_dtype
from taugrad.ops._sampling import sample
from taugrad.ops.noise import perturbed
from taugrad.ops.onehot import one_hot

_UNUSED_EPS = 1e-10  # torch's default, which has no effect there either


def gumbel_argmax(logits: Tensor, dim: int = -1, *, generator: torch.Generator | None = None) -> Tensor:
    r"""Draw classes by Gumbel-Max: $i = \arg\max_k (\mathrm{logits}_k + g_k)$, an exact sample of softmax(logits).

    Args:
        logits: (..., K, ...), floating point; -inf masks a class.
        dim: the dimension of the K classes.
        generator: a source of randomness; default torch's own.

    Returns:
        Class indices, int64, the shape of `logits` without `dim`.

    Raises:
        ValueError: a row has no finite logit, or NaN or +inf.
        TypeError, IndexError: `logits` is not floating point, `dim` is out of range.

    >>> gumbel_argmax(torch.tensor([[0.0, -torch.inf], [-torch.inf, 0.0]]))
    tensor([0, 1])
    """
    if has_torch_function_unary(logits):
        return handle_torch_function(gumbel_argmax, (logits,), logits, dim, generator=generator)
    check_logits(logits, dim)
    x = logits.detach().movedim(dim, -1)
    index = _fused.argmax(x, generator)
    if index is not None:
        return index
    top, index = perturbed(x.to(compute_dtype(x.dtype)), generator=generator).max(-1)
    check_rows((top * 0).unsqueeze(-1), -1)  # NaN where the maximum is not finite
    return index.contiguous()


def gumbel_max(logits: Tensor, dim: int = -1, *, generator: torch.Generator | None = None) -> Tensor:
    r"""Draw an exact sample of softmax(logits) as a one-hot vector: that of `gumbel_argmax`.

    Args:
        logits: (..., K, ...), floating point; -inf masks a class.
        dim: the dimension of the K classes.
        generator: a source of randomness; default torch's own.

    Returns:
        z in the shape and dtype of `logits`, without gradient.

    Raises:
        ValueError, TypeError, IndexError: as for `gumbel_argmax`.

    >>> gumbel_max(torch.tensor([[0.0, -torch.inf], [-torch.inf, 0.0]]))
    tensor([[1., 0.],
            [0., 1.]])
    """
    if has_torch_function_unary(logits):
        return handle_torch_function(gumbel_max, (logits,), logits, dim, generator=generator)
    check_logits(logits, dim)
    x = logits.detach()
    z = _fused.one_hot(x, dim, generator)
    return z if z is not None else one_hot(gumbel_argmax(x, dim, generator=generator), x, dim)


def gumbel_softmax(
    logits: Tensor,
    tau: float | Tensor = 1.0,
    hard: bool = False,
    eps: float = _UNUSED_EPS,
    dim: int = -1,
    *,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Draw from Gumbel-Softmax, a drop-in for `torch.nn.functional.gumbel_softmax`.

    $y = \mathrm{softmax}((\mathrm{logits} + g) / \tau)$; with `hard`, the one-hot of its argmax, whose gradient is
    that of $y$ (straight-through).

    Args:
        logits: (..., K, ...), floating point; -inf masks a class.
        tau: temperature, a positive number or a tensor that broadcasts to `logits`, of size 1 along `dim`.
        hard: return the one-hot `z` in place of `y`.
        eps: unused, kept because torch's function has it; this noise needs no guard.
        dim: the dimension of the K classes.
        generator: a source of randomness; default torch's own.

    Returns:
        A sample in the shape and dtype of `logits`.

    Raises:
        ValueError: `tau` is not positive or does not fit `logits`, or a row has no finite logit, or NaN or +inf.
        TypeError, IndexError: `logits` is not floating point, `dim` is out of range.

    Bias: the gradient of E f(y) is exact for soft samples, which are biased for E f(z), the less the smaller tau;
    with `hard` the value is unbiased and the gradient biased. Source: 1611.01144, 1611.00712.

    >>> gumbel_softmax(torch.tensor([[0.0, -torch.inf], [-torch.inf, 0.0]]), tau=0.5, hard=True)
    tensor([[1., 0.],
            [0., 1.]])
    """
    if eps != _UNUSED_EPS:
        warnings.warn("eps has no effect: the noise is finite without it", FutureWarning, stacklevel=2)
    return sample(logits, tau, dim, hard=hard, generator=generator)
