r"""Several agents, each with its own actor, and critics that see everything: MADDPG for discrete actions (1706.02275).

Agent i chooses a_i by pi_i(. | x_i) from its own observation. Its critic knows all observations x = (x_1, ..., x_N) and
all actions. Single transitions are drawn from a replay of the last rollouts; with target networks (primed), which
follow by Polyak averaging,

    critic: (Q_i(x, a) - y_i)^2 / 2,      y_i = r_i / S + gamma (1 - terminated_i) Q_i'(x', a')
    actor:  -E_{z_i ~ pi_i} Q_i(x, z_i, a_-i) + logit_coef |logits|^2 - ent_coef H(pi_i)

E_{z_i} and its gradient come from any estimator of the library: through a hard sample, by enumeration, or by the score
function. There are two critics, which also differ in where other agents' actions come from:

    concat        Q_i(x, a) = mlp(x, a)                      a' sampled from the target actors, a_-i from the replay
    multilinear   Q_i(x, a) = V_i(x) + sum_f h_f . a_f + sum_{f < g} a_f^T W_fg a_g      a' = pi'(x'), a_-i = pi_-i(x)

Actions are one-hot, joined over agents. `concat` is the paper's. `multilinear` has h_i(x) and W_i(x) from a network of
x. Its expectation over independent choices is its value at their probabilities. So its target has no noise of a', and
its actor's gradient is the agent's credit, averaged exactly over what the others do *now*: for two agents with one
factor each the gradient is that of E_{a ~ pi} Q_i(x, a), where the replay's a_-i are of older policies. It holds
interactions of pairs alone. For one factor an agent it is linear in z_i, so that every straight-through gradient is
exact in expectation (2304.08612).

S is the root mean square of all rewards so far, or 1; `ent_coef` falls linearly to 0. An agent that is not alive has
action zero and no loss. The first `learning_starts` steps only fill the replay; the actors' first logits are near zero,
so that they act nearly uniformly.

Relatives: 2302.11793 compares straight-through estimators in MADDPG, for the concat critic. 2506.16608 trains a critic
on the parameters of the action's distribution; the multilinear critic at the probabilities is one, whose form makes it
consistent with sampled actions. 2006.07869 has the usual benchmarks.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal, final

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer

from taugrad.checks import check_count, check_counts, check_positive, check_share, require_finite
from taugrad.errors import ConfigError
from taugrad.estimators import Enumeration, Estimator, STGumbelSoftmax, check_enumerable, check_estimator
from taugrad.ops._torch import readable
from taugrad.ops.categorical import entropy
from taugrad.ops.gumbel import gumbel_max
from taugrad.ops.onehot import one_hot
from taugrad.rl.actor import Policy
from taugrad.rl.algorithm import Agent, Algorithm, Clock
from taugrad.rl.multilinear import multilinear
from taugrad.rl.rollouts import Transitions, Window
from taugrad.rl.several import Actors, Layout, networks
from taugrad.rl.spaces import Sizes
from taugrad.schedules import Constant, Schedule, check_schedule

Q = Callable[[Tensor], Tensor]  # joint actions (*more, B, N or 1, F, K) to the values of N agents (*more, B, N)


@final
@dataclass(frozen=True)
class MADDPG(Algorithm):
    """Hyperparameters of MADDPG; ValueError if a number is out of range."""

    estimator: Estimator = field(default_factory=STGumbelSoftmax)  # estimator of the actors' gradients
    tau: Schedule = field(default_factory=lambda: Constant(1.0))  # temperature, over environment steps
    critic: Literal["concat", "multilinear"] = "multilinear"  # form of Q(x, a)
    shared: bool = False  # one actor and one critic for all agents, told which agent it is
    hidden: Sequence[int] = (64, 64)  # sizes of the hidden layers of actors and critics
    learning_starts: int = 2_000  # environment steps before the first update
    updates: int = 32  # optimizer steps after a rollout
    batch_size: int = 128  # transitions of each
    gamma: float = 0.95  # discount
    polyak: float = 0.02  # share of the networks that goes into the target networks at each update
    logit_coef: float = 1e-3  # coefficient of the mean square of the logits
    ent_coef: float = 0.05  # coefficient of the entropy at the start; it falls to 0
    actor_clip: float = 0.5  # largest norm of the actors' gradient
    critic_clip: float = 2.0  # largest norm of the critics' gradient
    normalize: bool = False  # observations by their running mean and variance
    normalize_rewards: bool = True  # rewards by the root of their mean square

    changeable: ClassVar[tuple[str, ...]] = (
        *("estimator", "tau", "learning_starts", "updates", "batch_size", "gamma", "polyak"),
        *("logit_coef", "ent_coef", "actor_clip", "critic_clip"),
    )

    def __post_init__(self) -> None:
        if self.critic not in CRITICS:
            raise ValueError(f"critic must be one of {', '.join(CRITICS)}, got {self.critic!r}")
        check_estimator(self.estimator)
        check_schedule("tau", self.tau)
        check_counts("hidden", self.hidden)
        check_count("learning_starts", self.learning_starts, smallest=0)
        for name in ("updates", "batch_size"):
            check_count(name, getattr(self, name))
        for name in ("actor_clip", "critic_clip", "polyak"):
            check_positive(name, getattr(self, name))
        for name in ("gamma", "polyak"):
            check_share(name, getattr(self, name))

    def build(self, sizes: Sizes) -> "MADDPGAgent":
        """Build the agent; ValueError if `shared` agents differ, or enumeration has too much to enumerate."""
        return MADDPGAgent(self, sizes)


class ConcatCritic(nn.Module):
    """Networks Q_i of N agents on the joined observation and the joined one-hot actions."""

    exact = False  # its value at probabilities is not its expectation

    def __init__(self, sizes: Sizes, hidden: Sequence[int], shared: bool) -> None:
        super().__init__()
        F, K, N = len(sizes.factors), max(sizes.factors), len(sizes.parts)
        self.net = networks([sizes.observation + F * K] * N, hidden, [1] * N, "ReLU", layer_norm=True, shared=shared)
        self.agents = N

    def at(self, x: Tensor) -> Q:
        """Return Q(x, .) of observations x, (B, D)."""

        def q(a: Tensor) -> Tensor:
            a = a.flatten(-2).expand(*a.shape[:-3], self.agents, -1)
            return self.net(torch.cat([x[:, None].expand(*a.shape[:-1], -1), a], -1))[..., 0]

        return q


class MultilinearCritic(nn.Module):
    """Networks of V_i, h_i and W_i of N agents on the joined observation."""

    exact = True  # its value at probabilities is its expectation

    def __init__(self, sizes: Sizes, hidden: Sequence[int], shared: bool) -> None:
        super().__init__()
        F, K, N = len(sizes.factors), max(sizes.factors), len(sizes.parts)
        pairs = F * (F - 1) // 2
        self.sizes, self.shapes = [1, F * K, pairs * K * K], [(F, K), (pairs, K, K)]
        outputs = [sum(self.sizes)] * N
        self.net = networks([sizes.observation] * N, hidden, outputs, "ReLU", layer_norm=True, shared=shared)
        self.agents = N

    def at(self, x: Tensor) -> Q:
        """Return Q(x, .) of observations x, (B, D)."""
        v, h, w = self.net(x[:, None].expand(-1, self.agents, -1)).split(self.sizes, -1)
        h, w = h.unflatten(-1, self.shapes[0]), w.unflatten(-1, self.shapes[1])
        return lambda a: v[..., 0] + multilinear(a, h, w)


CRITICS = {"concat": ConcatCritic, "multilinear": MultilinearCritic}


class MADDPGAgent(Agent):
    """Actors and critics of all agents, and their target networks, which no optimizer moves."""

    def __init__(self, hp: MADDPG, sizes: Sizes) -> None:
        super().__init__()
        self.hp = hp
        self.layout = Layout(sizes.parts)
        if isinstance(hp.estimator, Enumeration):
            check_enumerable(self.layout.rows, max(sizes.factors))
        self.policy = Policy(Actors(sizes.parts, hp.hidden, hp.shared), sizes.observation, hp.normalize)
        self.critic = CRITICS[hp.critic](sizes, hp.hidden, hp.shared)
        self.target_actor = copy.deepcopy(self.policy.actor).requires_grad_(False)
        self.target_critic = copy.deepcopy(self.critic).requires_grad_(False)
        self.rewards = nn.Buffer(torch.zeros((), dtype=torch.float64))  # number of them, and their mean square
        self.square = nn.Buffer(torch.ones((), dtype=torch.float64))

    def improve(self, window: Window, optimizer: Optimizer, clock: Clock) -> dict[str, Tensor]:
        """Make `updates` optimizer steps on transitions drawn from the window; none before `learning_starts`.

        Raises:
            ConfigError: the training ends before `learning_starts`.
        """
        hp = self.hp
        if hp.learning_starts >= clock.total:
            raise ConfigError(f"learning_starts must be below the {clock.total} steps of all, got {hp.learning_starts}")
        self._count_rewards(window)
        if clock.steps < hp.learning_starts:
            return {}
        device = self.square.device
        batch = Transitions(*(part.to(device) for part in window.draw(hp.updates * hp.batch_size)))
        if len(batch.action) == 0:  # rollouts of nothing but resets
            return {}
        tau, ent_coef = hp.tau(clock.steps), hp.ent_coef * clock.remaining
        actors, critics = list(self.policy.actor.parameters()), list(self.critic.parameters())
        loss, terms = torch.zeros(()), {}
        for i in torch.arange(len(batch.action), device=device).split(hp.batch_size):
            actor_loss, critic_loss, terms = self.losses(Transitions(*(part[i] for part in batch)), tau, ent_coef)
            loss = actor_loss + critic_loss
            if readable(loss):
                require_finite("actor and critic", loss, clock.steps, tau)
            optimizer.zero_grad()
            actor_loss.backward(inputs=actors)  # and not to the critics
            critic_loss.backward(inputs=critics)
            clip_grad_norm_(actors, hp.actor_clip)
            clip_grad_norm_(critics, hp.critic_clip)
            optimizer.step()
            self._follow()
        require_finite("actor and critic", loss, clock.steps, tau)  # after one that is not finite none is
        return terms | {"policy/tau": torch.tensor(tau), "train/ent_coef": torch.tensor(ent_coef)}

    def losses(self, batch: Transitions, tau: float, ent_coef: float) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Compute the losses of actors and critics, means over living agents, and terms to log."""
        hp, layout, alive = self.hp, self.layout, batch.alive
        x = self.policy.normalized(batch.observation)
        q = self.critic.at(x)
        logits = self.policy.actor(x, batch.mask)
        a = layout.living(one_hot(batch.action, logits), alive)
        critic_loss = 0.5 * _mean((q(a[:, None]) - self.targets(batch)).square(), alive)
        others = layout.living(logits.detach().softmax(-1), alive) if self.critic.exact else a
        gain = hp.estimator.expectation(
            lambda z: q(layout.replaced(others, z)), layout.split(logits), tau, generator=None
        )
        uncertainty = layout.sums(entropy(logits))
        squares = logits.masked_fill(~batch.mask, 0.0).square().sum(-1) / batch.mask.sum(-1)
        penalty = hp.logit_coef * layout.sums(squares) - ent_coef * uncertainty
        gain = _mean(gain, alive)
        terms = {
            "train/actor_loss": -gain,
            "train/critic_loss": critic_loss,
            "policy/entropy": _mean(uncertainty, alive),
        }
        return _mean(penalty, alive) - gain, critic_loss, {name: term.detach() for name, term in terms.items()}

    @torch.no_grad()
    def targets(self, batch: Transitions) -> Tensor:
        """Compute y_i, (B, N)."""
        x = self.policy.normalized(batch.next_observation)
        logits = self.target_actor(x, batch.next_mask)
        a = logits.softmax(-1) if self.target_critic.exact else gumbel_max(logits)
        value = self.target_critic.at(x)(self.layout.living(a, batch.next_alive)[:, None])
        scale = self.square.sqrt().clamp_min(1e-4).float() if self.hp.normalize_rewards else 1.0
        return batch.reward / scale + self.hp.gamma * torch.where(batch.terminated, 0.0, value)

    @torch.no_grad()
    def _count_rewards(self, window: Window) -> None:
        """Take the newest rollout's rewards into their mean square."""
        newest = window.sample(newest=1, others=0)
        squares = newest.reward[newest.valid[..., None] & newest.alive[:-1]].double().square()
        if len(squares):
            self.rewards += len(squares)
            self.square.lerp_(squares.mean().to(self.square.device), len(squares) / self.rewards)

    @torch.no_grad()
    def _follow(self) -> None:
        """Move the target networks towards the networks."""
        for target, source in ((self.target_actor, self.policy.actor), (self.target_critic, self.critic)):
            for slow, fast in zip(target.parameters(), source.parameters(), strict=True):
                slow.lerp_(fast, self.hp.polyak)


def _mean(values: Tensor, alive: Tensor) -> Tensor:
    """Mean of (B, N) over living agents."""
    return (values * alive).sum() / alive.sum().clamp_min(1)
