r"""Rows of a table by drawn classes: codebooks and vocabularies, without a one-hot of their size.

    i = argmax(logits + g),   e = weight_i                                   as `gumbel_argmax`, then `weight[i]`
    de := dz @ weight + z @ dweight                                          as of z @ weight, z straight-through

The gradient to the logits is that of `sample(logits) @ weight`: with dL/dz = dL/de weight^T the Jacobian of the
relaxation is applied to it. Where there are kernels neither z nor y nor dL/dz is ever there whole: the rows go in
shares of 2^22 numbers, whose noise is drawn again from a seed. What stays is one index a row and a seed. A tau that
learns or differs between rows, and a compiled program, have z @ weight itself.
"""

import math
from contextlib import suppress
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
    if not isinstance(weight, Tensor) or not weight.is_floating_point():
        got = weight.dtype if isinstance(weight, Tensor) else type(weight).__name__
        raise TypeError(f"weight must be a floating-point tensor, got {got}")
    if not tracing() and (weight.ndim != 2 or weight.shape[0] != logits.shape[dim]):
        shape = f"({logits.shape[dim]}, D), a row for each class"
        raise ValueError(f"weight must have shape {shape}, got {tuple(weight.shape)}")
    tau = check_tau(tau, logits, dim)
    learns = isinstance(tau, Tensor) and tau.requires_grad and torch.is_grad_enabled()
    if learns or not is_scalar(tau) or not _fused.takes(logits):
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
        rows, shares = _shares(moved, moved)
        drawn = [_fused.argmax_of_seed(rows[share], seed + i) for i, share in enumerate(shares)]
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
            out = torch.empty_like(logits, memory_format=torch.contiguous_format)
            split = (_shares(t, moved) for t in (moved, grad, out.movedim(ctx.dim, -1)))
            (xs, x_shares), (gs, g_shares), (outs, out_shares) = split
            parts = []
            for i, share in enumerate(x_shares):
                x = xs[share]
                dz = (gs[g_shares[i]] @ weight.T).to(compute_dtype(x.dtype))
                if _fused.takes(dz):
                    outs[out_shares[i]] = _fused.gradient_of_seed(dz, x, seed + i, *how).to(x.dtype)
                else:  # a batch of gradients has no memory that a kernel could read
                    y = _fused.relaxation_of_seed(x, seed + i, *how, dz.dtype)
                    parts.append(sample_backward(dz, None, y, ctx.tau, -1, ctx.relaxation, False)[0])
            dx = torch.cat(parts).to(out.dtype).view(moved.shape).movedim(-1, ctx.dim).contiguous() if parts else out
        if ctx.needs_input_grad[1]:
            dw = torch.zeros_like(weight).index_add(0, index.flatten(), grad.reshape(index.numel(), weight.shape[1]))
        return dx, dw, None, None, None, None, None


def _shares(x: Tensor, logits: Tensor) -> tuple[Tensor, list[Any]]:
    """Return (..., D), flat where a view is, and the indices of shares of its rows, of about 2^22 logits (..., K)."""
    count, n = math.prod(x.shape[:-1]), max(1, _SHARE // logits.shape[-1])
    starts = range(0, max(1, count), n)
    with suppress(RuntimeError):  # the rows do not lie in one stride
        return x.view(count, x.shape[-1]), [slice(start, start + n) for start in starts]
    every = torch.arange(count, device=x.device)
    return x, [torch.unravel_index(every[start : start + n], x.shape[:-1]) for start in starts]
