r"""Functions of features and of codes that the quantizers share.

KL(q_g || uniform), the mean over positions, and the sum over g              2102.12092
1 - sum_g exp H(mean of q_g) / (G K)                                         2006.11477
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import batch_norm

from taugrad.errors import LogitsError
from taugrad.ops._checks import compute_dtype
from taugrad.ops._torch import readable, tracing
from taugrad.ops.categorical import entropy, kl_to_uniform
from taugrad.ops.softmax import softmax


def features_last(x: Tensor, dim: int, channel_first: bool, dtype: torch.dtype) -> Tensor:
    """Return finite features as (..., D) in `dtype`, of (batch, D, ...) if `channel_first`.

    Raises:
        TypeError: x is no tensor of real numbers.
        ValueError: D is not `dim`.
        LogitsError: a feature is NaN or infinite, where reading is free.
    """
    if not isinstance(x, Tensor) or x.is_complex():
        got = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"x must be a tensor of real features, got {got}")
    if not tracing() and (x.ndim < 2 or x.shape[1 if channel_first else -1] != dim):
        layout = f"(batch, {dim}, ...)" if channel_first else f"(..., {dim})"
        raise ValueError(f"x must have shape {layout}, got {tuple(x.shape)}")
    if readable(x) and not torch.isfinite(x).all():
        raise LogitsError("x must be finite features, got NaN or an infinity")
    return (x.movedim(1, -1) if channel_first else x).to(dtype)


def standardized(norm: nn.BatchNorm1d, rows: Tensor, training: bool, mask: Tensor | None = None) -> Tensor:
    """Standardize rows (n, D) by their own statistics, which the running ones follow, or by the running ones.

    With a `mask` (n,) these statistics are those of the rows that it selects.

    Raises:
        ValueError: these are fewer than two rows, or their variance overflows, where reading is free; or `norm` gathers
            its statistics from several processes, and there is a mask.
    """
    if not training or not norm.training:
        return batch_norm(rows, norm.running_mean, norm.running_var, eps=norm.eps)
    if not tracing() and (mask is None or readable(mask)):
        n = rows.shape[0] if mask is None else int(mask.sum())
        if n < 2:
            counted = "x must have" if mask is None else "mask must select"
            raise ValueError(f"{counted} at least 2 positions, to be standardized in training, got {n}")
    if readable(rows) and (mask is None or readable(mask)):
        chosen = rows.detach() if mask is None else rows.detach()[mask]
        if not chosen.to(compute_dtype(rows.dtype)).var(0).to(rows.dtype).isfinite().all():
            largest = chosen.abs().max().item()
            raise LogitsError(f"x must be features of finite variance, got some as large as {largest:.3g}")
    return norm(rows) if mask is None else _masked_batch_norm(norm, rows, mask)


def _masked_batch_norm(norm: nn.BatchNorm1d, rows: Tensor, mask: Tensor) -> Tensor:
    """Normalize as BatchNorm1d does in training, by the rows of the mask; shapes do not depend on its values."""
    if isinstance(norm, nn.SyncBatchNorm):
        raise ValueError("mask cannot be used where batch norms gather their statistics from several processes")
    mean, var, count = norm.running_mean, norm.running_var, norm.num_batches_tracked
    assert mean is not None
    assert var is not None
    assert count is not None
    x = rows.to(compute_dtype(rows.dtype))
    left_out, n = ~mask.unsqueeze(-1), mask.sum()
    m = x.masked_fill(left_out, 0).sum(0) / n
    v = (x - m).square().masked_fill(left_out, 0).sum(0) / n
    with torch.no_grad():
        count.add_(1)
        rate = torch.as_tensor(norm.momentum, device=x.device) if norm.momentum is not None else 1 / count
        rate = torch.where(n > 1, rate, 0)  # one row has no variance
        for running, found in ((mean, m), (var, v * (n / (n - 1).clamp_min(1)))):
            running.add_((rate * (found - running)).to(running.dtype))
    return ((x - m) / (v + norm.eps).sqrt()).to(rows.dtype)


def check_mask(mask: Tensor, shape: torch.Size) -> None:
    """Raise unless `mask` is boolean, of that shape, and selects a position."""
    boolean = isinstance(mask, Tensor) and mask.dtype is torch.bool
    if not boolean or (not tracing() and mask.shape != shape):
        got = f"{mask.dtype} of {tuple(mask.shape)}" if isinstance(mask, Tensor) else type(mask).__name__
        raise ValueError(f"mask must be boolean, of shape {tuple(shape)}, got {got}")
    if readable(mask) and not mask.any():
        raise ValueError("mask must select a position, got none")


def divergence(logits: Tensor, loss: str, mask: Tensor | None = None) -> Tensor:
    """Return the loss "kl" or "diversity" of logits (n, G, K) over the positions of a `mask` (n,); 0 for none.

    >>> certain = torch.tensor([[[50.0, 0.0]]])
    >>> divergence(certain, "kl"), divergence(certain, "diversity")
    (tensor(0.6931), tensor(0.5000))
    """
    if not tracing() and not logits.shape[0]:
        return logits.sum()
    if loss == "kl":
        each = kl_to_uniform(logits).sum(-1)
        return each.mean() if mask is None else each.masked_fill(~mask, 0.0).sum() / mask.sum()
    q = softmax(logits)
    mean = q.mean(0) if mask is None else q.masked_fill(~mask[:, None, None], 0.0).sum(0) / mask.sum()
    # A code of probability 0 everywhere, by rounding, would have a logarithm whose gradient is NaN.
    perplexity = entropy(mean.clamp_min(torch.finfo(q.dtype).tiny).log()).exp().sum()
    n = mean.numel()
    return (n - perplexity) / n


def indices_of(indices: Tensor, codes: int) -> Tensor:
    """Return indices of `codes` entries as int64.

    Raises:
        TypeError: they are no tensor of whole numbers.
        ValueError: one is out of range, where reading is free.

    >>> indices_of(torch.tensor([3, 4]), 4)
    Traceback (most recent call last):
    ValueError: indices must be in [0, 3], got 3 to 4
    """
    if not isinstance(indices, Tensor) or not _whole(indices.dtype):
        got = indices.dtype if isinstance(indices, Tensor) else type(indices).__name__
        raise TypeError(f"indices must be a tensor of whole numbers, got {got}")
    indices = indices.long()  # else a byte would compare with 256 as with 0, and index as a mask
    if readable(indices) and indices.numel() and not 0 <= indices.min() <= indices.max() < codes:
        raise ValueError(f"indices must be in [0, {codes - 1}], got {indices.min().item()} to {indices.max().item()}")
    return indices


def _whole(dtype: torch.dtype) -> bool:
    return not (dtype.is_floating_point or dtype.is_complex or dtype is torch.bool)


def usage_of(counts: Tensor) -> tuple[Tensor, Tensor]:
    """Return the perplexity of codes by their counts (..., K), and the share of them in use; means over the rest.

    >>> [round(x.item(), 4) for x in usage_of(torch.tensor([2.0, 2.0, 0.0, 0.0]))]
    [2.0, 0.5]
    """
    share = counts / counts.sum(-1, keepdim=True)
    return entropy(share.log()).exp().mean(), (counts > 0).float().mean()
