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
from taugrad.ops.softmax import softmax, softmax_backward

# SplitMix64's constants, as signed numbers. The last xor of a shift changes lower bits than are used here.
_GOLDEN = 0x9E3779B97F4A7C15 - 2**64
_MIXING = ((30, 0xBF58476D1CE4E5B9 - 2**64), (27, 0x94D049BB133111EB - 2**64))


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
        return gumbel_max(logits, dim, generator=generator), _fused.draw_seeds(generator, logits.device, draws)
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


def seeded_noise(like: Tensor, seed: Tensor) -> Tensor:
    """Return the Gumbel(0,1) noise of a seed in the shape of `like`: the same whenever it is asked for.

    Where there are no kernels for `like`, its uniform numbers are SplitMix64's of the seed and the element's position.

    Args:
        like: float32 or float64, gives shape, dtype and device.
        seed: int64, without dimensions.

    Returns:
        Noise in the shape of `like`, without gradient.

    >>> a, b = (seeded_noise(torch.zeros(3), torch.tensor(7)) for _ in range(2))
    >>> torch.equal(a, b)
    True
    """
    g = _fused.seeded_noise(like, seed)
    if g is not None:
        return g
    state = seed + (torch.arange(like.numel(), device=like.device).view(like.shape) + 1) * _GOLDEN
    for shift, factor in _MIXING:
        state = state ^ (state >> shift & ((1 << 64 - shift) - 1))
        state = state * factor
    bits = 53 if like.dtype is torch.float64 else 24
    u = (state >> 64 - bits & ((1 << bits) - 1)).to(like.dtype) * 2.0**-bits
    smallest = torch.finfo(like.dtype).eps / 4  # least value as of torch's numbers: the noise is finite
    return u.clamp(smallest, 1 - 2 * smallest).log().neg().log().neg()
