r"""Hard samples with the gradient of a relaxation: the common part of the pathwise estimators.

    z  = onehot(argmax(x + g)),   dz := dy                      g Gumbel(0,1) noise
    y  = softmax((x + g) / tau)                                 PERTURBED     (1611.01144)
         softmax(x / tau)                                       PLAIN         (1308.3432)
         softmax((x + m) / tau)                                 GAPPED        (2206.07235)
    dz := (2 J(pi_D) - J(pi) / 2) dx                            MARKED        ReinMax (2304.08612)
          pi = softmax(x),  pi_D = (softmax(x / tau) + z) / 2,  J(p) = diag(p) - p p^T

The backward needs one saved tensor of the size and dtype of the logits: `y`. For ReinMax it is softmax(x / tau) with
the sign bit of the drawn class set; pi is y^tau, normalized.

The contract is that of `taugrad.ops.gumbel`. There are three ways, of one meaning: a fused function (`_fused`), one
pass over the logits for noise, argmax and softmax; the same as an operator, in compiled programs; torch code, for all
other tensors and under the transforms of `torch.func`. Kernels and torch draw different noise from the same generator,
of the same distribution.
"""

from typing import Any

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_variadic

from taugrad.ops import _fused
from taugrad.ops._checks import check_logits, check_rows, check_tau, compute_dtype, is_scalar, log_where_positive
from taugrad.ops._redrawn import as_tensor, each_example, redrawn_sample
from taugrad.ops._torch import compiled_transform, followed
from taugrad.ops.noise import perturbed
from taugrad.ops.onehot import Relaxation, one_hot, straight_through, tangent
from taugrad.ops.softmax import _tempered_softmax, softmax_backward


def sample(
    logits: Tensor,
    tau: float | Tensor,
    dim: int = -1,
    relaxation: Relaxation = Relaxation.PERTURBED,
    *,
    gap: float = 0.0,
    hard: bool = True,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draw the hard sample `z` with the gradient of its relaxation, or the relaxation `y` itself unless `hard`.

    Args:
        logits: (..., K, ...), floating point; -inf masks a class.
        tau: temperature, a positive number or a tensor that broadcasts to `logits`, of size 1 along `dim`.
        dim: the dimension of the K classes.
        relaxation: relaxation whose gradient a hard sample takes.
        gap: lead of the drawn class, for Relaxation.GAPPED.
        hard: return `z` in place of `y`.
        generator: a source of randomness; default torch's own.

    Returns:
        The shape and dtype of `logits`.

    Raises:
        ValueError: `tau` is not positive or does not fit `logits`, or a row has no finite logit, or NaN or +inf.
        TypeError, IndexError: `logits` is not floating point, `dim` is out of range.

    >>> sample(torch.tensor([[0.0, -torch.inf], [-torch.inf, 0.0]]), tau=0.5, relaxation=Relaxation.PLAIN)
    tensor([[1., 0.],
            [0., 1.]])
    """
    if dim == -1 and generator is None:  # the usual case first, before any check
        out = _fused.bound_sample(logits, tau, relaxation, gap, hard)
        if out is not None:
            return out
    if has_torch_function_variadic(logits, tau):
        return handle_torch_function(
            sample, (logits, tau), logits, tau, dim, relaxation, gap=gap, hard=hard, generator=generator
        )
    check_logits(logits, dim)
    tau = check_tau(tau, logits, dim)
    if _fused.redraws(logits):
        return redrawn_sample(logits, tau, dim, relaxation, gap, hard, generator)
    if not followed():
        z, y = _Sample.apply(logits, tau, dim, relaxation, gap, hard, generator)
    elif _takes_operator(logits, tau, generator):
        seed, tau = _fused.draw_seed(None, logits.device), as_tensor(tau, logits.device)
        outputs = torch.ops.taugrad.sample(logits.movedim(dim, -1), seed, tau, int(relaxation), gap)
        z, y = (out.movedim(-1, dim).contiguous() for out in outputs)
    else:
        z, y = _traced_sample(logits, tau, dim, relaxation, gap, hard, generator)
    return z if hard else y


def gumbel_rao(
    logits: Tensor, tau: float | Tensor, dim: int, draws: int, generator: torch.Generator | None
) -> Tensor | None:
    """Draw `z` with Gumbel-Rao's gradient over `draws` draws of the noise, or return None where torch must do it."""
    learns = isinstance(tau, Tensor) and tau.requires_grad and torch.is_grad_enabled()
    if not learns and _fused.redraws(logits):
        return redrawn_sample(logits, tau, dim, Relaxation.NONE, 0.0, True, generator, draws)
    z = _fused.gumbel_rao(logits.to(compute_dtype(logits.dtype)), tau, dim, draws, generator)
    return None if z is None else z.to(logits.dtype)


def _takes_operator(logits: Tensor, tau: float | Tensor, generator: torch.Generator | None) -> bool:
    """Return whether a compiled program samples by the operator, which transforms and other machines cannot follow."""
    return (
        torch.compiler.is_compiling()
        and not torch.compiler.is_exporting()
        and not compiled_transform()
        and generator is None
        and is_scalar(tau)
        and _fused.has_operator(logits)
    )


def _drawn(
    x: Tensor,
    tau: float | Tensor,
    dim: int,
    relaxation: Relaxation,
    gap: float,
    hard: bool,
    generator: torch.Generator | None,
) -> tuple[Tensor, Tensor]:
    """Draw `z` without gradient (that of `y` unless `hard`) and `y` with its gradient, by torch."""
    if dim in (-1, x.ndim - 1):
        s = perturbed(x, generator=generator)
    else:  # the noise lies where a kernel places it
        s = perturbed(x.movedim(dim, -1), generator=generator).movedim(x.ndim - 1, dim)
    x = x.to(s.dtype)
    if relaxation is Relaxation.PERTURBED and not hard:
        y = z = _tempered_softmax(s, tau, dim)
    else:
        z = one_hot(s.argmax(dim), s, dim)
        if relaxation is Relaxation.GAPPED:
            behind = (x - x.amax(dim, keepdim=True)).detach()
            s = x + torch.where(z > 0, -behind, -(behind + gap).relu())
        y = _tempered_softmax(s if relaxation in (Relaxation.PERTURBED, Relaxation.GAPPED) else x, tau, dim)
    check_rows(y, dim, tau)
    return z, y


def _traced_sample(
    x: Tensor,
    tau: float | Tensor,
    dim: int,
    relaxation: Relaxation,
    gap: float,
    hard: bool,
    generator: torch.Generator | None,
) -> tuple[Tensor, Tensor]:
    """Draw `z` and `y`, both with their gradient, by operators that a transform or a compiler can follow."""
    z, y = _drawn(x, tau, dim, relaxation, gap, hard, generator)
    if relaxation is not Relaxation.MARKED:
        y = y.to(x.dtype)
        return straight_through(z.to(x.dtype), y), y
    t = tangent(x)
    pi = _tempered_softmax(x.detach().to(t.dtype), 1.0, dim)
    dz = 2 * softmax_backward(t, (y.detach() + z) / 2, 1.0, dim) - softmax_backward(t, pi, 1.0, dim) / 2
    return straight_through(z, dz).to(x.dtype), y


def reinmax_backward(grad: Tensor, marked: Tensor, tau: float | Tensor, dim: int = -1) -> Tensor:
    """Return ReinMax's gradient from softmax(x / tau) with the sign bit of the drawn class set.

    >>> marked = torch.tensor([-0.25, 0.75])
    >>> reinmax_backward(torch.tensor([1.0, 0.0]), marked, 1.0)
    tensor([ 0.3750, -0.3750])
    """
    dx = _fused.reinmax_backward(grad, marked, tau, dim)
    if dx is not None:
        return dx
    q, z = marked.abs(), marked.signbit()
    pi = (q / q.amax(dim, keepdim=True)) ** tau
    pi = pi / pi.sum(dim, keepdim=True)
    return 2 * softmax_backward(grad, (q + z) / 2, 1.0, dim) - softmax_backward(grad, pi, 1.0, dim) / 2


class _Sample(torch.autograd.Function):
    """Sample of plain tensors: `sample` checks that no transform or compiler sees this Function."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        tau: float | Tensor,
        dim: int,
        relaxation: Relaxation,
        gap: float,
        hard: bool,
        generator: torch.Generator | None,
    ) -> tuple[Tensor | None, Tensor]:
        dtype, wide = logits.dtype, compute_dtype(logits.dtype)
        x = logits.to(wide)
        fused = _fused.sample(x, tau, dim, relaxation, gap, hard, generator)
        if fused is not None:
            z, y = fused
        else:
            z, y = _drawn(x, tau, dim, relaxation, gap, hard, generator)
            if relaxation is Relaxation.MARKED:
                y = torch.where(z > 0, -y, y)
        if dtype is not wide:
            z, y = z.to(dtype) if hard else z, y.to(dtype)
        ctx.set_materialize_grads(False)
        ctx.relaxation, ctx.tau, ctx.dim = relaxation, tau, dim
        if isinstance(tau, Tensor):
            ctx.tau = None
            ctx.save_for_backward(y, tau)
        else:
            ctx.save_for_backward(y)
        return z if hard else None, y

    @staticmethod
    def backward(ctx: Any, z_grad: Tensor | None, y_grad: Tensor | None) -> tuple[Tensor | None, ...]:
        y, tau = ctx.saved_tensors if ctx.tau is None else (*ctx.saved_tensors, ctx.tau)
        dx, dtau = sample_backward(z_grad, y_grad, y, tau, ctx.dim, ctx.relaxation, ctx.needs_input_grad[1])
        return dx, dtau, None, None, None, None, None


def sample_backward(
    z_grad: Tensor | None,
    y_grad: Tensor | None,
    y: Tensor,
    tau: float | Tensor,
    dim: int,
    relaxation: int,
    tau_has_grad: bool,
) -> tuple[Tensor | None, Tensor | None]:
    grads = [grad for grad in (z_grad, y_grad) if grad is not None]
    if not grads:
        return None, None
    grad = grads[0] if len(grads) == 1 else grads[0] + grads[1]
    dtype, wide = y.dtype, compute_dtype(y.dtype)
    if dtype is not wide:
        grad, y = grad.to(wide), y.to(wide)
    if relaxation == Relaxation.MARKED:
        return reinmax_backward(grad, y, tau, dim).to(dtype), None
    dx = softmax_backward(grad, y, tau, dim)
    dtau = None
    if isinstance(tau, Tensor) and tau_has_grad:  # (x + g) / tau = log y + const, and dx sums to zero over a row
        dtau = -(dx * log_where_positive(y)).sum_to_size(tau.shape).to(tau.dtype)
    return dx.to(dtype), dtau


# The same as an operator, for compiled programs. Nothing may depend on a value there, so a row without a sample is NaN.
torch.library.define(
    "taugrad::sample", "(Tensor x, Tensor seed, Tensor tau, int relaxation, float gap) -> (Tensor z, Tensor y)"
)


@torch.library.impl("taugrad::sample", "CPU")  # pyright: ignore[reportOptionalCall]
def _sample_on_cpu(x: Tensor, seed: Tensor, tau: Tensor, relaxation: int, gap: float) -> tuple[Tensor, Tensor]:
    wide = x.to(compute_dtype(x.dtype)).contiguous()
    z, y = _fused.sample_of_seed(wide, seed, tau.item(), Relaxation(relaxation), gap)
    return z.to(x.dtype), y.to(x.dtype)


@torch.library.register_fake("taugrad::sample")
def _sample_shapes(x: Tensor, seed: Tensor, tau: Tensor, relaxation: int, gap: float) -> tuple[Tensor, Tensor]:
    like = torch.empty_like(x, memory_format=torch.contiguous_format)
    return like, torch.empty_like(like)


def _sample_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    _, _, tau, ctx.relaxation, _ = inputs
    ctx.save_for_backward(output[1], tau)


def _sample_op_backward(ctx: Any, z_grad: Tensor | None, y_grad: Tensor | None) -> tuple[Tensor | None, ...]:
    y, tau = ctx.saved_tensors
    dx, dtau = sample_backward(z_grad, y_grad, y, tau, -1, ctx.relaxation, ctx.needs_input_grad[2])
    return dx, None, dtau, None, None


torch.library.register_autograd("taugrad::sample", _sample_op_backward, setup_context=_sample_setup)


@torch.library.register_vmap("taugrad::sample")  # pyright: ignore[reportOptionalCall]
def _sample_of_batch(info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> tuple[Any, Any]:
    return each_example(torch.ops.taugrad.sample, info, in_dims, inputs)
