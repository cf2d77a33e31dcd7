r"""Samples that are drawn again for their gradient: operators, for devices with Triton.

The forward keeps a seed and two or three numbers for each row, `kept`, and no y. The backward reads the logits, draws
the noise again and computes

    y = softmax(u / tau),    dx = (dz - <dz, y>) y / tau,    dtau = -<dx, log y>

`u` are the logits that the relaxation is the softmax of; what is kept are its largest and the sum of its exponentials.
Relaxation.NONE has Gumbel-Rao's gradient, by `draws` draws of the noise that fits the drawn class.

Nothing here reads a value: a row without a sample is NaN. `z`, `y` and `dx` are contiguous.
"""

import math
from typing import Any

import torch
from torch import Tensor

from taugrad.ops import _fused
from taugrad.ops._checks import compute_dtype, log_where_positive
from taugrad.ops.onehot import Relaxation, one_hot
from taugrad.ops.softmax import softmax_backward

_DEVICES = ("CUDA", "XPU", "CPU")  # a CPU's by the interpreter


def redrawn_sample(
    logits: Tensor,
    tau: float | Tensor,
    dim: int,
    relaxation: Relaxation,
    gap: float,
    hard: bool,
    generator: torch.Generator | None,
    draws: int = 0,
) -> Tensor:
    """Draw the hard sample with the gradient of its relaxation, or the relaxation itself, of arguments checked."""
    seed = _fused.draw_seed(generator, logits.device)
    # A kernel's number is taken from a CPU's tensor at the launch, which a graph of launches would keep for ever.
    tau = as_tensor(tau, logits.device if torch.compiler.is_compiling() else torch.device("cpu"))
    return torch.ops.taugrad.draw(logits, seed, tau, dim, int(relaxation), gap, hard, draws)[0]


def as_tensor(tau: float | Tensor, device: torch.device) -> Tensor:
    """Return tau as an operator takes it. A product is no constant for a compiler: another tau does not compile anew.

    >>> as_tensor(0.5, torch.device("cpu"))
    tensor(0.5000, dtype=torch.float64)
    """
    return tau if isinstance(tau, Tensor) else torch.ones((), dtype=torch.float64, device=device) * tau


torch.library.define(
    "taugrad::draw",
    "(Tensor x, Tensor seed, Tensor tau, int dim, int relaxation, float gap, bool hard, int draws)"
    " -> (Tensor out, Tensor kept, Tensor index)",
)
torch.library.define("taugrad::noise", "(Tensor like, Tensor seed) -> Tensor")
torch.library.define(
    "taugrad::draw_backward",
    "(Tensor grad, Tensor x, Tensor kept, Tensor index, Tensor seed, Tensor tau, int dim, int relaxation, float gap,"
    " int draws, bool to_tau) -> (Tensor dx, Tensor dtau)",
)


def _draw(
    x: Tensor, seed: Tensor, tau: Tensor, dim: int, relaxation: int, gap: float, hard: bool, draws: int
) -> tuple[Tensor, Tensor, Tensor]:
    out, kept, index = _fused.draw(x, seed, Relaxation(relaxation), tau, dim, gap, hard=hard)
    return out, kept, kept.new_empty(0, dtype=torch.int64) if index is None else index


def _draw_backward(
    grad: Tensor,
    x: Tensor,
    kept: Tensor,
    index: Tensor,
    seed: Tensor,
    tau: Tensor,
    dim: int,
    relaxation: int,
    gap: float,
    draws: int,
    to_tau: bool,
) -> tuple[Tensor, Tensor]:
    if relaxation == Relaxation.NONE:
        return _fused.redraw_gumbel_rao(grad, x, kept, index, seed, draws, tau, dim), kept.new_empty(0)
    of = Relaxation(relaxation)
    dx, dtau = _fused.draw_backward(grad, x, kept, index, seed, of, tau, dim, gap, to_tau=to_tau)
    return dx, kept.new_empty(0) if dtau is None else dtau.unsqueeze(dim if dim < 0 else dim - x.ndim)


for _device in _DEVICES:
    torch.library.impl("taugrad::noise", _device)(_fused.noise_of_seed)  # pyright: ignore[reportOptionalCall]
    torch.library.impl("taugrad::draw", _device)(_draw)  # pyright: ignore[reportOptionalCall]
    torch.library.impl("taugrad::draw_backward", _device)(_draw_backward)  # pyright: ignore[reportOptionalCall]


@torch.library.register_fake("taugrad::noise")
def _noise_shape(like: Tensor, seed: Tensor) -> Tensor:
    return torch.empty_like(like, dtype=compute_dtype(like.dtype), memory_format=torch.contiguous_format)


@torch.library.register_fake("taugrad::draw")
def _draw_shapes(
    x: Tensor, seed: Tensor, tau: Tensor, dim: int, relaxation: int, gap: float, hard: bool, draws: int
) -> tuple[Tensor, Tensor, Tensor]:
    row = x.movedim(dim, -1).shape[:-1]
    numbers = 3 if relaxation == Relaxation.MARKED else 2
    indexed = relaxation not in (Relaxation.PERTURBED, Relaxation.PLAIN)
    return (
        torch.empty_like(x, memory_format=torch.contiguous_format),
        x.new_empty((numbers, math.prod(row)), dtype=compute_dtype(x.dtype)),
        x.new_empty(row if indexed else (0,), dtype=torch.int64),
    )


@torch.library.register_fake("taugrad::draw_backward")
def _draw_backward_shapes(
    grad: Tensor,
    x: Tensor,
    kept: Tensor,
    index: Tensor,
    seed: Tensor,
    tau: Tensor,
    dim: int,
    relaxation: int,
    gap: float,
    draws: int,
    to_tau: bool,
) -> tuple[Tensor, Tensor]:
    row = x.select(dim, 0).unsqueeze(dim if dim < 0 else dim - x.ndim).shape
    known = to_tau and relaxation != Relaxation.NONE
    return torch.empty_like(x, memory_format=torch.contiguous_format), kept.new_empty(row if known else (0,))


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, seed, tau, ctx.dim, ctx.relaxation, ctx.gap, _, ctx.draws = inputs
    _, kept, index = output
    ctx.mark_non_differentiable(kept, index)
    ctx.save_for_backward(x, kept, index, seed, tau)


def _backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    x, kept, index, seed, tau = ctx.saved_tensors
    to_tau = ctx.needs_input_grad[2] and ctx.relaxation not in (Relaxation.NONE, Relaxation.MARKED)
    rest = (ctx.dim, ctx.relaxation, ctx.gap)
    if torch.is_grad_enabled() and ctx.relaxation != Relaxation.NONE:
        dx, dtau = _differentiable_backward(grad, x, index, seed, tau, *rest)
        dtau = dtau if to_tau else None
    else:
        dx, dtau = torch.ops.taugrad.draw_backward(grad, x, kept, index, seed, tau, *rest, ctx.draws, to_tau)
    dtau = dtau.sum_to_size(tau.shape).to(tau.dtype) if to_tau and dtau is not None else None
    return dx, None, dtau, None, None, None, None, None


def _differentiable_backward(
    grad: Tensor, x: Tensor, index: Tensor, seed: Tensor, tau: Tensor, dim: int, relaxation: int, gap: float
) -> tuple[Tensor, Tensor | None]:
    """Compute dx and dtau by torch code, for a gradient of the gradient."""
    v, g = x.movedim(dim, -1).to(compute_dtype(x.dtype)), grad.movedim(dim, -1).to(compute_dtype(x.dtype))
    tau = tau.movedim(dim, -1) if tau.ndim else tau
    if relaxation == Relaxation.PERTURBED:
        v = v + torch.ops.taugrad.noise(v.detach(), seed)
    elif relaxation == Relaxation.GAPPED:
        behind = (v - v.amax(-1, keepdim=True)).detach()
        v = v + torch.where(one_hot(index, v) > 0, -behind, -(behind + gap).relu())
    y = torch.softmax(v / tau, -1)
    if relaxation == Relaxation.MARKED:
        dx = 2 * softmax_backward(g, (y + one_hot(index, v)) / 2) - softmax_backward(g, torch.softmax(v, -1)) / 2
        return dx.movedim(-1, dim).to(x.dtype), None
    dx = softmax_backward(g, y, tau)
    dtau = -(dx * log_where_positive(y)).sum(-1, keepdim=True)
    return dx.movedim(-1, dim).to(x.dtype), dtau.movedim(-1, dim)


torch.library.register_autograd("taugrad::draw", _backward, setup_context=_setup)


def _setup_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, *saved, ctx.dim, ctx.relaxation, ctx.gap, ctx.draws, _ = inputs
    ctx.save_for_backward(*saved)


def _backward_of_backward(ctx: Any, grad: Tensor, _: Any) -> tuple[Tensor | None, ...]:
    """dx = J dz, and J is symmetric. The derivative to x is not estimated."""
    rest = (ctx.dim, ctx.relaxation, ctx.gap, ctx.draws)
    return torch.ops.taugrad.draw_backward(grad, *ctx.saved_tensors, *rest, False)[0], *[None] * 10


torch.library.register_autograd("taugrad::draw_backward", _backward_of_backward, setup_context=_setup_backward)


def each_example(op: Any, info: Any, in_dims: tuple[int | None, ...], inputs: tuple[Any, ...]) -> tuple[Any, Any]:
    """Call an operator for every example of a batch: a function of its seed, it draws as for the example alone."""
    examples = [
        op(*(x if d is None else x.select(d, i) for x, d in zip(inputs, in_dims, strict=True)))
        for i in range(info.batch_size)
    ]
    outputs = tuple(torch.stack(parts) for parts in zip(*examples, strict=True))
    return outputs, (0,) * len(outputs)


@torch.library.register_vmap("taugrad::draw")  # pyright: ignore[reportOptionalCall]
def _draw_batch(info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> tuple[Any, Any]:
    return each_example(torch.ops.taugrad.draw, info, in_dims, inputs)


@torch.library.register_vmap("taugrad::draw_backward")  # pyright: ignore[reportOptionalCall]
def _draw_backward_batch(info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> tuple[Any, Any]:
    return each_example(torch.ops.taugrad.draw_backward, info, in_dims, inputs)
