r"""An actor over factored discrete actions, and the policy that acts by it.

logits(s)      (..., F, K): factor f of the action is Cat(softmax(logits_f)), independent of the others
log pi(a|s) = sum_f log softmax(logits_f)[a_f]
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from taugrad.nets import mlp
from taugrad.ops.gumbel import gumbel_argmax
from taugrad.rl.normalization import RunningNorm


class Policy(nn.Module):
    """Actor on normalized observations.

    Args:
        actor: logits (..., F, K) of observations (..., D).
        observation_size: D.
        normalize: observations by their running mean and variance.
    """

    def __init__(self, actor: "Actor", observation_size: int, normalize: bool) -> None:
        super().__init__()
        self.norm = RunningNorm(observation_size) if normalize else nn.Identity()
        self.actor = actor

    def act(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        """Sample choices (E, F) for observations (E, D); return them and their log-probability (E,)."""
        logits = self.actor(self.normalized(observation))
        action = gumbel_argmax(logits)
        return action, log_prob_of(logits, action)

    def greedy(self, observation: Tensor) -> Tensor:
        """Return the most probable choices (E, F) for observations (E, D)."""
        return self.actor(self.normalized(observation)).argmax(-1)

    def normalized(self, observation: Tensor) -> Tensor:
        """Normalize observations (..., D), and convert them to float32 on the networks' device."""
        return self.norm(observation.to(self.actor.allowed.device)).float()

    def count(self, observation: Tensor) -> None:
        """Update the normalization by observations (n, D)."""
        if isinstance(self.norm, RunningNorm):
            self.norm.update(observation.to(self.actor.allowed.device))


class Actor(nn.Module):
    """Network of the logits of every factor; a factor with fewer than K choices has -inf for the rest.

    Args:
        observation_size: D.
        factors: choices of each factor; the largest is K.
        hidden: sizes of the hidden layers.
    """

    allowed: Tensor

    def __init__(self, observation_size: int, factors: Sequence[int], hidden: Sequence[int]) -> None:
        super().__init__()
        shape = len(factors), max(factors)
        self.net = mlp(observation_size, hidden, shape[0] * shape[1], "Tanh")
        orthogonal(self.net, last_gain=0.01)
        self.shape = shape
        self.register_buffer("allowed", torch.arange(shape[1]) < torch.tensor(factors)[:, None], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (..., F, K) of observations (..., D)."""
        return self.net(x).unflatten(-1, self.shape).masked_fill(~self.allowed, -torch.inf)


def orthogonal(net: nn.Module, last_gain: float) -> None:
    """Set linear layers to orthogonal matrices of gain sqrt 2, the last one of gain `last_gain`, and biases to zero."""
    layers = [layer for layer in net.modules() if isinstance(layer, nn.Linear)]
    for layer in layers:
        nn.init.orthogonal_(layer.weight, last_gain if layer is layers[-1] else 2**0.5)
        nn.init.zeros_(layer.bias)


def log_prob_of(logits: Tensor, action: Tensor) -> Tensor:
    """Return log pi(a), (...), of choices (..., F) for logits (..., F, K).

    >>> log_prob_of(torch.zeros(2, 4), torch.tensor([0, 3])).exp()
    tensor(0.0625)
    """
    return logits.log_softmax(-1).gather(-1, action.unsqueeze(-1)).sum((-2, -1))
