"""Fused functions: the one place that chooses between kernels and plain torch.

A function here returns the result of a kernel, or None where no kernel takes its tensors as they are now. Its caller
then runs torch code, which any device, transform or compiler follows. A CPU has the native kernels, a GPU Triton's.

Kernels are no operators of torch and have no gradient. `bound_sample`, `gumbel_rao`, `entropy` and
`bernoulli_log_prob` bring their own. The other draws have none; `softmax`, the backwards and `log_prob` return None for
tensors that need one. `draw` and what follows it are for the operators of `taugrad.ops._redrawn`.
"""

import functools
import logging
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from taugrad.errors import ConfigError, reason_of
from taugrad.ops._backend import backend_chosen
from taugrad.ops._checks import compute_dtype, is_scalar, raise_bad_rows
from taugrad.ops._torch import compiled_transform, constant_for_compilers, transformed, watched
from taugrad.ops.native import kernels as native
from taugrad.ops.onehot import Relaxation

_SEEDS = 2**63 - 1
_SCALAR = ()


def backend(device: str = "cpu") -> str:
    """Return what computes samples on a device: `native`, `triton` or `torch`. The first call decides, and logs it.

    >>> backend() in ("native", "torch")
    True
    """
    if device == "cpu" and native.available():
        return "native"
    return "triton" if torch.device(device).type in _triton_devices() else "torch"


def bound() -> bool:
    """Return whether the native kernels are bound to torch's C++ autograd, by `python -m taugrad.ops.native`.

    >>> isinstance(bound(), bool)
    True
    """
    return native.bound()


def has_operator(x: Tensor) -> bool:
    """Return whether compiled programs can sample `x` by taugrad's operator for a CPU."""
    return x.device.type == "cpu" and native.available()


def redraws(x: Tensor) -> bool:
    """Return whether `x` is sampled by the operators of `taugrad.ops._redrawn`, in a compiled program too.

    Transforms of `torch.func` and exported programs, which must run where there is no taugrad, follow torch code.
    """
    if not _may_have_triton(x):
        return False
    if torch.compiler.is_compiling():
        return not (torch.compiler.is_exporting() or compiled_transform()) and _triton().fits(x)
    return not transformed() and _triton().holds(x)


def draw_seed(generator: torch.Generator | None, device: torch.device) -> Tensor:
    """Draw a seed for the kernels: 63 random bits of the device's generator.

    >>> draw_seed(torch.Generator().manual_seed(0), torch.device("cpu")).dtype
    torch.int64
    """
    if generator is not None and generator.device.type != device.type:
        raise ValueError(f"generator must be on the device of the logits, {device}, got one on {generator.device}")
    return torch.randint(_SEEDS, _SCALAR, generator=generator, device=device)


def _triton() -> Any:
    """Return the module of Triton's kernels. It imports Triton, so it is for a device that has them."""
    from taugrad.ops.triton import launch

    return launch


@constant_for_compilers
def _triton_devices() -> tuple[str, ...]:
    return _devices_of_triton()


@functools.cache
def _devices_of_triton() -> tuple[str, ...]:
    """Return the types of devices for which Triton compiles kernels here. The first call decides, and logs it."""
    choice = backend_chosen()
    if choice in ("native", "torch") or not (torch.accelerator.is_available() or choice == "triton"):
        return ()
    log = logging.getLogger("taugrad")
    try:
        devices = _triton().devices()
    except Exception as error:  # Triton, a C compiler and the device's assembler may fail in any way
        reason = reason_of(error)
        if choice == "triton":
            raise ConfigError(f"TAUGRAD_BACKEND is triton, but Triton compiles no kernel here: {reason}") from error
        log.info("discrete samples on %s by torch: %s", torch.accelerator.current_accelerator(), reason)
        return ()
    log.info("discrete samples on %s by Triton's kernels", " and ".join(devices))
    return devices


def _may_have_triton(x: Tensor) -> bool:
    """Return whether Triton's kernels are for the device of `x`; a CPU with kernels of its own does not ask."""
    if not isinstance(x, Tensor):  # but a proxy of `torch.fx`, whose device nobody may ask for
        return False
    return not (x.device.type == "cpu" and native.available()) and x.device.type in _triton_devices()


def _native_for(*tensors: Tensor) -> bool:
    """Return whether the native kernels take these tensors now, which are of one dtype."""
    return not watched() and all(map(native.holds, tensors))


def _triton_for(x: Tensor) -> bool:
    """Return whether Triton's kernels take a tensor now, of any strides and dtype that they hold."""
    return not watched() and _may_have_triton(x) and _triton().holds(x)


def _kernels_for(*tensors: Tensor) -> ModuleType | None:
    """Return the kernels that take these tensors now, which are of one dtype."""
    return None if watched() else _kernels_of(*tensors)


def _kernels_of(*tensors: Tensor) -> ModuleType | None:
    """Return the kernels that take these tensors when nothing is `watched`."""
    if all(map(native.holds, tensors)):
        return native
    if _may_have_triton(tensors[0]) and all(map(_triton().holds, tensors)):
        return _triton()
    return None


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
    return kernels.noise(g, draw_seed(generator, g.device)) if kernels else None


def seeded_noise(like: Tensor, seed: Tensor) -> Tensor | None:
    """Return the Gumbel(0,1) noise of a seed in the shape of `like`, of a dtype to compute in."""
    if watched():
        return None
    g = torch.empty_like(like, memory_format=torch.contiguous_format)
    kernels = _kernels_of(g)
    return kernels.noise(g, seed) if kernels else None


def draw_seeds(generator: torch.Generator | None, device: torch.device, count: int) -> Tensor:
    """Draw seeds as `draw_seed` does, int64 (count,)."""
    return torch.randint(_SEEDS, (count,), generator=generator, device=device)


def argmax(x: Tensor, generator: torch.Generator | None) -> Tensor | None:
    """Draw classes from logits (..., K): int64 (...)."""
    if _triton_for(x):
        return _triton().argmax(x, draw_seed(generator, x.device))
    if watched() or not x.is_cpu:
        return None
    x = x.to(compute_dtype(x.dtype)).contiguous()
    if not native.holds(x):
        return None
    index, failures = native.argmax(x, draw_seed(generator, x.device))
    _raise_failures(failures, x)
    return index


def one_hot(x: Tensor, dim: int, generator: torch.Generator | None) -> Tensor | None:
    """Draw a one-hot sample of logits; on a CPU for the last `dim` alone."""
    if _triton_for(x):
        return _triton().one_hot(x, draw_seed(generator, x.device), dim)
    if not (_is_last(dim, x) and _native_for(x)):
        return None
    z, failures = native.one_hot(x.contiguous(), draw_seed(generator, x.device))
    _raise_failures(failures, x)
    return z


def seeded_one_hot(x: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor] | None:
    """Draw a one-hot sample of logits (..., K), and return it with its seed, which `mean_jacobian` asks for."""
    if not _native_for(x):
        return None
    x, seed = x.contiguous(), draw_seed(generator, x.device)
    z, failures = native.one_hot(x, seed)
    _raise_failures(failures, x)
    return z, seed


def sample(
    x: Tensor,
    tau: float | Tensor,
    dim: int,
    relaxation: Relaxation,
    gap: float,
    hard: bool,
    generator: torch.Generator | None,
) -> tuple[Tensor, Tensor] | None:
    """Draw `z` (empty unless `hard`) and `y`, without their gradient."""
    if not (is_scalar(tau) and _native_for(x)):
        return None
    rows = _rows(x, dim)
    z, y, failures = native.sample(rows, draw_seed(generator, x.device), relaxation, float(tau), gap, hard=hard)
    _raise_failures(failures, rows, tau)
    if _is_last(dim, x):
        return z, y
    y = y.movedim(-1, dim)
    return (_own_memory(z, dim), y) if hard else (z, y.contiguous())


def _own_memory(z: Tensor, dim: int) -> Tensor:
    """Move the classes of a sample from the end to `dim`, never as a view: torch lets no one change those in place."""
    return z if _is_last(dim, z) else z.movedim(-1, dim).clone(memory_format=torch.contiguous_format)


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


def takes(x: Tensor) -> bool:
    """Return whether kernels take a tensor now, once it is of a dtype to compute in."""
    wide = compute_dtype(x.dtype)
    if x.dtype is not wide:
        x = (x.narrow(0, 0, 0) if x.ndim > 1 else x).to(wide)  # no copy of it only to ask
    return _kernels_for(x) is not None


def argmax_of_seed(x: Tensor, seed: Tensor) -> tuple[Tensor, Tensor]:
    """Return the classes drawn from logits (rows, K) with a seed, int64 (rows,), and zeros, NaN for a row without one.

    Raises:
        LogitsError: there is such a row, on a CPU.
    """
    x = x.detach().to(compute_dtype(x.dtype)).contiguous()
    kernels = _taking(x)
    if kernels is not native:
        _, kept, index = kernels.sample(x, seed, Relaxation.NONE, 1.0, hard=None, keeps=True)
        return index, kept[1] - kept[1]
    index, failures = native.argmax(x, seed)
    _raise_failures(failures, x)
    return index, x.new_zeros(len(x))


def gradient_of_seed(
    dz: Tensor, x: Tensor, seed: Tensor, relaxation: Relaxation, tau: float | Tensor, gap: float
) -> Tensor:
    """Return the gradient to logits (..., K) of the sample drawn with a seed, for the gradient `dz` to it."""
    x = x.detach().to(dz.dtype).contiguous()
    kernels = _taking(x)
    if kernels is not native:
        _, kept, index = kernels.sample(x, seed, relaxation, tau, gap=gap, hard=None, keeps=True)
        return kernels.sample_backward(dz, x, kept, index, seed, relaxation, tau, gap=gap)[0]
    _, y, _ = native.sample(x, seed, relaxation, float(tau), gap, hard=False)
    backward = native.reinmax_backward if relaxation is Relaxation.MARKED else native.softmax_backward
    return backward(dz.contiguous(), y, float(tau))


def relaxation_of_seed(
    x: Tensor, seed: Tensor, relaxation: Relaxation, tau: float | Tensor, gap: float, dtype: torch.dtype
) -> Tensor:
    """Return `y` of the sample of logits (..., K) drawn with a seed, the drawn class marked for Relaxation.MARKED."""
    x = x.detach().to(dtype).contiguous()
    kernels = _taking(x)
    if kernels is native:
        return native.sample(x, seed, relaxation, float(tau), gap, hard=False)[1]
    if relaxation is not Relaxation.MARKED:
        return kernels.sample(x, seed, relaxation, tau, gap=gap, hard=False)[0]
    y, index = kernels.softmax(x, tau), kernels.argmax(x, seed).unsqueeze(-1)
    return y.scatter(-1, index, -y.gather(-1, index))


def _taking(x: Tensor) -> Any:
    """Return the kernels for a tensor that they are known to take."""
    return native if native.holds(x) else _triton()


# Softmax and the two backwards of a sample


def softmax(x: Tensor, tau: float | Tensor, dim: int) -> Tensor | None:
    """Tempered softmax of `x`; on a CPU for the last `dim` and one tau alone."""
    if _needs_gradient(x, tau):
        return None
    if _triton_for(x):
        return _triton().softmax(x, tau, dim)
    usual = _is_last(dim, x) and is_scalar(tau) and _native_for(x)
    return native.softmax(x.contiguous(), tau) if usual else None


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
    return _unrows(kernels.softmax_backward(_rows(grad, dim), _rows(y, dim), tau), dim)


def reinmax_backward(grad: Tensor, marked: Tensor, tau: float | Tensor, dim: int) -> Tensor | None:
    """ReinMax's gradient from the `y` of Relaxation.MARKED."""
    if torch.is_grad_enabled() or not (is_scalar(tau) and _native_for(grad, marked)):
        return None
    return _unrows(native.reinmax_backward(_rows(grad, dim), _rows(marked, dim), float(tau)), dim)


# Functions with a gradient of their own


def gumbel_rao(
    logits: Tensor, tau: float | Tensor, dim: int, draws: int, generator: torch.Generator | None
) -> Tensor | None:
    """Draw Gumbel-Rao's `z` with its gradient, which draws the noise again from a seed."""
    if isinstance(tau, Tensor) or not _native_for(logits):
        return None
    return _GumbelRao.apply(logits, tau, dim, draws, draw_seed(generator, logits.device))


class _GumbelRao(torch.autograd.Function):
    """Sample that saves its logits and a seed."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, tau: float, dim: int, draws: int, seed: Tensor) -> Tensor:
        x = logits.movedim(dim, -1).contiguous()
        z, failures = native.one_hot(x, seed)
        _raise_failures(failures, x)
        ctx.tau, ctx.dim, ctx.draws = tau, dim, draws
        ctx.save_for_backward(logits, seed)
        return _own_memory(z, dim)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        logits, seed = ctx.saved_tensors
        x = logits.detach().movedim(ctx.dim, -1)
        dx = _MeanJacobian.apply(grad.movedim(ctx.dim, -1), x, ctx.tau, ctx.draws, seed)
        return dx.movedim(-1, ctx.dim).contiguous(), None, None, None, None


def mean_jacobian(grad: Tensor, x: Tensor, tau: float, draws: int, seed: Tensor) -> Tensor:
    """Return Gumbel-Rao's `J g` at logits `x`, (..., K), for the sample that `seeded_one_hot` drew with a seed.

    It may have been drawn from other logits, if those of `x` are raised for its class alone: the same noise then has
    the same argmax.
    """
    return _MeanJacobian.apply(grad, x, tau, draws, seed)


class _MeanJacobian(torch.autograd.Function):
    """Product `J g` of Gumbel-Rao. J is symmetric, so its own backward; its derivative to x is not estimated."""

    @staticmethod
    def forward(ctx: Any, grad: Tensor, x: Tensor, tau: float, draws: int, seed: Tensor) -> Tensor:
        ctx.tau, ctx.draws = tau, draws
        ctx.save_for_backward(x, seed)
        if _native_for(grad):
            return native.gumbel_rao(grad.contiguous(), x.contiguous(), seed, draws, tau)
        # A batch of gradients has no memory that a kernel could read, so J is computed column by column.
        units = torch.eye(x.shape[-1], dtype=x.dtype).view(-1, *[1] * (x.ndim - 1), x.shape[-1]).expand(-1, *x.shape)
        columns = (native.gumbel_rao(unit.contiguous(), x.contiguous(), seed, draws, tau) for unit in units)
        return torch.stack([column * grad.select(-1, k).unsqueeze(-1) for k, column in enumerate(columns)]).sum(0)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, seed = ctx.saved_tensors
        return _MeanJacobian.apply(grad, x, ctx.tau, ctx.draws, seed), None, None, None, None


def entropy(logits: Tensor, dim: int) -> Tensor | None:
    """Entropy of logits (..., K) with its gradient, for the last `dim` alone."""
    return _Entropy.apply(logits) if _is_last(dim, logits) and _native_for(logits) else None


class _Entropy(torch.autograd.Function):
    """Entropy H of x. It saves both: dH/dx_k = -p_k (log p_k + H)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        H = native.entropy(x.contiguous())
        ctx.save_for_backward(x, H)
        return H

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        x, H = ctx.saved_tensors
        if not torch.is_grad_enabled() and _native_for(grad, x):
            return native.entropy_backward(grad.contiguous(), x.contiguous(), H)
        log_p = torch.log_softmax(x, -1)
        p = log_p.exp()
        return -grad.unsqueeze(-1) * p * (log_p.masked_fill(log_p == -torch.inf, 0.0) + H.unsqueeze(-1))


def log_prob(logits: Tensor, z: Tensor, dim: int) -> Tensor | None:
    """Log-probability of `z` of the logits' shape or with more leading dimensions, for the last `dim` alone."""
    usual = not _needs_gradient(logits, z) and _is_last(dim, logits) and z.dtype is logits.dtype
    if not (usual and _native_for(logits, z) and _extends(z, logits)):
        return None
    return native.log_prob(logits.contiguous(), z.contiguous())


def bernoulli_log_prob(logits: Tensor, x: Tensor) -> Tensor | None:
    """Log-probability of independent Bernoullis, with its gradient to the logits, which may have more dimensions."""
    usual = not _needs_gradient(x) and x.dtype is logits.dtype
    return _BernoulliLogProb.apply(logits, x) if usual and _native_for(logits, x) and _extends(logits, x) else None


def gates(x: Tensor, c: Tensor, a: Tensor, b: Tensor) -> Tensor | None:
    """Outputs (gates, batch) of two-input gates, with their gradient; `a` and `b` are known to be rows of `x`."""
    usual = x.dtype is c.dtype and _native_for(x, c) and a.is_cpu and b.is_cpu
    return _Gates.apply(x, c, a.long().contiguous(), b.long().contiguous()) if usual else None


class _Gates(torch.autograd.Function):
    """Gates that save their inputs and coefficients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, c: Tensor, a: Tensor, b: Tensor) -> Tensor:
        x, c = x.contiguous(), c.contiguous()
        ctx.save_for_backward(x, c, a, b)
        return native.gates(x, c, a, b)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, c, a, b = ctx.saved_tensors
        needs_x = ctx.needs_input_grad[0]
        if not torch.is_grad_enabled() and _native_for(dy, x):
            return *native.gates_backward(x, c, a, b, dy.contiguous(), needs_x), None, None
        A, B = x[a], x[b]
        dc = torch.stack([part.sum(1) for part in (dy, dy * A, dy * B, dy * A * B)], 1)
        if not needs_x:
            return None, dc, None, None
        _, c1, c2, c3 = c.unsqueeze(-1).unbind(1)
        zeros = torch.zeros_like(x)
        return zeros.index_add(0, a, dy * (c1 + c3 * B)).index_add(0, b, dy * (c2 + c3 * A)), dc, None, None


def _extends(many: Tensor, few: Tensor) -> bool:
    """Return whether `many` has the shape of `few`, perhaps after more leading dimensions."""
    return few.ndim > 0 and many.shape[-few.ndim :] == few.shape


class _BernoulliLogProb(torch.autograd.Function):
    """Log-probability of x by the logits `l`. It saves both: d/dl = x - sigma(l)."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, x: Tensor) -> Tensor:
        ctx.save_for_backward(logits, x)
        return native.bernoulli(logits.contiguous(), x.contiguous())

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        logits, x = ctx.saved_tensors
        if not torch.is_grad_enabled() and _native_for(grad, logits):
            return native.bernoulli_backward(grad.contiguous(), logits.contiguous(), x.contiguous()), None
        return grad.unsqueeze(-1) * (x - logits.sigmoid()), None


# Samples that are drawn again for their gradient, for operators on a device with Triton


def draw(
    x: Tensor, seed: Tensor, relaxation: Relaxation, tau: Tensor, dim: int, gap: float, *, hard: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return `z`, or `y` unless `hard`, the numbers that are kept, and the classes where the gradient needs them."""
    return _triton().sample(x, seed, relaxation, tau, dim, gap, hard=hard, keeps=True)


def draw_backward(
    grad: Tensor,
    x: Tensor,
    kept: Tensor,
    index: Tensor,
    seed: Tensor,
    relaxation: Relaxation,
    tau: Tensor,
    dim: int,
    gap: float,
    *,
    to_tau: bool,
) -> tuple[Tensor, Tensor | None]:
    """Return the gradient to `x`, and for each row that to tau if asked for."""
    return _triton().sample_backward(grad, x, kept, index, seed, relaxation, tau, dim, gap, to_tau=to_tau)


def redraw_gumbel_rao(
    grad: Tensor, x: Tensor, kept: Tensor, index: Tensor, seed: Tensor, draws: int, tau: Tensor, dim: int
) -> Tensor:
    """Return Gumbel-Rao's gradient."""
    return _triton().gumbel_rao(grad, x, kept, index, seed, draws, tau, dim)


def noise_of_seed(like: Tensor, seed: Tensor) -> Tensor:
    """Return the noise that `draw` adds to logits (..., K), of the shape of `like` in float32 or float64."""
    g = torch.empty_like(like, dtype=compute_dtype(like.dtype), memory_format=torch.contiguous_format)
    return _triton().noise(g, seed)
