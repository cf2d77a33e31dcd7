r"""A contextual bandit over factored actions whose best action is known.

    r(x, a) = (sum_f u_f(x)[a_f] + sum_f W_f[a_f, a_{f+1}]) / c,     u_f(x) = M_f x,     x ~ N(0, I)

with M and W drawn once, standard normal, and c such that E_x max_a r(x, a) = 1. Neighbouring factors interact, so that
the best choice of one depends on the next; the best joint action of all K^F is found exactly along the chain (Viterbi).
A policy that chooses it gets 1 a decision on average, one that chooses at random 0.
"""

from typing import Any

import numpy as np
from gymnasium.spaces import Box, MultiDiscrete
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from taugrad.checks import check_count

_CONTEXTS = 10_000  # behind the mean of the best rewards


class FactoredBandit(VectorEnv):
    """E bandits with shared rewards; each has contexts of its own, D numbers, new at every decision.

    An action has F `factors` with K `choices` each. A time-out ends an episode after so many `decisions`. The `seed` is
    that of M and W.

    >>> bandit = FactoredBandit(num_envs=2, factors=8, choices=6)
    >>> x, _ = bandit.reset(seed=0)
    >>> bandit.rewards(x, bandit.best(x)).shape
    (2,)
    """

    metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP, "render_modes": []}  # noqa: RUF012  # gymnasium's interface

    def __init__(
        self,
        num_envs: int,
        factors: int = 8,
        choices: int = 6,
        context_size: int = 4,
        decisions: int = 100,
        seed: int = 0,
    ) -> None:
        counts = {"num_envs": num_envs, "factors": factors, "choices": choices, "context_size": context_size}
        for name, value in (counts | {"decisions": decisions}).items():
            check_count(name, value)
        self.num_envs, self.decisions = num_envs, decisions
        random = np.random.default_rng(seed)
        self.M = random.standard_normal((factors, choices, context_size))
        self.W = random.standard_normal((factors - 1, choices, choices))
        contexts = random.standard_normal((_CONTEXTS, context_size))
        self.scale = 1.0
        self.scale = float(self.rewards(contexts, self.best(contexts)).mean())
        self.single_observation_space = Box(-np.inf, np.inf, (context_size,), np.float32)
        self.single_action_space = MultiDiscrete([choices] * factors)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)

    def rewards(self, x: np.ndarray, a: np.ndarray) -> np.ndarray:
        """Compute r(x, a), (n,), for contexts (n, D) and choices (n, F)."""
        u = np.einsum("fkd,nd->nfk", self.M, x)
        own = np.take_along_axis(u, a[:, :, None], 2).sum((1, 2))
        pairs = self.W[np.arange(len(self.W)), a[:, :-1], a[:, 1:]].sum(1)
        return (own + pairs) / self.scale

    def best(self, x: np.ndarray) -> np.ndarray:
        """Find the best choices (n, F) for contexts (n, D)."""
        u = np.einsum("fkd,nd->nfk", self.M, x)
        value, came_from = u[:, 0], []
        for f, W in enumerate(self.W, start=1):
            both = value[:, :, None] + W
            came_from.append(both.argmax(1))
            value = both.max(1) + u[:, f]
        a = [value.argmax(1)]
        for previous in reversed(came_from):
            a.append(np.take_along_axis(previous, a[-1][:, None], 1)[:, 0])
        return np.stack(a[::-1], 1)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        """Draw new contexts; gymnasium's interface."""
        super().reset(seed=seed)
        self._made = np.zeros(self.num_envs, dtype=np.int64)
        self._resets = np.zeros(self.num_envs, dtype=bool)
        return self._draw(), {}

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict]:
        """Make one decision each with actions (E, F); gymnasium's interface."""
        reward = np.where(self._resets, 0.0, self.rewards(self._x, np.asarray(actions))).astype(np.float32)
        self._made = np.where(self._resets, 0, self._made + 1)
        truncated = self._made >= self.decisions
        self._resets = truncated
        return self._draw(), reward, np.zeros_like(truncated), truncated, {}

    def _draw(self) -> np.ndarray:
        self._x = self.np_random.standard_normal((self.num_envs, self.M.shape[-1])).astype(np.float32)
        return self._x
