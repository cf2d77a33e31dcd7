r"""Rows of a table by drawn classes: codebooks and vocabularies, without a one-hot of their size.

    i = argmax(logits + g),   e = weight_i                                   as `gumbel_argmax`, then `weight[i]`
    de := dz @ weight + z @ dweight                                          as of z @ weight, z straight-through

The gradient to the logits is that of `sample(logits) @ weight`: with dL/dz = dL/de weight^T the Jacobian of the
relaxation is applied to it. Where there are kernels neither z nor y nor dL/dz is ever there whole: the rows go in
shares of 2^22 numbers, whose noise is drawn again from a seed. What stays is one index a row and a seed.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.overrides import handle_torch_function, has_torch_function_variadic

from taugrad.ops import _fused
from taugrad.ops._checks import check_logits, check_tau, compute_dtype, is_scalar, raise_bad_rows
from taugrad.ops._sampling import sample, sample_backward
from taugrad.ops._torch import readable, tracing
from taugrad.ops.onehot import Relaxation

_SHARE = 2**22  # numbers


def embedding(
    logits: Tensor,
    weight: Tensor,
    tau: float | Tensor = 1.0,
    dim: int = -1,
    relaxation: Relaxation = Relaxation.PERTURBED,
    *,
    gap: float = 0.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Draw a class of each row, $i = \arg\max_k (\mathrm{logits}_k + g_k)$, and return its row of a table, $e = w_i$.

    Args:
        logits: (..., K, ...), floating point; -inf masks a class.
        weight: the table, (K, D), floating point, on the same device.
        tau: temperature of the relaxation, a positive number or a tensor that broadcasts to `logits`, of size 1 along
            `dim`.
        dim: the dimension of the K classes.
        relaxation: relaxation whose gradient the logits take: that of straight-through Gumbel-Softmax, PLAIN for
            straight-through, GAPPED or MARKED (ReinMax).
        gap: lead of the drawn class, for Relaxation.GAPPED.
        generator: a source of randomness; default torch's own.

    Returns:
        (..., D, ...) in the dtype of `weight`. The gradient to `weight` is that of a table, zero in rows not drawn.

    Raises:
        ValueError: `weight` is not (K, D), `tau` is not positive or does not fit, or a row has no finite logit, or NaN
            or +inf.
        TypeError, IndexError: `logits` or `weight` is not floating point, `dim` is out of range.

    Bias: that of the hard sample with the same relaxation, for a function of z @ weight. A gradient of the gradient is
    not there.
    Source: 1611.01144; as a quantizer 1910.05453.

    >>> weight = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    >>> embedding(torch.tensor([[0.0, -torch.inf], [-torch.inf, 0.0]]), weight, tau=0.5)
    tensor([[1., 2.],
            [3., 4.]])
    """
    return embedding_with_index(logits, weight, tau, dim, relaxation, gap=gap, generator=generator)[0]


def embedding_with_index(
    logits: Tensor,
    weight: Tensor,
    tau: float | Tensor = 1.0,
    dim: int = -1,
    relaxation: Relaxation = Relaxation.PERTURBED,
    *,
    gap: float = 0.0,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Return what `embedding` does, and the drawn classes: the shape of `logits` without `dim`, int64.

    >>> weight = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    >>> embedding_with_index(torch.tensor([[0.0, -torch.inf], [-torch.inf, 0.0]]), weight)[1]
    tensor([0, 1])
    """
    if has_torch_function_variadic(logits, weight, tau):
        return handle_torch_function(
            embedding_with_index,
            (logits, weight, tau),
            logits,
            weight,
            tau,
            dim,
            relaxation,
            gap=gap,
            generator=generator,
        )
    check_logits(logits, dim)
    if not weight.is_floating_point():
        raise TypeError(f"weight must be a floating-point tensor, got {weight.dtype}")
    if not tracing() and (weight.ndim != 2 or weight.shape[0] != logits.shape[dim]):
        shape = f"({logits.shape[dim]}, D), a row for each class"
        raise ValueError(f"weight must have shape {shape}, got {tuple(weight.shape)}")
    tau = check_tau(tau, logits, dim)
    learns = isinstance(tau, Tensor) and tau.requires_grad and torch.is_grad_enabled()
    if learns or not is_scalar(tau) or not _fused.takes(logits.to(compute_dtype(logits.dtype))):
        z = sample(logits, tau, dim, relaxation, gap=gap, generator=generator).movedim(dim, -1)
        e = (z.to(weight.dtype) @ weight).to(weight.dtype)  # autocast would have it in half precision
        index = z.argmax(-1)
    else:
        e, index = _Embedding.apply(logits, weight, tau, dim, relaxation, gap, generator)
        if isinstance(tau, Tensor):  # that does not show in the classes
            if readable(tau) and not tau > 0:
                raise_bad_rows(1, 1, tau)
            e = e + (0 * tau).to(e.dtype)
    return e.movedim(-1, dim).contiguous(), index


class _Embedding(torch.autograd.Function):
    """Rows of a table (..., D). It saves its logits, the table, an index a row and a seed."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        weight: Tensor,
        tau: float | Tensor,
        dim: int,
        relaxation: Relaxation,
        gap: float,
        generator: torch.Generator | None,
    ) -> tuple[Tensor, Tensor]:
        moved = logits.movedim(dim, -1)
        seed = _fused.draw_seed(generator, logits.device)
        drawn = [_fused.argmax_of_seed(x, seed + i) for i, x in enumerate(_shares(moved, moved.shape[-1]))]
        index, zeros = (torch.cat(parts) for parts in zip(*drawn, strict=True))
        ctx.tau, ctx.dim, ctx.relaxation, ctx.gap = tau, dim, relaxation, gap
        ctx.save_for_backward(logits, weight, index, seed)
        e = weight[index] + zeros.unsqueeze(-1).to(weight.dtype)
        index = index.view(moved.shape[:-1])
        ctx.mark_non_differentiable(index)
        return e.view(*moved.shape[:-1], weight.shape[1]), index

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: None) -> tuple[Tensor | None, ...]:
        logits, weight, index, seed = ctx.saved_tensors
        moved = logits.movedim(ctx.dim, -1)
        dx = dw = None
        if ctx.needs_input_grad[0]:
            how = ctx.relaxation, ctx.tau, ctx.gap
            shares = [_shares(t, moved.shape[-1]) for t in (moved, grad)]
            out = torch.empty(moved.shape, dtype=moved.dtype, device=moved.device)
            parts = []
            for i, (x, g, part) in enumerate(zip(*shares, _shares(out, moved.shape[-1]), strict=True)):
                dz = (g @ weight.T).to(compute_dtype(x.dtype))
                if _fused.takes(dz):
                    part.copy_(_fused.gradient_of_seed(dz, x, seed + i, *how))
                else:  # a batch of gradients has no memory that a kernel could read
                    y = _fused.relaxation_of_seed(x, seed + i, *how, dz.dtype)
                    parts.append(sample_backward(dz, None, y, ctx.tau, -1, ctx.relaxation, False)[0])
            dx = torch.cat(parts).to(moved.dtype).view(moved.shape) if parts else out
            dx = dx.movedim(-1, ctx.dim).contiguous()
        if ctx.needs_input_grad[1]:
            dw = torch.zeros_like(weight).index_add(0, index.flatten(), _rows(grad))
        return dx, dw, None, None, None, None, None


def _shares(x: Tensor, K: int) -> tuple[Tensor, ...]:
    """Split (..., D) into shares of rows, of about 2^22 logits."""
    return _rows(x).split(max(1, _SHARE // K))


def _rows(x: Tensor) -> Tensor:
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
