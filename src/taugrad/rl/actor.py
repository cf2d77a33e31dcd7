r"""An actor over factored discrete actions, and the policy that acts by it on normalized observations.

logits(s)      (..., F, K): factor f of the action is Cat(softmax(logits_f)), independent of the others
log pi(a|s) = sum_f log softmax(logits_f)[a_f]
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from taugrad.nets import PictureEncoder, mlp
from taugrad.ops.gumbel import gumbel_argmax
from taugrad.rl.masks import allowed
from taugrad.rl.spaces import Sizes

_CLIP = 10.0  # bound on a normalized observation


class Policy(nn.Module):
    """Actor on observations (..., D), which it gets normalized by their running mean and variance if `normalize`.

    If not, they are divided by `unit`.
    """

    def __init__(self, actor: "FactoredActor", observation_size: int, normalize: bool, unit: float = 1.0) -> None:
        super().__init__()
        self.norm = RunningNorm(observation_size) if normalize else nn.Identity()
        self.unit = 1.0 if normalize else unit
        self.actor = actor

    def act(self, observation: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Sample choices (E, F) for observations (E, D); return them and their log-probability (E,).

        A `mask` (E, F, K), bool, is True where a choice is allowed; None allows all.
        """
        logits = self.actor(self.normalized(observation), self._here(mask))
        action = gumbel_argmax(logits)
        return action, log_prob_of(logits, action)

    def greedy(self, observation: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the most probable choices (E, F) for observations (E, D), of those that `mask` (E, F, K) allows."""
        return self.actor(self.normalized(observation), self._here(mask)).argmax(-1)

    def _here(self, mask: Tensor | None) -> Tensor | None:
        return None if mask is None else mask.to(self.actor.allowed.device)

    def normalized(self, observation: Tensor) -> Tensor:
        """Normalize observations (..., D), and convert them to float32 on the networks' device."""
        x = self.norm(observation.to(self.actor.allowed.device)).float()
        return x if self.unit == 1 else x / self.unit

    def count(self, observation: Tensor) -> None:
        """Update the normalization by observations (n, D)."""
        if isinstance(self.norm, RunningNorm):
            self.norm.update(observation.to(self.actor.allowed.device))


class RunningNorm(nn.Module):
    """Computes (x - mean) / std of x (..., D) by the mean and variance of all observations so far, clipped at 10.

    The statistics are float64: float32 would keep no digit below 64 of observations near 1e9.

    >>> norm = RunningNorm(1)
    >>> norm.update(torch.tensor([[0.0], [2.0]]))
    >>> norm(torch.tensor([[3.0]]))
    tensor([[2.]])
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.mean = nn.Buffer(torch.zeros(size, dtype=torch.float64))
        self.variance = nn.Buffer(torch.ones(size, dtype=torch.float64))
        self.count = nn.Buffer(torch.zeros((), dtype=torch.float64))

    @torch.no_grad()
    def update(self, x: Tensor) -> None:
        """Update mean and variance by x, (n, D) (Chan et al. 1979); n may be 0."""
        if len(x) == 0:
            return
        x = x.double()
        total = self.count + len(x)
        share = len(x) / total
        delta = x.mean(0) - self.mean
        self.variance.lerp_(x.var(0, correction=0), share).add_(delta.square() * share * (1 - share))
        self.mean.add_(delta * share)
        self.count.copy_(total)

    def forward(self, x: Tensor) -> Tensor:
        """Normalize x, (..., D), to float32."""
        return ((x - self.mean) / (self.variance + 1e-8).sqrt()).clamp(-_CLIP, _CLIP).float()


class FactoredActor(nn.Module, ABC):
    """Interface of an actor; `allowed` (F, K), bool, is the mask of the choices that there are."""

    allowed: Tensor

    @abstractmethod
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Logits (..., F, K) of observations (..., D), -inf where `mask` (..., F, K) allows no choice."""


class Trunk(NamedTuple):
    """First part of a network: a module, its number of outputs, and the hidden layers that follow it."""

    front: nn.Module
    outputs: int
    hidden: Sequence[int]
    unit: float  # divisor of observations that are not normalized


def check_trunk(kind: str, hidden: Sequence[int]) -> None:
    """Raise unless a network with these hidden layers can have a trunk of this kind.

    >>> check_trunk("cnn", [64])
    Traceback (most recent call last):
    ValueError: trunk must be mlp or conv, got cnn
    """
    if kind not in ("mlp", "conv"):
        raise ValueError(f"trunk must be mlp or conv, got {kind}")
    if kind == "conv" and not hidden:
        raise ValueError("hidden must have a layer for trunk=conv, which ends with it, got none")


def trunk(kind: str, sizes: Sizes, hidden: Sequence[int]) -> Trunk:
    """Build a new trunk: nothing for "mlp", a `PictureEncoder` with the first of the `hidden` layers for "conv".

    Raises:
        ValueError: the observations are no pictures, for "conv".

    >>> trunk("mlp", Sizes((10, 10, 4), (6,)), [128])
    Trunk(front=Identity(), outputs=400, hidden=[128], unit=1.0)
    >>> trunk("conv", Sizes((10, 10, 4), (6,)), [128])[1:]
    (128, [], 1.0)
    """
    if kind == "mlp":
        return Trunk(nn.Identity(), sizes.observation, hidden, 1.0)
    try:
        return Trunk(PictureEncoder(sizes.shape, hidden[0]), hidden[0], hidden[1:], sizes.unit)
    except ValueError as error:
        raise ValueError(f"trunk=conv cannot be used with these observations: {error}") from error


class Actor(FactoredActor):
    """Network of the logits (..., F, K) of `factors` with at most K choices each; a factor with fewer has -inf."""

    def __init__(
        self, observation_size: int, factors: Sequence[int], hidden: Sequence[int], front: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.shape = F, K = len(factors), max(factors)
        self.front = front or nn.Identity()  # maps observations to `observation_size` features
        self.net = mlp(observation_size, hidden, F * K, "Tanh")
        orthogonal(nn.Sequential(self.front, self.net), last_gain=0.01)
        self.allowed = nn.Buffer(allowed(factors), persistent=False)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Logits (..., F, K) of observations (..., D), -inf where `mask` (..., F, K) allows no choice."""
        return (
            self.net(self.front(x))
            .unflatten(-1, self.shape)
            .masked_fill(~(self.allowed if mask is None else mask), -torch.inf)
        )


def orthogonal(net: nn.Module, last_gain: float) -> None:
    """Set layers, linear and convolutional, to orthogonal matrices of gain sqrt 2, biases to zero.

    The last layer's gain is `last_gain`.
    """
    layers = [layer for layer in net.modules() if isinstance(layer, (nn.Linear, nn.Conv2d))]
    for layer in layers:
        nn.init.orthogonal_(layer.weight, last_gain if layer is layers[-1] else 2**0.5)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


def log_prob_of(logits: Tensor, action: Tensor) -> Tensor:
    """Return log pi(a), (...), of choices (..., F) for logits (..., F, K).

    >>> log_prob_of(torch.zeros(2, 4), torch.tensor([0, 3])).exp()
    tensor(0.0625)
    """
    return logits.log_softmax(-1).gather(-1, action.unsqueeze(-1)).sum((-2, -1))
