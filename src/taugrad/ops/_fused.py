"""Fused functions: the one place that chooses between kernels and plain torch.

A function here returns the result of a kernel, or None where no kernel takes its tensors as they are now. Its caller
then runs torch code, which any device, transform or compiler follows. Another device with kernels is one more case of
`_kernels_of`.

Kernels are no operators of torch and have no gradient. `bound_sample`, `gumbel_rao`, `entropy` and
`bernoulli_log_prob` bring their own. The other draws have none; `softmax`, the backwards and `log_prob` return None for
tensors that need one.
"""

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from taugrad.ops._checks import is_scalar, raise_bad_rows
from taugrad.ops._torch import watched
from taugrad.ops.native import kernels as native
from taugrad.ops.onehot import Relaxation

_SEEDS = 2**63 - 1
_SCALAR = ()


def backend() -> str:
    """Return what computes samples on a CPU: `native` or `torch`. The first call decides, and logs it.

    >>> backend() in ("native", "torch")
    True
    """
    return "native" if native.available() else "torch"


def bound() -> bool:
    """Return whether the native kernels are bound to torch's C++ autograd, by `python -m taugrad.ops.native`.

    >>> isinstance(bound(), bool)
    True
    """
    return native.bound()


def has_operator(x: Tensor) -> bool:
    """Return whether compiled programs can sample `x` by taugrad's operator."""
    return x.device.type == "cpu" and native.available()


def draw_seed(generator: torch.Generator | None) -> Tensor:
    """Draw a seed for the kernels: 63 random bits of torch's generator.

    >>> draw_seed(torch.Generator().manual_seed(0)).dtype
    torch.int64
    """
    return torch.randint(_SEEDS, _SCALAR, generator=generator, device="cpu")


def _kernels_for(*tensors: Tensor) -> ModuleType | None:
    """Return the kernels that take these tensors now, which are of one dtype."""
    return None if watched() else _kernels_of(*tensors)


def _kernels_of(*tensors: Tensor) -> ModuleType | None:
    """Return the kernels that take these tensors when nothing is `watched`."""
    for x in tensors:
        if not native.holds(x):
            return None
    return native


def _needs_gradient(*tensors: float | Tensor) -> bool:
    return torch.is_grad_enabled() and any(isinstance(x, Tensor) and x.requires_grad for x in tensors)


def _is_last(dim: int, x: Tensor) -> bool:
    return dim == -1 or dim == x.ndim - 1


def _rows(x: Tensor, dim: int) -> Tensor:
    """Return `x` contiguous, the classes last."""
    return (x if _is_last(dim, x) else x.movedim(dim, -1)).contiguous()


def _unrows(x: Tensor, dim: int) -> Tensor:
    """Return `x` contiguous, the classes back at `dim`."""
    return x if _is_last(dim, x) else x.movedim(-1, dim).contiguous()


def _raise_failures(failures: int, x: Tensor, tau: float | Tensor = 1.0) -> None:
    if failures:
        raise_bad_rows(failures, x.numel() // x.shape[-1], tau)


# Noise and samples


def noise(like: Tensor, dtype: torch.dtype, generator: torch.Generator | None) -> Tensor | None:
    """Draw Gumbel(0,1) noise in the shape of `like`."""
    if watched():
        return None
    g = torch.empty_like(like, dtype=dtype, memory_format=torch.contiguous_format)
    kernels = _kernels_of(g)
    return kernels.noise(g, draw_seed(generator)) if kernels else None


def argmax(x: Tensor, generator: torch.Generator | None) -> Tensor | None:
    """Draw classes from logits (..., K): int64 (...)."""
    kernels = _kernels_for(x)
    if kernels is None:
        return None
    index, failures = kernels.argmax(x.contiguous(), draw_seed(generator))
    _raise_failures(failures, x)
    return index


def one_hot(x: Tensor, dim: int, generator: torch.Generator | None) -> Tensor | None:
    """Draw a one-hot sample of logits (..., K), for the last `dim` alone."""
    kernels = _kernels_for(x) if _is_last(dim, x) else None
    if kernels is None:
        return None
    z, _, failures = kernels.sample(x.contiguous(), draw_seed(generator), Relaxation.NONE, 1.0)
    _raise_failures(failures, x)
    return z


def sample(
    x: Tensor,
    tau: float | Tensor,
    dim: int,
    relaxation: Relaxation,
    gap: float,
    hard: bool,
    generator: torch.Generator | None,
) -> tuple[Tensor, Tensor] | None:
    """Draw `z` (empty unless `hard`) and `y`, without their gradient, when nothing is `watched`."""
    kernels = _kernels_of(x) if is_scalar(tau) else None
    if kernels is None:
        return None
    rows = _rows(x, dim)
    z, y, failures = kernels.sample(rows, draw_seed(generator), relaxation, float(tau), gap, hard=hard)
    _raise_failures(failures, rows, tau)
    if _is_last(dim, x):
        return z, y
    y = y.movedim(-1, dim)
    return (z.movedim(-1, dim).contiguous(), y) if hard else (z, y.contiguous())


def bound_sample(x: Tensor, tau: float | Tensor, relaxation: Relaxation, gap: float, hard: bool) -> Tensor | None:
    """Draw `z`, or `y` unless `hard`, with its gradient by torch's C++ autograd: the fast path, before any check."""
    out = None if watched() else native.bound_sample(x, relaxation, tau, gap, hard)
    if isinstance(out, int):
        raise_bad_rows(out, x.numel() // x.shape[-1])
    return out


def sample_of_seed(x: Tensor, seed: Tensor, tau: float, relaxation: Relaxation, gap: float) -> tuple[Tensor, Tensor]:
    """Return `z` and `y` of contiguous logits (..., K) on a CPU, for the operator. A row without a sample is NaN."""
    z, y, _ = native.sample(x, seed, relaxation, tau, gap)
    return z, y


# Softmax and the two backwards of a sample


def softmax(x: Tensor, tau: float | Tensor, dim: int) -> Tensor | None:
    """Tempered softmax of `x`, for the last `dim` alone."""
    usual = not (torch.is_grad_enabled() and x.requires_grad) and _is_last(dim, x) and is_scalar(tau)
    kernels = _kernels_for(x) if usual else None
    return kernels.softmax(x.contiguous(), float(tau)) if kernels else None


def softmax_backward(grad: Tensor, y: Tensor, tau: float | Tensor, dim: int) -> Tensor | None:
    """Gradient `(grad - <grad, y>) y / tau`."""
    if dim == -1 and not watched():  # the fast path, before any check of the tensors
        dx = native.bound_softmax_backward(grad, y, tau)
        if dx is not None:
            return dx
    usual = not _needs_gradient(grad, y, tau) and is_scalar(tau)
    kernels = _kernels_for(grad, y) if usual else None
    if kernels is None or grad.dtype is not y.dtype or grad.shape != y.shape:
        return None
    return _unrows(kernels.softmax_backward(_rows(grad, dim), _rows(y, dim), float(tau)), dim)


def reinmax_backward(grad: Tensor, marked: Tensor, tau: float | Tensor, dim: int) -> Tensor | None:
    """ReinMax's gradient from the `y` of Relaxation.MARKED."""
    kernels = _kernels_for(grad, marked) if is_scalar(tau) and not torch.is_grad_enabled() else None
    if kernels is None:
        return None
    return _unrows(kernels.reinmax_backward(_rows(grad, dim), _rows(marked, dim), float(tau)), dim)


# Functions with a gradient of their own


def gumbel_rao(
    logits: Tensor, tau: float | Tensor, dim: int, draws: int, generator: torch.Generator | None
) -> Tensor | None:
    """Draw Gumbel-Rao's `z` with its gradient, which draws the noise again from a seed."""
    kernels = None if isinstance(tau, Tensor) else _kernels_for(logits)
    return _GumbelRao.apply(logits, tau, dim, draws, draw_seed(generator), kernels) if kernels else None


class _GumbelRao(torch.autograd.Function):
    """Sample that saves its logits and a seed."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, tau: float, dim: int, draws: int, seed: Tensor, kernels: ModuleType
    ) -> Tensor:
        x = logits.movedim(dim, -1).contiguous()
        z, _, failures = kernels.sample(x, seed, Relaxation.NONE, tau)
        _raise_failures(failures, x)
        ctx.tau, ctx.dim, ctx.draws, ctx.kernels = tau, dim, draws, kernels
        ctx.save_for_backward(logits, seed)
        return z.movedim(-1, dim).contiguous()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        logits, seed = ctx.saved_tensors
        x = logits.detach().movedim(ctx.dim, -1)
        dx = _MeanJacobian.apply(grad.movedim(ctx.dim, -1), x, ctx.tau, ctx.draws, seed, ctx.kernels)
        return dx.movedim(-1, ctx.dim).contiguous(), None, None, None, None, None


class _MeanJacobian(torch.autograd.Function):
    """Product `J g` of Gumbel-Rao. J is symmetric, so its own backward; its derivative to x is not estimated."""

    @staticmethod
    def forward(ctx: Any, grad: Tensor, x: Tensor, tau: float, draws: int, seed: Tensor, kernels: ModuleType) -> Tensor:
        ctx.tau, ctx.draws, ctx.kernels = tau, draws, kernels
        ctx.save_for_backward(x, seed)
        if _kernels_for(grad):
            return kernels.gumbel_rao(grad.contiguous(), x.contiguous(), seed, draws, tau)
        # A batch of gradients has no memory that a kernel could read, so J is computed column by column.
        units = torch.eye(x.shape[-1], dtype=x.dtype).view(-1, *[1] * (x.ndim - 1), x.shape[-1]).expand(-1, *x.shape)
        columns = (kernels.gumbel_rao(unit.contiguous(), x.contiguous(), seed, draws, tau) for unit in units)
        return torch.stack([column * grad.select(-1, k).unsqueeze(-1) for k, column in enumerate(columns)]).sum(0)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, seed = ctx.saved_tensors
        return _MeanJacobian.apply(grad, x, ctx.tau, ctx.draws, seed, ctx.kernels), None, None, None, None, None


def entropy(logits: Tensor, dim: int) -> Tensor | None:
    """Entropy of logits (..., K) with its gradient, for the last `dim` alone."""
    kernels = _kernels_for(logits) if _is_last(dim, logits) else None
    return _Entropy.apply(logits, kernels) if kernels else None


class _Entropy(torch.autograd.Function):
    """Entropy H of x. It saves both: dH/dx_k = -p_k (log p_k + H)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, kernels: ModuleType) -> Tensor:
        H = kernels.entropy(x.contiguous())
        ctx.save_for_backward(x, H)
        return H

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        x, H = ctx.saved_tensors
        kernels = None if torch.is_grad_enabled() else _kernels_for(grad, x)
        if kernels:
            return kernels.entropy_backward(grad.contiguous(), x.contiguous(), H), None
        log_p = torch.log_softmax(x, -1)
        p = log_p.exp()
        return -grad.unsqueeze(-1) * p * (log_p.masked_fill(log_p == -torch.inf, 0.0) + H.unsqueeze(-1)), None


def log_prob(logits: Tensor, z: Tensor, dim: int) -> Tensor | None:
    """Log-probability of `z` of the logits' shape or with more leading dimensions, for the last `dim` alone."""
    usual = not _needs_gradient(logits, z) and _is_last(dim, logits) and z.dtype is logits.dtype
    kernels = _kernels_for(logits, z) if usual else None
    return kernels.log_prob(logits.contiguous(), z.contiguous()) if kernels and _extends(z, logits) else None


def bernoulli_log_prob(logits: Tensor, x: Tensor) -> Tensor | None:
    """Log-probability of independent Bernoullis, with its gradient to the logits, which may have more dimensions."""
    kernels = None if _needs_gradient(x) or x.dtype is not logits.dtype else _kernels_for(logits, x)
    return _BernoulliLogProb.apply(logits, x, kernels) if kernels and _extends(logits, x) else None


def _extends(many: Tensor, few: Tensor) -> bool:
    """Return whether `many` has the shape of `few`, perhaps after more leading dimensions."""
    return few.ndim > 0 and many.shape[-few.ndim :] == few.shape


class _BernoulliLogProb(torch.autograd.Function):
    """Log-probability of x by the logits `l`. It saves both: d/dl = x - sigma(l)."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, x: Tensor, kernels: ModuleType) -> Tensor:
        ctx.save_for_backward(logits, x)
        return kernels.bernoulli(logits.contiguous(), x.contiguous())

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        logits, x = ctx.saved_tensors
        kernels = None if torch.is_grad_enabled() else _kernels_for(grad, logits)
        if kernels:
            return kernels.bernoulli_backward(grad.contiguous(), logits.contiguous(), x.contiguous()), None, None
        return grad.unsqueeze(-1) * (x - logits.sigmoid()), None, None
