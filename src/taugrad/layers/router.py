r"""Mixture of experts of which only the chosen ones are computed.

p = softmax(W x),  i ~ p in training, argmax p in evaluation                   k = 1
y = p_i E_i(x),  or  y = z_i E_i(x) with z_i = 1 and an estimator's gradient   k = 1
y = sum_{i in T} w_i E_i(x),  w = softmax over T of W x,  T the top k          k > 1
loss = E sum_i f_i P_i                                                         2101.03961, eq. 4
"""

from collections.abc import Sequence
from typing import NamedTuple, final

import torch
from torch import Tensor, nn

from taugrad.checks import check_count
from taugrad.estimators import Pathwise, check_pathwise
from taugrad.ops._checks import check_rows, compute_dtype
from taugrad.ops._torch import tracing
from taugrad.ops.onehot import one_hot
from taugrad.ops.subsets import gumbel_top_k


class Routed(NamedTuple):
    """Output of a `Router`, the experts that gave it, and the loss that balances their use."""

    output: Tensor  # (..., *out)
    indices: Tensor  # (..., k), int64, in the order chosen
    loss: Tensor  # (), 1 where all experts are used alike, up to E where only one is


@final
class Router(nn.Module):
    r"""Routing of each row to k of E experts, with noise in training; the most probable ones in evaluation mode.

    Each expert sees exactly the rows that chose it. One that no row chose sees zero rows, which costs nothing and gives
    its parameters a zero gradient, as DDP needs.

    Args:
        features: $D$, the size of a row.
        experts: $E \ge 2$ modules, each from (n, D) to (n, *out).
        k: number of experts a row.
        estimator: a pathwise estimator, for k = 1: the output is $z_i E_i(x)$, not scaled by $p_i$. By default the
            gradient is that of the probability that multiplies the output: $p_i$ for k = 1 (Switch), the softmax over
            the chosen for more (Mixtral).

    Bias: the gradient through the choice itself is missing. The weight's own gradient credits expert i by
    $\langle \partial L/\partial y, E_i(x) \rangle$ alone. With an estimator the terms
    $\langle \partial L/\partial y, E_j(x) \rangle\, dz_j$ of the experts that were not computed are missing: its
    gradient compares expert i with an output of zero, the skipped layer where there is a residual connection.
    Source: 2101.03961, 2401.04088.

    >>> router = Router(4, [nn.Linear(4, 3) for _ in range(8)], k=2)
    >>> y, indices, loss = router(torch.randn(5, 6, 4))
    >>> y.shape, indices.shape
    (torch.Size([5, 6, 3]), torch.Size([5, 6, 2]))
    """

    def __init__(
        self, features: int, experts: Sequence[nn.Module] | nn.ModuleList, k: int = 1, estimator: Pathwise | None = None
    ) -> None:
        super().__init__()
        check_count("features", features)
        if not isinstance(experts, (Sequence, nn.ModuleList, nn.Sequential)):
            raise TypeError(f"experts must be a sequence of modules, got {type(experts).__name__}")
        check_count("the number of experts", len(experts), 2)
        check_count("k", k)
        if k > len(experts):
            raise ValueError(f"k must be at most {len(experts)}, the number of experts, got {k}")
        if estimator is not None:
            check_pathwise(estimator)
        if estimator is not None and k > 1:
            raise ValueError(f"estimator must be None for k > 1, where probabilities weigh the experts, got k = {k}")
        self.k = k
        self.estimator = estimator
        self.gate = nn.Linear(features, len(experts), bias=False)
        self.experts = nn.ModuleList(experts)

    def forward(self, x: Tensor, tau: float | Tensor = 1.0, *, generator: torch.Generator | None = None) -> Routed:
        """Route rows `x` (..., D) to their experts.

        Args:
            x: (..., D), without padding, which would count for the balance.
            tau: temperature of the estimator; without one it has no effect.
            generator: a source of randomness; default torch's own.

        Raises:
            ValueError: the last dimension of `x` is not D, the logits of a row are NaN or infinite, or the experts'
                outputs differ in shape.
            TypeError: `x` is not of the router's dtype, outside of autocast.
        """
        W = self.gate.weight
        if not isinstance(x, Tensor) or not x.is_floating_point() or not _fits(x, W):
            dtype = W.dtype if isinstance(W, Tensor) else torch.get_default_dtype()
            got = x.dtype if isinstance(x, Tensor) else type(x).__name__
            raise TypeError(f"x must be a tensor of {dtype}, as the router's weights are, got {got}")
        if x.ndim == 0 or x.shape[-1] != self.gate.in_features:
            raise ValueError(f"x must have features = {self.gate.in_features} last, got shape {tuple(x.shape)}")
        rows = x.reshape(-1, x.shape[-1])
        logits = self.gate(rows)
        logits = logits.to(compute_dtype(logits.dtype))  # the router is sensitive to half precision (2101.03961)
        p = torch.softmax(logits, -1)
        check_rows(p, -1)
        weights, index = self._choose(logits, tau, generator)
        chosen = one_hot(index, logits.unsqueeze(-2).expand(-1, self.k, -1))  # (N, k, E)
        n = len(rows) if tracing() else max(len(rows), 1)  # no rows are balanced: 0, not NaN
        f, P = chosen.sum((0, 1)) / (n * self.k), p.sum(0) / n
        loss = len(self.experts) * (f * P).sum()
        y = self._dispatch(rows, weights, index, chosen.sum((0, 1)))
        return Routed(y.reshape(*x.shape[:-1], *y.shape[1:]), index.view(*x.shape[:-1], self.k), loss)

    def _choose(self, logits: Tensor, tau: float | Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """Return weights (N, k) and experts (N, k)."""
        if self.estimator is not None and self.training:
            z = self.estimator.sample(logits, tau, generator=generator)
            index = z.detach().argmax(-1, keepdim=True)
            return z.gather(-1, index), index
        index = gumbel_top_k(logits, self.k, generator=generator) if self.training else logits.topk(self.k).indices
        if self.estimator is not None:
            return torch.ones_like(logits[:, :1]), index
        scores = logits.gather(-1, index)
        over = logits if self.k == 1 else scores
        return (scores - over.logsumexp(-1, keepdim=True)).exp(), index

    def _dispatch(self, rows: Tensor, weights: Tensor, index: Tensor, counts: Tensor) -> Tensor:
        """Return (N, *out): rows are sorted by expert, so that the host waits for a device once, for all counts."""
        order = index.flatten().argsort(stable=True)
        parts = rows[order // self.k].split(counts.long().tolist())
        each = [expert(part) for expert, part in zip(self.experts, parts, strict=True)]
        if not tracing() and len(shapes := {tuple(y.shape[1:]) for y in each}) > 1:
            raise ValueError(f"experts must give outputs of one shape, got {', '.join(map(str, sorted(shapes)))}")
        outputs = torch.cat(each)
        w = weights.flatten()[order].to(outputs.dtype).view(-1, *[1] * (outputs.ndim - 1))
        y = outputs.new_zeros(len(rows), *outputs.shape[1:])
        return y.index_add(0, order // self.k, w * outputs)

    def extra_repr(self) -> str:
        """Show the number of choices and the estimator in the module's repr."""
        return f"k={self.k}, estimator={self.estimator!r}"


def _fits(x: Tensor, W: Tensor) -> bool:
    """Return whether a linear map takes `x`: it has the dtype of its weights, or autocast casts it."""
    if not isinstance(W, Tensor) or x.dtype == W.dtype:  # a quantized layer has a method in the place of W
        return True
    kind = x.device.type
    casts = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    return casts and x.dtype is not torch.float64
