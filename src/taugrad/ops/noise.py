r"""Gumbel(0,1) noise, the randomness of every sample here.

    g = -log(-log u),  u ~ U(0,1)

The contract: noise is always finite, float64 for float64 and float32 for every other dtype, and reproducible under
`torch.manual_seed` or by `generator=`. Where there are kernels for the device it is a function of a seed, drawn from
torch's generator, and of the element's position, for any number of threads. Elsewhere it comes from `torch.rand`.

Deviation: float32 noise has a limited range: [-3.13, 22.9] from the kernels, whose uniform numbers have 32 bits, and
[-2.86, 16.64] from torch, whose numbers have 24. A class more than 26 or 19.5 nats behind, of probability below 5e-12
or 4e-9, is therefore never drawn.
"""

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_unary

from taugrad.ops import _fused
from taugrad.ops._checks import compute_dtype


def gumbel_noise(like: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
    r"""Draw Gumbel(0,1) noise, $g = -\log(-\log u)$ with $u \sim U(0,1)$: always finite.

    Args:
        like: gives shape and device; float64 gives float64 noise, every other dtype float32.
        generator: a source of randomness on the same device; default torch's own.

    Returns:
        Noise in the shape of `like`, without gradient.

    >>> g = gumbel_noise(torch.zeros(100_000), generator=torch.Generator().manual_seed(0))
    >>> round(g.mean().item(), 1), round(g.std().item(), 1)  # Euler's constant and pi / sqrt 6
    (0.6, 1.3)
    """
    if has_torch_function_unary(like):
        return handle_torch_function(gumbel_noise, (like,), like, generator=generator)
    g = _fused.noise(like, compute_dtype(like.dtype), generator)
    return g if g is not None else _log_exponential(like, generator).neg_()


def perturbed(logits: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
    """Return logits + g, differentiable, in the dtype of the noise: the start of every sample here.

    >>> perturbed(torch.tensor([0.0, -torch.inf], dtype=torch.float16)).dtype
    torch.float32
    """
    if has_torch_function_unary(logits):
        return handle_torch_function(perturbed, (logits,), logits, generator=generator)
    dtype = compute_dtype(logits.dtype)
    g = _fused.noise(logits, dtype, generator)
    return logits.to(dtype) + g if g is not None else logits.to(dtype) - _log_exponential(logits, generator)


def _log_exponential(like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Draw log E, E = -log u, by torch: the noise is its negative."""
    dtype = compute_dtype(like.dtype)
    smallest = torch.finfo(dtype).eps / 4  # an E of zero or infinity would give infinite noise
    if like.device.type != "cpu":
        E = torch.empty_like(like, dtype=dtype, memory_format=torch.contiguous_format)
        return E.exponential_(generator=generator).clamp(smallest, 64).log_()
    # A CPU's exponential_ comes from a generator of a short period.
    if generator is None:  # a fake or traced `like` gives noise of its own kind
        u = torch.rand_like(like, dtype=dtype, memory_format=torch.contiguous_format)
    else:
        u = torch.rand(like.shape, generator=generator, dtype=dtype, device=like.device)
    # u is a multiple of 2^-24 (2^-53 in float64) below 1.
    return u.clamp(smallest, 1 - 2 * smallest).log_().neg_().log_()


def conditional_perturbed(logits: Tensor, z: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
    r"""Draw perturbed log-probabilities $s = \log\pi + g$ given that their argmax is z (2010.04838).

    The largest is Gumbel(0) whatever the class, $s_i = g_i$; another is cut off at it,
    $s_j = -\log(e^{-(\log\pi_j + g_j)} + e^{-s_i})$, with fresh noise g.

    Args:
        logits: (..., K), floating point; -inf masks a class.
        z: one-hot, (..., K), of no masked class.
        generator: a source of randomness; default torch's own.

    Returns:
        s, (..., K), in the dtype of the noise, without gradient.

    >>> s = conditional_perturbed(torch.tensor([0.0, 0.0, -torch.inf]), torch.tensor([0.0, 1.0, 0.0]))
    >>> s.argmax(), s[2]
    (tensor(1), tensor(-inf))
    """
    g = gumbel_noise(logits, generator=generator)
    top = (g * z).sum(-1, keepdim=True)
    others = -torch.logaddexp(-(torch.log_softmax(logits.detach().to(g.dtype), -1) + g), -top)
    return torch.where(z > 0, top, others)
