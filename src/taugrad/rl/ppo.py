r"""Proximal policy optimization (1707.06347): the baseline, over the same factored actors and environments.

    L = -E min(rho A, clip(rho, 1 - eps, 1 + eps) A) + vf_coef (V(s) - G)^2 - ent_coef H(pi)
    rho = pi(a|s) / pi_old(a|s),   A by generalized advantage estimation, normalized over a minibatch

The joint probability of an action is the product over its factors. Every training step goes `epochs` times through the
rollout at hand. Entropy is exact.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from taugrad.checks import check_count, check_positive, check_share
from taugrad.nets import mlp
from taugrad.ops.categorical import entropy
from taugrad.rl.actor import Actor, orthogonal
from taugrad.rl.returns import advantages
from taugrad.training.policies import Acting, log_prob_of
from taugrad.training.task import require_finite


class PPO(Acting):
    """PPO with a clipped objective; its parts are given as configs, which is what a checkpoint can hold safely.

    Args:
        env: see `Acting`, as for all arguments not named here.
        hidden: sizes of the hidden layers of actor and value.
        epochs: passes over a rollout.
        batch_size: transitions of an optimizer step.
        gamma: discount.
        lam: lambda of the advantages.
        clip_range: eps, the schedule of the learning rate applies to it too.
        ent_coef: coefficient of the entropy.
        vf_coef: coefficient of the value's loss.
        max_grad_norm: largest norm of the gradient.

    Raises:
        ValueError: a number is out of range.
        ConfigError: the environment's spaces are not supported.
    """

    changeable: ClassVar[tuple[str, ...]] = (*Acting.changeable, "epochs", "clip_range", "vf_coef", "max_grad_norm")

    def __init__(
        self,
        env: Mapping[str, Any],
        num_envs: int,
        rollout_steps: int,
        max_env_steps: int,
        seed: int,
        optimizer: Mapping[str, Any],
        lr_factor: Mapping[str, Any],
        evaluation_every: int,
        evaluation_episodes: int,
        test_episodes: int,
        hidden: Sequence[int],
        epochs: int,
        batch_size: int,
        gamma: float,
        lam: float,
        clip_range: float,
        ent_coef: float,
        vf_coef: float,
        max_grad_norm: float,
        normalize: bool = False,
    ) -> None:
        shared = (max_env_steps, seed, optimizer, lr_factor, evaluation_every, evaluation_episodes, test_episodes)
        super().__init__(env, num_envs, rollout_steps, 1, *shared, normalize)
        check_count("epochs", epochs)
        check_count("batch_size", batch_size)
        check_positive("clip_range", clip_range)
        check_positive("max_grad_norm", max_grad_norm)
        check_share("gamma", gamma)
        check_share("lam", lam)
        self.save_hyperparameters(logger=False)
        self.actor = Actor(self.observation_size, self.factors, hidden)
        self.value = mlp(self.observation_size, hidden, 1, "Tanh")
        orthogonal(self.value, last_gain=1.0)
        self.epochs, self.batch_size, self.gamma, self.lam = epochs, batch_size, gamma, lam
        self.clip_range, self.ent_coef, self.vf_coef, self.max_grad_norm = clip_range, ent_coef, vf_coef, max_grad_norm

    def improve(self) -> dict[str, Tensor]:
        """Passes over the rollout in minibatches."""
        x, action, old, g, target = self._targets()
        if len(x) == 0:  # a rollout of nothing but resets
            return {}
        optimizer = self.optimizer_now()
        eps = self.clip_range * self.lr_factor(self.collector.env_steps)
        terms: dict[str, Tensor] = {}
        for _ in range(self.epochs):
            for i in torch.randperm(len(x)).split(self.batch_size):
                loss, terms = self.loss(x[i], action[i], old[i], g[i], target[i], eps)
                require_finite("PPO", loss, self.collector.env_steps)
                optimizer.zero_grad()
                loss.backward()
                clip_grad_norm_(self.parameters(), self.max_grad_norm)
                optimizer.step()
        return terms | {"train/ent_coef": torch.tensor(self.ent_coef)}

    def loss(
        self, x: Tensor, action: Tensor, old: Tensor, g: Tensor, target: Tensor, eps: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of transitions (B, ...), and its terms; `old` is log pi_old(a|s)."""
        logits = self.actor(x)
        log_ratio = log_prob_of(logits, action) - old
        rho = log_ratio.exp()
        if len(g) > 1:
            g = (g - g.mean()) / (g.std() + 1e-8)
        actor_loss = -torch.minimum(rho * g, rho.clamp(1 - eps, 1 + eps) * g).mean()
        critic_loss = (self.value(x)[:, 0] - target).square().mean()
        uncertainty = entropy(logits).sum(-1).mean()
        terms = {
            "train/actor_loss": actor_loss,
            "train/critic_loss": critic_loss,
            "train/approx_kl": (rho - 1 - log_ratio).mean(),  # unbiased and never negative
            "policy/entropy": uncertainty,
        }
        loss = actor_loss + self.vf_coef * critic_loss - self.ent_coef * uncertainty
        return loss, {name: term.detach() for name, term in terms.items()}

    @torch.no_grad()
    def _targets(self) -> tuple[Tensor, ...]:
        """Of the transitions: x (n, D), action (n, F), log pi_old (n,), advantage (n,), lambda-return (n,)."""
        rollout = self.window.sample(newest=1, others=0).map(lambda x: x.to(self.device))
        x = self.normalized(rollout.observation)
        value = self.value(x)[..., 0]
        g = advantages(rollout.reward, value, rollout.terminated, rollout.truncated, self.gamma, self.lam)
        old = log_prob_of(self.actor(x[:-1]), rollout.action)  # not log_mu: the normalization has moved since
        parts = x[:-1], rollout.action, old, g, g + value[:-1]
        return tuple(part[rollout.valid] for part in parts)
