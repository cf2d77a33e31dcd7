r"""PPO for several agents, the baseline: MAPPO, whose values see everything, and IPPO, whose values see their own part.

Each agent has its own ratio, advantage and value (2103.01955; IPPO: 2011.09533),

    rho_i = pi_i(a_i|x_i) / pi_i,old(a_i|x_i),      A_i by generalized advantage estimation from r_i and V_i
    V_i(x) if `central`, else V_i(x_i)

and L is PPO's over all choices of all living agents, the advantages normalized over a minibatch of them. What an agent
gets after it has left is lost to it. For one agent this is PPO, to the bit.
"""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor
from torch.optim import Optimizer

from taugrad.ops.categorical import entropy
from taugrad.rl.actor import Policy
from taugrad.rl.algorithm import Agent, Clock
from taugrad.rl.ppo import Clipped, clipped_loss, moved
from taugrad.rl.returns import advantages
from taugrad.rl.rollouts import Window, next_alive
from taugrad.rl.several import Actors, Layout, networks
from taugrad.rl.spaces import Sizes


@final
@dataclass(frozen=True)
class MAPPO(Clipped):
    """Hyperparameters of PPO for several agents; ValueError if a number is out of range."""

    epochs: int = 10  # passes over a rollout
    gamma: float = 0.99  # discount
    lam: float = 0.95  # lambda of the advantages
    ent_coef: float = 0.01  # coefficient of the entropy
    central: bool = True  # whether a value sees all observations (MAPPO) or its agent's (IPPO)
    shared: bool = False  # one actor and one value for all agents, told which agent it is

    def build(self, sizes: Sizes) -> "MAPPOAgent":
        """Build the agent; ValueError if `shared` agents differ."""
        return MAPPOAgent(self, sizes)


class MAPPOAgent(Agent):
    """Actors and values of all agents."""

    def __init__(self, hp: MAPPO, sizes: Sizes) -> None:
        super().__init__()
        parts, D, N = sizes.parts, sizes.observation, len(sizes.parts)
        self.hp = hp
        self.layout = Layout(parts)
        self.policy = Policy(Actors(parts, hp.hidden, hp.shared), D, hp.normalize)
        inputs = [D if hp.central else part.observation for part in parts]
        self.value = networks(inputs, hp.hidden, [1] * N, "Tanh", shared=hp.shared, last_gain=1.0)

    def improve(self, window: Window, optimizer: Optimizer, clock: Clock) -> dict[str, Tensor]:
        """Make `epochs` passes over the newest rollout in minibatches."""
        parts, alive = self._targets(window)
        orders = self.hp.orders(len(alive))
        living = [alive[i].flatten().nonzero()[:, 0] for i in orders]
        here = moved([*orders, *living], parts[0].device)
        batches = (
            (*(part[i] for part in parts), some)
            for i, some in zip(here[: len(orders)], here[len(orders) :], strict=True)
        )
        return self.hp.passes(self.loss, batches, list(self.parameters()), optimizer, clock)

    def loss(
        self,
        x: Tensor,
        mask: Tensor,
        action: Tensor,
        old: Tensor,
        g: Tensor,
        target: Tensor,
        living: Tensor,
        eps: float,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the loss of transitions (B, ...) over the choices of `living` agents, indices among B N."""
        logits = self.policy.actor(x, mask)
        each = self._log_probs(logits, action), old, g, self.values(x), target, self.layout.sums(entropy(logits))
        log_prob, old, g, value, target, uncertainty = (y.flatten()[living] for y in each)
        return clipped_loss(log_prob, old, g, value, target, uncertainty, eps, self.hp.vf_coef, self.hp.ent_coef)

    def values(self, x: Tensor) -> Tensor:
        """Compute V_i, (..., N), of observations x (..., D)."""
        everything = x.unsqueeze(-2).expand(*x.shape[:-1], self.layout.agents, -1)
        return self.value(everything if self.hp.central else self.layout.observations(x))[..., 0]

    def _log_probs(self, logits: Tensor, action: Tensor) -> Tensor:
        """Compute log pi_i(a_i|x_i), (..., N)."""
        return self.layout.sums(logits.log_softmax(-1).gather(-1, action.unsqueeze(-1))[..., 0])

    @torch.no_grad()
    def _targets(self, window: Window) -> tuple[tuple[Tensor, ...], Tensor]:
        """Transitions: x (n, D), mask (n, F, K), action (n, F), log pi_old, A and G (n, N) each; and alive (n, N).

        The last is in the window's memory.
        """
        device, rollout = self.policy.actor.allowed.device, window.sample(newest=1, others=0)
        places = rollout.places()
        there = rollout.alive[:-1].flatten(0, 1)[places]
        some = there.any(-1)  # the mean over a minibatch without a living agent would be NaN
        places, there = places[some].to(device), there[some]
        rollout = rollout.map(lambda x: x.to(device))
        x = self.policy.normalized(rollout.observation)
        value, mask, alive = self.values(x), rollout.mask[:-1], rollout.alive[:-1]
        later = next_alive(alive, rollout.alive[1:], rollout.truncated)
        terminated, truncated = rollout.terminated[..., None] | ~later, rollout.truncated[..., None]
        g = advantages(rollout.reward, value, terminated, truncated, self.hp.gamma, self.hp.lam)
        # Not log_mu, because the normalization has changed since.
        old = self._log_probs(self.policy.actor(x[:-1], mask), rollout.action)
        parts = x[:-1], mask, rollout.action, old, g, g + value[:-1]
        return tuple(part.flatten(0, 1)[places] for part in parts), there
