r"""Gumbel-Rao's Jacobian at other logits than those that the class was drawn from.

    D  = argmax(theta + g),   pi = softmax(theta + m),   m > 0 for D and 0 for others, so argmax(theta + m + g) is D too
    G  = 1/n sum_i J(y_i) / tau,   y_i = softmax((log pi + g_i) / tau),   g_i ~ p(g | argmax(log pi + g) = D)

The noise is drawn in the backward, from what `draw` returns for it: of the kernels one seed, which draws the sample's
noise again and with it finds D, else a seed for each draw.
"""

import torch
from torch import Tensor

from taugrad.ops import _fused
from taugrad.ops._checks import compute_dtype
from taugrad.ops.gumbel import gumbel_max
from taugrad.ops.noise import seeded_noise, seeds
from taugrad.ops.softmax import softmax, softmax_backward


def draw(
    logits: Tensor, tau: float | Tensor, dim: int, draws: int, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """Draw `z` as `gumbel_max` does, without gradient, and seeds for `product`.

    >>> z, seeds = draw(torch.tensor([0.0, -torch.inf]), 0.5, -1, 10, None)
    >>> z
    tensor([1., 0.])
    """
    x = logits.detach().movedim(dim, -1)
    drawn = None if isinstance(tau, Tensor) else _fused.seeded_one_hot(x.to(compute_dtype(x.dtype)), generator)
    if drawn is None:
        return gumbel_max(logits, dim, generator=generator), seeds(logits, draws, generator=generator)
    z, seed = drawn
    return z.to(logits.dtype).movedim(-1, dim).contiguous(), seed


def product(g: Tensor, pi: Tensor, D: Tensor, tau: float | Tensor, seeds: Tensor, draws: int) -> Tensor:
    r"""Return $G g$, (..., K), of g, pi and D, (..., K), in a dtype to compute in.

    With E = exp(-g) ~ Exp(1), the perturbed log-probabilities that fit D are s_D = -log E_D for the drawn class and
    s_k = -log(E_k / pi_k + E_D) for another.

    >>> D, seeds = draw(torch.zeros(2), 0.5, -1, 10, None)
    >>> product(torch.ones(2), (D + 0.5) / 2, D, 0.5, seeds, 10).abs().max() < 1e-6
    tensor(True)
    """
    if not seeds.ndim and not isinstance(tau, Tensor):
        return _fused.mean_jacobian(g, pi.log(), tau, draws, seeds)
    drawn = D.argmax(-1, keepdim=True)
    rate = (1 - D) / pi  # infinite for a masked class, 0 for the drawn one
    total = torch.zeros_like(g)
    for seed in seeds.unbind():
        E = seeded_noise(pi, seed).neg_().exp_()
        s = (rate * E).add_(E.gather(-1, drawn)).log_().neg_()
        total = total + softmax_backward(g, softmax(s, tau), tau)
    return total / draws
