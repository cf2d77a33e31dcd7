r"""A policy over factored discrete actions that learns through its own hard samples.

The critic is an advantage that is multilinear in the one-hot action, A(s, a), beside a state value V(s). Each training
step takes the newest rollouts and some of the window, and for all of them, with pi the policy as it stands,

    g_t   = advantages by Retrace's truncated ratios pi / mu                                  (1606.02647, 1802.01561)
    critic: (A(s, a) - A(s, pi) - clip(g / S, +-4))^2 / 2 + (V(s) - (V_old + min(1, pi/mu) g))^2 / 2
    actor:  -E_z A(s, z) - ent_coef H(pi_theta) + beta KL(pi || pi_theta)

over minibatches. E_z A(s, z) and its gradient come from any estimator of the library: through a hard sample, by
enumeration, or by the score function. S is a running scale of g. Entropy and KL are exact, sums over factors. beta is
adapted to a KL of `kl_target`; past twice of it the actor rests until the next rollout. ent_coef falls linearly to 0,
or is adapted to an entropy that does (1812.05905, where the target is fixed). On A(s, .) the expectation is A(s, pi)
itself, which centres the prediction.

A critic that takes concat(s, onehot) does not work here: its derivative at a corner of the simplex is not the
difference between two actions.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from taugrad.checks import check_count, check_positive, check_share
from taugrad.config import instantiate
from taugrad.estimators import Enumeration, Estimator, check_enumerable
from taugrad.nets import mlp
from taugrad.ops.categorical import entropy, kl
from taugrad.ops.onehot import one_hot
from taugrad.rl.actor import Actor, Advantage, multilinear
from taugrad.rl.returns import advantages
from taugrad.schedules import Schedule
from taugrad.training.policies import Acting, log_prob_of
from taugrad.training.task import require_finite

_CLIP = 4.0  # of an advantage, in units of its scale
_SCALE_MEMORY = 0.99
_BETA = 1.0, 0.03, 30.0  # of the KL penalty: at first, least, most
_BETA_FACTOR = 1.5
_ENT = 1e-3, 30.0  # of the factor that adapts ent_coef: least, most
_ENT_FACTOR = 1.05


class Policy(Acting):
    """The policy; its parts are given as configs, which is what a checkpoint can hold safely.

    Args:
        env: see `Acting`, as for all arguments not named here.
        hidden: sizes of the hidden layers of actor, advantage and value.
        pairwise: whether the critic has terms for pairs of factors.
        estimator: config of the estimator of the actor's gradient.
        tau: config of the temperature's schedule, over environment steps.
        newest: rollouts that every training step uses.
        replayed: older ones that it draws from the window.
        minibatches: optimizer steps of a training step.
        batch_size: transitions of each.
        gamma: discount.
        lam: lambda of the traces.
        ent_coef: coefficient of the entropy at the start.
        ent_target: the entropy that the coefficient is adapted to at the start, as a share of the uniform policy's; it
            falls linearly to 0. None: the coefficient itself does.
        kl_target: the KL between the policies before and after a training step, nats.
        actor_clip: largest norm of the actor's gradient.
        critic_clip: largest norm of the critics' gradient.

    Raises:
        ValueError: a number is out of range, or enumeration has too much to enumerate.
        ConfigError: the environment's spaces are not supported.
    """

    changeable: ClassVar[tuple[str, ...]] = (
        *Acting.changeable,
        *("estimator", "tau", "newest", "replayed", "minibatches", "ent_target", "kl_target"),
        *("actor_clip", "critic_clip"),
    )

    def __init__(
        self,
        env: Mapping[str, Any],
        num_envs: int,
        rollout_steps: int,
        window: int,
        max_env_steps: int,
        seed: int,
        optimizer: Mapping[str, Any],
        lr_factor: Mapping[str, Any],
        evaluation_every: int,
        evaluation_episodes: int,
        test_episodes: int,
        hidden: Sequence[int],
        pairwise: bool,
        estimator: Mapping[str, Any],
        tau: Mapping[str, Any],
        newest: int,
        replayed: int,
        minibatches: int,
        batch_size: int,
        gamma: float,
        lam: float,
        ent_coef: float,
        ent_target: float | None,
        kl_target: float,
        actor_clip: float,
        critic_clip: float,
    ) -> None:
        shared = (max_env_steps, seed, optimizer, lr_factor, evaluation_every, evaluation_episodes, test_episodes)
        super().__init__(env, num_envs, rollout_steps, window, *shared)
        for name, value in {"newest": newest, "minibatches": minibatches, "batch_size": batch_size}.items():
            check_count(name, value)
        check_count("replayed", replayed, smallest=0)
        for name, value in {"kl_target": kl_target, "actor_clip": actor_clip, "critic_clip": critic_clip}.items():
            check_positive(name, value)
        check_share("gamma", gamma)
        check_share("lam", lam)
        if ent_target is not None:
            check_share("ent_target", ent_target)
            check_positive("ent_coef", ent_coef)  # 0 adapts to nothing
        self.save_hyperparameters(logger=False)
        self.estimator: Estimator = instantiate(estimator)
        if isinstance(self.estimator, Enumeration):
            check_enumerable(len(self.factors), max(self.factors))
        self.tau: Schedule = instantiate(tau)
        self.actor = Actor(self.observation_size, self.factors, hidden)
        self.advantage = Advantage(self.observation_size, self.factors, hidden, pairwise)
        self.value = mlp(self.observation_size, hidden, 1, "ReLU", layer_norm=True)
        self.scale: Tensor
        self.beta: Tensor
        self.ent_factor: Tensor
        self.register_buffer("scale", torch.zeros(()))
        self.register_buffer("beta", torch.tensor(_BETA[0]))
        self.register_buffer("ent_factor", torch.ones(()))
        self.newest, self.replayed, self.minibatches, self.batch_size = newest, replayed, minibatches, batch_size
        self.gamma, self.lam, self.kl_target = gamma, lam, kl_target
        self.ent_coef, self.ent_target = ent_coef, ent_target
        self.actor_clip, self.critic_clip = actor_clip, critic_clip

    def improve(self) -> dict[str, Tensor]:
        """Minibatches of the newest rollouts and of older ones."""
        x, old, a, g, target = self._targets()
        if len(x) == 0:  # rollouts of nothing but resets
            return {}
        pi = old.softmax(-1)
        optimizer, tau, ent_coef = self.optimizer_now(), self.current_tau(), self.current_ent_coef()
        critics = [*self.advantage.parameters(), *self.value.parameters()]
        terms: dict[str, Tensor] = {}
        gain = uncertainty = divergence = torch.zeros(())
        rests = False
        for i in minibatches(len(x), self.minibatches, self.batch_size):
            h, w = self.advantage(x[i])
            loss = self.critic_loss(h, w, self.value(x[i])[:, 0], pi[i], a[i], g[i], target[i])
            terms["train/critic_loss"] = loss.detach()
            if not rests:
                gain, uncertainty, divergence = self.actor_terms(x[i], h.detach(), w.detach(), old[i], tau)
                terms |= {"train/actor_loss": -gain, "policy/entropy": uncertainty, "train/approx_kl": divergence}
                rests = bool(divergence > 2 * self.kl_target)
            if not rests:
                loss = loss - gain - ent_coef * uncertainty + self.beta * divergence
            require_finite("actor and critic", loss, self.collector.env_steps, tau)
            optimizer.zero_grad()
            loss.backward()
            clip_grad_norm_(critics, self.critic_clip)
            clip_grad_norm_(self.actor.parameters(), self.actor_clip)
            optimizer.step()
        self._adapt_beta(terms["train/approx_kl"])
        self._adapt_entropy(terms["policy/entropy"])
        terms |= {"train/ent_coef": torch.tensor(ent_coef), "policy/tau": torch.tensor(tau), "train/beta": self.beta}
        return {name: term.detach() for name, term in terms.items()}

    def critic_loss(
        self, h: Tensor, w: Tensor, value: Tensor, pi: Tensor, a: Tensor, g: Tensor, target: Tensor
    ) -> Tensor:
        """The advantage's and the value's squared errors, halved, for one-hot actions a of pi, each (B, ...)."""
        predicted = multilinear(a, h, w) - multilinear(pi, h, w)
        return 0.5 * ((predicted - g).square().mean() + (value - target).square().mean())

    def actor_terms(self, x: Tensor, h: Tensor, w: Tensor, old: Tensor, tau: float) -> tuple[Tensor, Tensor, Tensor]:
        """E_z A(s, z) by the estimator, H(pi_theta) and KL(pi || pi_theta), means over observations x (B, D)."""
        logits = self.actor(x)
        gain = self.estimator.expectation(lambda z: multilinear(z, h, w), logits, tau, generator=None).mean()
        return gain, entropy(logits).sum(-1).mean(), kl(old, logits).sum(-1).mean()

    def current_tau(self) -> float:
        """The schedule's at the clock."""
        return self.tau(self.collector.env_steps)

    def current_ent_coef(self) -> float:
        """What it was adapted to, or without a target linear in the clock, down to 0."""
        return self.ent_coef * (self._remaining() if self.ent_target is None else self.ent_factor.item())

    @torch.no_grad()
    def _targets(self) -> tuple[Tensor, ...]:
        """Of the transitions: x (n, D), logits of pi and one-hot actions (n, F, K), clip(g / S, +-4), V_old + rho g."""
        steps = self.window.sample(self.newest, self.replayed).map(lambda x: x.to(self.device))
        x = self.normalized(steps.observation)
        old, value = self.actor(x[:-1]), self.value(x)[..., 0]
        ratio = (log_prob_of(old, steps.action) - steps.log_mu).exp()
        ends = steps.terminated, steps.truncated
        g = advantages(steps.reward, value, *ends, self.gamma, self.lam, ratio)
        if steps.valid.any():
            spread = g[steps.valid].square().mean().sqrt()
            self.scale.copy_(torch.maximum(spread, _SCALE_MEMORY * self.scale + (1 - _SCALE_MEMORY) * spread))
        target = value[:-1] + ratio.clamp_max(1) * g
        clipped = (g / self.scale.clamp_min(1e-8)).clamp(-_CLIP, _CLIP)
        return tuple(part[steps.valid] for part in (x[:-1], old, one_hot(steps.action, old), clipped, target))

    def _adapt_beta(self, divergence: Tensor) -> None:
        """More penalty where the policy moved further than `kl_target`, less where it did not."""
        factor = _BETA_FACTOR if divergence > self.kl_target else 1 / _BETA_FACTOR
        self.beta.mul_(factor).clamp_(*_BETA[1:])

    def _adapt_entropy(self, uncertainty: Tensor) -> None:
        """More of it where the policy's entropy lies below the target, less where above."""
        if self.ent_target is None:
            return
        target = self.ent_target * self._remaining() * sum(map(math.log, self.factors))
        factor = _ENT_FACTOR if uncertainty < target else 1 / _ENT_FACTOR
        self.ent_factor.mul_(factor).clamp_(*_ENT)

    def _remaining(self) -> float:
        """The share of the training that is to come."""
        return max(0.0, 1 - self.collector.env_steps / self.max_env_steps)


def minibatches(n: int, count: int, size: int) -> Iterator[Tensor]:
    """`count` sets of `size` indices below n; none comes twice before all have come once.

    >>> [len(i) for i in minibatches(5, count=3, size=4)]
    [4, 4, 4]
    """
    passes = math.ceil(count * size / n)
    order = torch.cat([torch.randperm(n) for _ in range(passes)])
    yield from order[: count * size].split(size)
