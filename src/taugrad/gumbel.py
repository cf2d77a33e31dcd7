r"""Discrete sampling as noise + argmax, and its relaxation.

    g_i = -log(-log u_i),  u ~ U(0,1)        Gumbel(0,1) noise
    i   = argmax(logits + g)                 an exact sample of softmax(logits): Gumbel-Max
    y   = softmax((logits + g) / tau)        its relaxation: Gumbel-Softmax (1611.01144, 1611.00712)
    z   = onehot(i),  dz := dy               straight-through

The contract: a sample has the dtype, shape and device of its logits; a hard one is 0.0 and 1.0 to the bit. Noise is
drawn and added in float32 for half precision, in the logits' own dtype otherwise, and is finite always. A class whose
logit is -inf is never drawn and gets zero gradient. A row without a finite logit, or with NaN or +inf, raises; while
compiling and under `torch.func` transforms, where no value may be looked at, its sample is NaN instead (an index,
which cannot be NaN, is then arbitrary).

Deviation: the uniform numbers have the resolution of `torch.rand`, 2^-24 in float32, so that a float32 draw of noise
lies in [-2.86, 16.64]. A class more than 19.5 nats behind, of probability below 4e-9, is never drawn in float32.
"""

import warnings

import torch
from torch import Tensor

from taugrad._arguments import check_logits, check_rows, compute_dtype
from taugrad.softmax import softmax

_UNUSED_EPS = 1e-10  # torch's default, which torch ignores too


def gumbel_noise(like: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
    r"""Gumbel(0,1) noise, $g = -\log(-\log u)$ with $u \sim U(0,1)$: always finite.

    Args:
        like: gives shape and device; float64 gives float64 noise, every other dtype float32.
        generator: a source of randomness on the same device; default torch's own.

    Returns:
        Noise in the shape of `like`, without gradient.

    >>> g = gumbel_noise(torch.zeros(100_000), generator=torch.Generator().manual_seed(0))
    >>> round(g.mean().item(), 1), round(g.var().item(), 1)  # Euler's constant and pi^2 / 6
    (0.6, 1.6)
    """
    dtype = compute_dtype(like.dtype)
    u = torch.rand(like.shape, generator=generator, dtype=dtype, device=like.device)
    # u is a multiple of 2^-24 (2^-53 in float64) below 1. Zero would give -inf: it becomes half the smallest step.
    smallest = torch.finfo(dtype).eps / 4
    return -(-(u.clamp(smallest, 1 - 2 * smallest).log())).log()


def gumbel_argmax(logits: Tensor, dim: int = -1, *, generator: torch.Generator | None = None) -> Tensor:
    r"""Gumbel-Max: $i = \arg\max_k (\mathrm{logits}_k + g_k)$, an exact sample of softmax(logits).

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
    check_logits(logits, dim)
    top, index = perturbed(logits.detach(), generator=generator).max(dim, keepdim=True)
    check_rows(top * 0, dim)  # NaN where the maximum is not finite
    return index.squeeze(dim)


def gumbel_max(logits: Tensor, dim: int = -1, *, generator: torch.Generator | None = None) -> Tensor:
    r"""An exact sample of softmax(logits) as a one-hot vector: that of `gumbel_argmax`.

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
    return one_hot(gumbel_argmax(logits, dim, generator=generator), logits.detach(), dim)


def conditional_perturbed(logits: Tensor, z: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
    r"""Perturbed log-probabilities $s = \log\pi + g$ given that their argmax is z (2010.04838).

    The largest is Gumbel(0) whatever the class, $s_i = g_i$; another is cut off at it,
    $s_j = -\log(e^{-(\log\pi_j + g_j)} + e^{-s_i})$, with fresh noise g.

    Args:
        logits: (..., K), floating point; -inf masks a class.
        z: one-hot, (..., K), of no masked class.
        generator: a source of randomness; default torch's own.

    Returns:
        s, (..., K), in the dtype of the noise, without gradient.

    >>> s = conditional_perturbed(torch.tensor([0.0, 0.0, -torch.inf]), torch.tensor([0.0, 1.0, 0.0]))
    >>> s.argmax(), s[2]
    (tensor(1), tensor(-inf))
    """
    g = gumbel_noise(logits, generator=generator)
    top = (g * z).sum(-1, keepdim=True)
    others = -torch.logaddexp(-(torch.log_softmax(logits.detach().to(g.dtype), -1) + g), -top)
    return torch.where(z > 0, top, others)


def gumbel_softmax(
    logits: Tensor,
    tau: float | Tensor = 1.0,
    hard: bool = False,
    eps: float = _UNUSED_EPS,
    dim: int = -1,
    *,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Gumbel-Softmax, a drop-in for `torch.nn.functional.gumbel_softmax`.

    $y = \mathrm{softmax}((\mathrm{logits} + g) / \tau)$; with `hard`, the one-hot of its argmax, whose gradient is
    that of $y$ (straight-through).

    Args:
        logits: (..., K, ...), floating point; -inf masks a class.
        tau: temperature, a positive number or a 0-d tensor.
        hard: return the one-hot z in place of y.
        eps: unused, kept for the signature's sake: this noise needs no guard.
        dim: the dimension of the K classes.
        generator: a source of randomness; default torch's own.

    Returns:
        A sample in the shape and dtype of `logits`.

    Raises:
        ValueError: `tau` is not positive, or a row has no finite logit, or NaN or +inf.
        TypeError, IndexError: `logits` is not floating point, `dim` is out of range.

    Bias: the gradient of E f(y) is exact for soft samples, which are biased for E f(z), the less the smaller tau;
    with `hard` the value is unbiased and the gradient biased. Source: 1611.01144, 1611.00712.

    >>> gumbel_softmax(torch.tensor([[0.0, -torch.inf], [-torch.inf, 0.0]]), tau=0.5, hard=True)
    tensor([[1., 0.],
            [0., 1.]])
    """
    check_logits(logits, dim)
    if eps != _UNUSED_EPS:
        warnings.warn("eps has no effect: the noise is finite without it", FutureWarning, stacklevel=2)
    s = perturbed(logits, generator=generator)
    y = softmax(s, tau, dim).to(logits.dtype)
    check_rows(y, dim, tau)
    return straight_through(one_hot(s.argmax(dim), y, dim), y) if hard else y


def straight_through(hard: Tensor, soft: Tensor) -> Tensor:
    """The value of `hard`, to the bit, with the gradient of `soft`.

    The difference of `soft` to itself is exactly zero, and NaN where `soft` is.

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


def one_hot(index: Tensor, like: Tensor, dim: int = -1) -> Tensor:
    """One-hot vectors along `dim` in the shape and dtype of `like`, without gradient.

    Args:
        index: class indices, int64, the shape of `like` without `dim`.
        like: (..., K, ...), gives shape, dtype and device.
        dim: the dimension of the K classes.

    Returns:
        0.0 and 1.0 in the shape of `like`.

    >>> one_hot(torch.tensor(1), torch.zeros(3))
    tensor([0., 1., 0.])
    """
    return torch.zeros_like(like).scatter(dim, index.unsqueeze(dim), 1.0)


def perturbed(logits: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
    """Logits + g, differentiable, in the dtype of the noise: what every sample here starts from.

    >>> perturbed(torch.tensor([0.0, -torch.inf], dtype=torch.float16)).dtype
    torch.float32
    """
    g = gumbel_noise(logits, generator=generator)
    return logits.to(g.dtype) + g
