r"""Proximal policy optimization (1707.06347), the baseline, over the same factored actors and environments.

    L = -E min(rho A, clip(rho, 1 - eps, 1 + eps) A) + vf_coef (V(s) - G)^2 - ent_coef H(pi)
    rho = pi(a|s) / pi_old(a|s),   A by generalized advantage estimation, normalized over a minibatch

The joint probability of an action is the product over its factors. Every training step passes `epochs` times over the
newest rollout. Entropy is exact.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer

from taugrad.checks import check_count, check_counts, check_positive, check_share, require_finite
from taugrad.nets import mlp
from taugrad.ops._torch import readable
from taugrad.ops.categorical import entropy
from taugrad.rl.actor import Actor, Policy, check_trunk, log_prob_of, orthogonal, trunk
from taugrad.rl.algorithm import Agent, Algorithm, Clock
from taugrad.rl.returns import advantages
from taugrad.rl.rollouts import Window
from taugrad.rl.spaces import Sizes


@dataclass(frozen=True)
class Clipped(Algorithm):
    """Hyperparameters of a clipped objective, which PPO and MAPPO share; ValueError if a number is out of range."""

    hidden: Sequence[int] = (64, 64)  # sizes of the hidden layers of actors and values
    epochs: int = 20  # passes over a rollout
    batch_size: int = 256  # transitions of an optimizer step
    gamma: float = 0.98  # discount
    lam: float = 0.8  # lambda of the advantages
    clip_range: float = 0.2  # eps, scaled as the learning rate is
    ent_coef: float = 0.0  # coefficient of the entropy
    vf_coef: float = 0.5  # coefficient of the value's loss
    max_grad_norm: float = 0.5  # largest norm of the gradient
    normalize: bool = False  # observations by their running mean and variance

    changeable: ClassVar[tuple[str, ...]] = (
        *("epochs", "batch_size", "gamma", "lam", "clip_range", "ent_coef", "vf_coef", "max_grad_norm"),
    )

    def __post_init__(self) -> None:
        check_counts("hidden", self.hidden)
        check_count("epochs", self.epochs)
        check_count("batch_size", self.batch_size)
        check_positive("clip_range", self.clip_range)
        check_positive("max_grad_norm", self.max_grad_norm)
        check_share("gamma", self.gamma)
        check_share("lam", self.lam)

    def passes(
        self,
        loss: Callable[..., tuple[Tensor, dict[str, Tensor]]],
        batches: Iterable[Sequence[Tensor]],
        parameters: Sequence[nn.Parameter],
        optimizer: Optimizer,
        clock: Clock,
    ) -> dict[str, Tensor]:
        """Make an optimizer step on each of the minibatches, which `loss` takes with eps.

        Return the terms of the last loss; none if there is no minibatch.
        """
        eps = self.clip_range * optimizer.param_groups[0]["lr"] / optimizer.defaults["lr"]
        total, terms = torch.zeros(()), {}
        for batch in batches:
            total, terms = loss(*batch, eps)
            if readable(total):
                require_finite("PPO", total, clock.steps)
            optimizer.zero_grad()
            total.backward()
            clip_grad_norm_(parameters, self.max_grad_norm)
            optimizer.step()
        require_finite("PPO", total, clock.steps)  # after one that is not finite none is
        return terms and terms | {"train/ent_coef": torch.tensor(self.ent_coef)}

    def orders(self, n: int) -> list[Tensor]:
        """Draw the indices below `n` of all minibatches of `epochs` passes; on the CPU."""
        return [i for _ in range(self.epochs if n else 0) for i in torch.randperm(n).split(self.batch_size)]


@final
@dataclass(frozen=True)
class PPO(Clipped):
    """Hyperparameters of PPO with a clipped objective; ValueError if a number is out of range."""

    trunk: str = "mlp"  # or "conv", for pictures

    def __post_init__(self) -> None:
        super().__post_init__()
        check_trunk(self.trunk, self.hidden)

    def build(self, sizes: Sizes) -> "PPOAgent":
        """Build the agent."""
        return PPOAgent(self, sizes)


class PPOAgent(Agent):
    """Actor and value."""

    def __init__(self, hp: PPO, sizes: Sizes) -> None:
        super().__init__()
        self.hp = hp
        front, features, hidden, unit = trunk(hp.trunk, sizes, hp.hidden)
        self.policy = Policy(Actor(features, sizes.factors, hidden, front), sizes.observation, hp.normalize, unit)
        self.front = trunk(hp.trunk, sizes, hp.hidden).front  # of the value
        self.value = mlp(features, hidden, 1, "Tanh")
        orthogonal(nn.Sequential(self.front, self.value), last_gain=1.0)

    def improve(self, window: Window, optimizer: Optimizer, clock: Clock) -> dict[str, Tensor]:
        """Make `epochs` passes over the newest rollout in minibatches."""
        parts = self._targets(window)
        batches = (tuple(part[i] for part in parts) for i in moved(self.hp.orders(len(parts[0])), parts[0].device))
        return self.hp.passes(self.loss, batches, list(self.parameters()), optimizer, clock)

    def loss(
        self, x: Tensor, mask: Tensor, action: Tensor, old: Tensor, g: Tensor, target: Tensor, eps: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the loss of transitions (B, ...), and its terms; `old` is log pi_old(a|s)."""
        logits = self.policy.actor(x, mask)
        value = self.value(self.front(x))[:, 0]
        log_prob, uncertainty = log_prob_of(logits, action), entropy(logits).sum(-1)
        return clipped_loss(log_prob, old, g, value, target, uncertainty, eps, self.hp.vf_coef, self.hp.ent_coef)

    @torch.no_grad()
    def _targets(self, window: Window) -> tuple[Tensor, ...]:
        """Transitions: x (n, D), mask (n, F, K), action (n, F), log pi_old (n,), advantage (n,), lambda-return (n,)."""
        device, rollout = self.policy.actor.allowed.device, window.sample(newest=1, others=0)
        places = rollout.places().to(device)
        rollout = rollout.map(lambda x: x.to(device))
        x = self.policy.normalized(rollout.observation)
        value = self.value(self.front(x))[..., 0]
        ends = rollout.terminated, rollout.truncated
        g = advantages(rollout.reward.sum(-1), value, *ends, self.hp.gamma, self.hp.lam)
        # Not log_mu, because the normalization has changed since.
        mask = rollout.mask[:-1]
        old = log_prob_of(self.policy.actor(x[:-1], mask), rollout.action)
        return tuple(part.flatten(0, 1)[places] for part in (x[:-1], mask, rollout.action, old, g, g + value[:-1]))


def moved(indices: Sequence[Tensor], device: torch.device) -> Sequence[Tensor]:
    """Move indices, each (n,), to a device by one transfer."""
    return torch.cat(list(indices)).to(device).split([len(i) for i in indices]) if indices else ()


def clipped_loss(
    log_prob: Tensor,
    old: Tensor,
    g: Tensor,
    value: Tensor,
    target: Tensor,
    uncertainty: Tensor,
    eps: float,
    vf_coef: float,
    ent_coef: float,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Compute PPO's loss L of n choices, each argument (n,), and its terms; `old` is log pi_old(a|s)."""
    log_ratio = log_prob - old
    rho = log_ratio.exp()
    if len(g) > 1:
        g = (g - g.mean()) / (g.std() + 1e-8)
    actor_loss = -torch.minimum(rho * g, rho.clamp(1 - eps, 1 + eps) * g).mean()
    critic_loss = (value - target).square().mean()
    entropy_mean = uncertainty.mean()
    terms = {
        "train/actor_loss": actor_loss,
        "train/critic_loss": critic_loss,
        "train/approx_kl": (rho - 1 - log_ratio).mean(),  # unbiased and never negative
        "policy/entropy": entropy_mean,
    }
    loss = actor_loss + vf_coef * critic_loss - ent_coef * entropy_mean
    return loss, {name: term.detach() for name, term in terms.items()}
