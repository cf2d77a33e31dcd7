r"""A policy over factored discrete actions that learns through its own hard samples.

The critic is an advantage A(s, a) that is multilinear in the one-hot action, next to a state value V(s). Each training
step takes the newest rollouts and some of the window, and for all of them, with pi the current policy,

    g_t   = advantages by Retrace's truncated ratios pi / mu                                  (1606.02647, 1802.01561)
    critic: (A(s, a) - A(s, pi) - clip(g / S, +-4))^2 / 2 + (V(s) - (V_old + min(1, pi/mu) g))^2 / 2
    actor:  -E_z A(s, z) - ent_coef H(pi_theta) + beta KL(pi || pi_theta)

over minibatches. E_z A(s, z) and its gradient come from any estimator of the library: through a hard sample, by
enumeration, or by the score function. S is a running scale of g. Entropy and KL are exact, sums over factors. `beta`
is adapted to a KL of `kl_target`, which may fall to 0; beyond twice that the actor pauses until the next rollout.
`ent_coef` falls linearly to 0, or is adapted to an entropy target that falls to 0 (1812.05905 has a fixed target). The
expectation of A(s, .) under pi is A(s, pi), which centres the prediction.

    A(s, a) = sum_f h_f(s) . a_f + sum_{f < g} a_f^T W_fg(s) a_g,      a one-hot, (..., F, K)

On a function that is linear in each factor a straight-through gradient is exact in expectation (2304.08612, section 3),
and the expectation over independent factors is the function at their probabilities, A(s, pi).

A critic on concat(s, onehot) does not work here: its derivative at a corner of the simplex is not the difference
between two actions.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, final

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer

from taugrad.checks import check_count, check_counts, check_positive, check_share, require_finite
from taugrad.estimators import Enumeration, Estimator, STGumbelSoftmax, check_enumerable, check_estimator
from taugrad.nets import mlp
from taugrad.ops._torch import readable
from taugrad.ops.categorical import entropy, kl
from taugrad.ops.onehot import one_hot
from taugrad.rl.actor import Actor, Policy, check_trunk, log_prob_of, trunk
from taugrad.rl.algorithm import Agent, Algorithm, Clock
from taugrad.rl.returns import advantages
from taugrad.rl.rollouts import Window
from taugrad.rl.spaces import Sizes
from taugrad.schedules import Constant, Schedule, check_schedule

_CLIP = 4.0  # bound on an advantage, in units of its scale
_SCALE_MEMORY = 0.99
_BETA = 1.0, 0.03, 30.0  # coefficient of the KL penalty: at first, least, most
_BETA_FACTOR = 1.5
_ENT = 1e-3, 30.0  # factor that adapts ent_coef: least, most
_ENT_FACTOR = 1.05


@final
@dataclass(frozen=True)
class MultilinearActorCritic(Algorithm):
    """Hyperparameters of the actor-critic; ValueError if a number is out of range."""

    estimator: Estimator = field(default_factory=STGumbelSoftmax)  # estimator of the actor's gradient
    tau: Schedule = field(default_factory=lambda: Constant(1.0))  # temperature, over environment steps
    hidden: Sequence[int] = (64, 64)  # sizes of the hidden layers of actor, advantage and value
    trunk: str = "mlp"  # or "conv", for pictures
    pairwise: bool = False  # terms of the critic for pairs of factors
    newest: int = 6  # rollouts that every training step uses
    replayed: int = 12  # older ones that it draws from the window
    minibatches: int = 16  # optimizer steps of a training step
    batch_size: int = 192  # transitions of each
    gamma: float = 0.99  # discount
    lam: float = 0.95  # lambda of the traces
    ent_coef: float = 0.01  # coefficient of the entropy at the start
    ent_target: float | None = None  # entropy that ent_coef holds, a share of the largest, falling to 0; None: it falls
    kl_target: float = 0.02  # KL between the policies before and after a training step, nats
    kl_falls: bool = False  # let kl_target fall to 0 with the training
    actor_clip: float = 0.5  # largest norm of the actor's gradient
    critic_clip: float = 2.0  # largest norm of the critics' gradient
    normalize: bool = True  # observations by their running mean and variance

    changeable: ClassVar[tuple[str, ...]] = (
        *("estimator", "tau", "newest", "replayed", "minibatches", "batch_size", "gamma", "lam"),
        *("ent_coef", "ent_target", "kl_target", "kl_falls", "actor_clip", "critic_clip"),
    )

    def __post_init__(self) -> None:
        check_estimator(self.estimator)
        check_schedule("tau", self.tau)
        check_counts("hidden", self.hidden)
        check_trunk(self.trunk, self.hidden)
        for name in ("newest", "minibatches", "batch_size"):
            check_count(name, getattr(self, name))
        check_count("replayed", self.replayed, smallest=0)
        for name in ("kl_target", "actor_clip", "critic_clip"):
            check_positive(name, getattr(self, name))
        check_share("gamma", self.gamma)
        check_share("lam", self.lam)
        if self.ent_target is not None:
            check_share("ent_target", self.ent_target)
            check_positive("ent_coef", self.ent_coef)  # 0 adapts to nothing

    def build(self, sizes: Sizes) -> "MultilinearAgent":
        """Build the agent; ValueError if enumeration has too much to enumerate."""
        return MultilinearAgent(self, sizes)


class MultilinearAgent(Agent):
    """Actor, advantage and value, and the coefficients that are adapted while they learn."""

    def __init__(self, hp: MultilinearActorCritic, sizes: Sizes) -> None:
        super().__init__()
        factors = sizes.factors
        if isinstance(hp.estimator, Enumeration):
            check_enumerable(len(factors), max(factors))
        self.hp = hp
        front, features, hidden, unit = trunk(hp.trunk, sizes, hp.hidden)
        self.policy = Policy(Actor(features, factors, hidden, front), sizes.observation, hp.normalize, unit)
        self.front = trunk(hp.trunk, sizes, hp.hidden).front  # first layers of advantage and value
        self.advantage = Advantage(features, factors, hidden, hp.pairwise)
        self.value = mlp(features, hidden, 1, "ReLU", layer_norm=True)
        self.scale = nn.Buffer(torch.zeros(()))
        self.beta = nn.Buffer(torch.tensor(_BETA[0]))
        self.ent_factor = nn.Buffer(torch.ones(()))

    def improve(self, window: Window, optimizer: Optimizer, clock: Clock) -> dict[str, Tensor]:
        """Make optimizer steps on minibatches of the newest rollouts and of older ones."""
        hp = self.hp
        x, mask, old, a, g, target = self._targets(window)
        if len(x) == 0:  # rollouts of nothing but resets
            return {}
        pi = old.softmax(-1)
        tau, ent_coef = hp.tau(clock.steps), self.ent_coef(clock)
        kl_target = hp.kl_target * (clock.remaining if hp.kl_falls else 1)
        critics = [*self.front.parameters(), *self.advantage.parameters(), *self.value.parameters()]
        terms: dict[str, Tensor] = {}
        loss = gain = uncertainty = divergence = torch.zeros(())
        rests = False
        for i in minibatches(len(x), hp.minibatches, hp.batch_size, x.device):
            features = self.front(x[i])
            h, w = self.advantage(features)
            loss = self.critic_loss(h, w, self.value(features)[:, 0], pi[i], a[i], g[i], target[i])
            terms["train/critic_loss"] = loss.detach()
            if not rests:
                gain, uncertainty, divergence = self.actor_terms(x[i], mask[i], h.detach(), w.detach(), old[i], tau)
                terms |= {"train/actor_loss": -gain, "policy/entropy": uncertainty, "train/approx_kl": divergence}
                rests = bool(divergence > 2 * kl_target)
            if not rests:
                loss = loss - gain - ent_coef * uncertainty + self.beta * divergence
            if readable(loss):
                require_finite("actor and critic", loss, clock.steps, tau)
            optimizer.zero_grad()
            loss.backward()
            clip_grad_norm_(critics, hp.critic_clip)
            clip_grad_norm_(self.policy.actor.parameters(), hp.actor_clip)
            optimizer.step()
        require_finite("actor and critic", loss, clock.steps, tau)  # after one that is not finite none is
        self._adapt_beta(terms["train/approx_kl"], kl_target)
        self._adapt_entropy(terms["policy/entropy"], mask.sum(-1).log().sum(-1).mean().item(), clock)
        terms |= {"train/ent_coef": torch.tensor(ent_coef), "policy/tau": torch.tensor(tau), "train/beta": self.beta}
        return {name: term.detach() for name, term in terms.items()}

    def critic_loss(
        self, h: Tensor, w: Tensor, value: Tensor, pi: Tensor, a: Tensor, g: Tensor, target: Tensor
    ) -> Tensor:
        """Half the squared errors of the advantage and of the value, for one-hot actions `a` of pi, each (B, ...)."""
        predicted = multilinear(a, h, w) - multilinear(pi, h, w)
        return 0.5 * ((predicted - g).square().mean() + (value - target).square().mean())

    def actor_terms(
        self, x: Tensor, mask: Tensor, h: Tensor, w: Tensor, old: Tensor, tau: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """E_z A(s, z) by the estimator, H(pi_theta) and KL(pi || pi_theta), means over observations x (B, D)."""
        logits = self.policy.actor(x, mask)
        gain = self.hp.estimator.expectation(lambda z: multilinear(z, h, w), logits, tau, generator=None).mean()
        return gain, entropy(logits).sum(-1).mean(), kl(old, logits).sum(-1).mean()

    def ent_coef(self, clock: Clock) -> float:
        """Coefficient of the entropy: adapted if there is a target, else falling to 0 linearly in the clock."""
        return self.hp.ent_coef * (clock.remaining if self.hp.ent_target is None else self.ent_factor.item())

    @torch.no_grad()
    def _targets(self, window: Window) -> tuple[Tensor, ...]:
        """Transitions: x (n, D), masks, logits of pi and one-hot actions (n, F, K), clip(g / S, +-4), V_old + rho g."""
        device, steps = self.scale.device, window.sample(self.hp.newest, self.hp.replayed)
        places = steps.places().to(device)
        steps = steps.map(lambda x: x.to(device))
        x = self.policy.normalized(steps.observation)
        mask = steps.mask[:-1]
        old, value = self.policy.actor(x[:-1], mask), self.value(self.front(x))[..., 0]
        ratio = (log_prob_of(old, steps.action) - steps.log_mu).exp()
        ends = steps.terminated, steps.truncated
        g = advantages(steps.reward.sum(-1), value, *ends, self.hp.gamma, self.hp.lam, ratio)
        if len(places):
            spread = g.flatten()[places].square().mean().sqrt()
            self.scale.copy_(torch.maximum(spread, _SCALE_MEMORY * self.scale + (1 - _SCALE_MEMORY) * spread))
        target = value[:-1] + ratio.clamp_max(1) * g
        clipped = (g / self.scale.clamp_min(1e-8)).clamp(-_CLIP, _CLIP)
        parts = x[:-1], mask, old, one_hot(steps.action, old), clipped, target
        return tuple(part.flatten(0, 1)[places] for part in parts)

    def _adapt_beta(self, divergence: Tensor, target: float) -> None:
        """Raise `beta` if the policy moved further than `target`, else lower it."""
        factor = _BETA_FACTOR if divergence > target else 1 / _BETA_FACTOR
        self.beta.mul_(factor).clamp_(*_BETA[1:])

    def _adapt_entropy(self, uncertainty: Tensor, largest: float, clock: Clock) -> None:
        """Raise the coefficient if the policy's entropy is below the target, a share of the largest, else lower it."""
        if self.hp.ent_target is None:
            return
        target = self.hp.ent_target * clock.remaining * largest
        factor = _ENT_FACTOR if uncertainty < target else 1 / _ENT_FACTOR
        self.ent_factor.mul_(factor).clamp_(*_ENT)


def minibatches(n: int, count: int, size: int, device: torch.device | str = "cpu") -> Iterator[Tensor]:
    """Yield `count` sets of `size` indices below `n`; no index comes twice before all have come once.

    They are drawn on the CPU, and go to the device by one transfer.

    >>> [len(i) for i in minibatches(5, count=3, size=4)]
    [4, 4, 4]
    """
    passes = math.ceil(count * size / n)
    order = torch.cat([torch.randperm(n) for _ in range(passes)])
    yield from order[: count * size].to(device).split(size)


class Advantage(nn.Module):
    """Network of the coefficients h and W of A(s, .), for `multilinear`; W only if `pairwise`."""

    def __init__(self, observation_size: int, factors: Sequence[int], hidden: Sequence[int], pairwise: bool) -> None:
        super().__init__()
        F, K = len(factors), max(factors)
        pairs = F * (F - 1) // 2 if pairwise else 0  # without any the factors' contributions add up
        self.sizes = [F * K, pairs * K * K]
        self.shapes = [(F, K), (pairs, K, K)]
        self.net = mlp(observation_size, hidden, sum(self.sizes), "ReLU", layer_norm=True)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return h (..., F, K) and W (..., pairs, K, K) for observations (..., D)."""
        h, w = self.net(x).split(self.sizes, -1)
        return h.unflatten(-1, self.shapes[0]), w.unflatten(-1, self.shapes[1])


def multilinear(a: Tensor, h: Tensor, w: Tensor) -> Tensor:
    """Compute sum_f h_f . a_f + sum_{f < g} a_f^T W_fg a_g.

    Args:
        a: one-hot or probabilities, (*more, ..., F, K).
        h: (..., F, K).
        w: (..., F (F - 1) / 2, K, K), the pairs in the order of `torch.triu_indices`, or none, (..., 0, K, K).

    Returns:
        (*more, ...).

    >>> a, h = torch.eye(2), torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    >>> multilinear(a, h, torch.full((1, 2, 2), 10.0))
    tensor(15.)
    """
    value = (a * h).sum((-2, -1))
    if w.shape[-3] == 0:
        return value
    f, g = torch.triu_indices(a.shape[-2], a.shape[-2], offset=1, device=a.device)
    return value + ((w @ a[..., g, :, None]).squeeze(-1) * a[..., f, :]).sum((-2, -1))
