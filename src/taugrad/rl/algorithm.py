"""The interface of an algorithm of reinforcement learning, for a task or a plain loop to train it by.

An algorithm is a frozen dataclass of its hyperparameters. It builds an agent, a module of networks that acts and that
improves itself on the rollouts that it has made:

    agent = algorithm.build(environments.sizes)
    optimizer = torch.optim.Adam(agent.parameters(), lr=1e-3)
    while collector.env_steps < total:
        rollout = window.oldest()
        collector.fill(rollout, agent.policy.act)
        agent.policy.count(rollout.observation[:-1][rollout.valid])
        agent.improve(window, optimizer, Clock(collector.env_steps, total))
"""

from abc import ABC, abstractmethod
from typing import ClassVar, NamedTuple

from torch import Tensor, nn
from torch.optim import Optimizer

from taugrad.rl.actor import Policy
from taugrad.rl.rollouts import Window
from taugrad.rl.spaces import Sizes


class Clock(NamedTuple):
    """Progress of a training.

    >>> Clock(25_000, 100_000).remaining
    0.75
    """

    steps: int  # environment steps that were made
    total: int  # environment steps of the whole training

    @property
    def remaining(self) -> float:
        """Share of the training that is left."""
        return max(0.0, 1 - self.steps / self.total)


class Agent(nn.Module, ABC):
    """Module of a policy and the networks that it learns by."""

    policy: Policy

    @abstractmethod
    def improve(self, window: Window, optimizer: Optimizer, clock: Clock) -> dict[str, Tensor]:
        """Make optimizer steps on rollouts of the window, whose newest one was made by the policy as it stands.

        The optimizer is over the agent's parameters, with the current learning rate. Return scalars to log by their
        names; none if the rollouts hold no transition.
        """


class Algorithm(ABC):
    """Hyperparameters of an algorithm; `changeable` names those that a resumed run may change."""

    changeable: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def build(self, sizes: Sizes) -> Agent:
        """Build the agent for observations and actions of these sizes."""
