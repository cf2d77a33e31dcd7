r"""Permutations: Gumbel-Sinkhorn (1802.08665).

S(X) = lim of X's rows and columns normalized in turn, of exp(X)          Sinkhorn's operator
P    = argmax over permutation matrices of <P, X>                         the limit of S(X / tau) for tau -> 0
"""

from typing import Any

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_variadic

from taugrad.checks import check_count
from taugrad.ops._checks import check_tau
from taugrad.ops._torch import readable, tracing
from taugrad.ops.noise import perturbed
from taugrad.ops.onehot import straight_through


def sinkhorn(x: Tensor, iterations: int = 20) -> Tensor:
    r"""Apply Sinkhorn's operator in log space: $\exp(x)$ with columns and rows normalized in turn.

    Args:
        x: scores, (..., n, n), floating point.
        iterations: number of normalizations of the columns and then the rows.

    Returns:
        A matrix in the shape of `x` whose rows sum to one; its columns approach one with the iterations.

    >>> sinkhorn(torch.zeros(2, 2))
    tensor([[0.5000, 0.5000],
            [0.5000, 0.5000]])
    """
    check_count("iterations", iterations)
    for _ in range(iterations):
        x = x.log_softmax(-2).log_softmax(-1)
    return x.exp()


def gumbel_sinkhorn(
    scores: Tensor,
    tau: float | Tensor = 1.0,
    iterations: int = 20,
    *,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Draw a random permutation matrix with the gradient of its relaxation.

    $X = \mathrm{scores} + g$; the value is the permutation $P$ that maximizes $\langle P, X\rangle$, found by scipy's
    assignment solver; the gradient is that of $S(X / \tau)$.

    Args:
        scores: (..., n, n), floating point, finite.
        tau: temperature of the relaxation, a positive number or a tensor that broadcasts to `scores`, with one value a
            matrix.
        iterations: number of Sinkhorn's normalizations; a small tau needs more.
        generator: a source of randomness; default torch's own.

    Returns:
        Permutation matrices in the shape and dtype of `scores`.

    Raises:
        ValueError: `scores` is not square or not finite, or `tau` not positive or of a shape that does not fit.
        ConfigError: scipy is not installed.

    Bias: the gradient is biased, and P is no exact sample of the distribution proportional to exp<P, scores>:
    perturbing every entry is an approximation to it. P is found on the CPU, also in a compiled program.
    Source: 1802.08665.

    >>> gumbel_sinkhorn(torch.tensor([[0.0, 50.0], [50.0, 0.0]]))
    tensor([[0., 1.],
            [1., 0.]])
    """
    if has_torch_function_variadic(scores, tau):
        return handle_torch_function(gumbel_sinkhorn, (scores, tau), scores, tau, iterations, generator=generator)
    square = scores.ndim >= 2 and (tracing() or scores.shape[-1] == scores.shape[-2])
    if not square or not scores.is_floating_point():
        raise ValueError(
            f"scores must be floating point of shape (..., n, n), got {scores.dtype} {tuple(scores.shape)}"
        )
    tau = check_tau(check_tau(tau, scores, -1), scores, -2)
    if readable(scores) and not torch.isfinite(scores).all():
        raise ValueError("scores must be finite: a forbidden pair is a large negative score, not -inf")
    x = perturbed(scores, generator=generator)
    return straight_through(_assignment(x.detach()), sinkhorn(x / tau, iterations)).to(scores.dtype)


# This is an operator because a compiler or a fake tensor can know nothing but its shape.
@torch.library.custom_op("taugrad::assignment", mutates_args=())
def _assignment(x: Tensor) -> Tensor:
    from scipy.optimize import linear_sum_assignment  # it takes half a second to import

    n = x.shape[-1]
    flat = x.reshape(-1, n, n)
    columns = [torch.from_numpy(linear_sum_assignment(m, maximize=True)[1]) for m in flat.cpu().double().numpy()]
    index = torch.stack(columns) if columns else torch.zeros(0, n, dtype=torch.int64)
    return torch.zeros_like(flat).scatter(-1, index.to(x.device).unsqueeze(-1), 1.0).view_as(x)


@_assignment.register_fake
def _assignment_shape(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@_assignment.register_vmap
def _assignment_of_batch(info: Any, in_dims: tuple[int], x: Tensor) -> tuple[Tensor, int]:
    return _assignment(x.movedim(in_dims[0], 0)), 0
