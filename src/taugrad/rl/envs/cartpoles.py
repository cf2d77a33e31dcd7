"""K cart-poles that one joint action of K factors balances; an episode ends when the first pole falls."""

from typing import Any

import numpy as np
from gymnasium.envs.classic_control.cartpole import CartPoleVectorEnv
from gymnasium.spaces import Box, MultiDiscrete
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from taugrad.checks import check_count


class KCartPoles(VectorEnv):
    """E environments of K `poles` of gymnasium's each, stepped as one vector of E K.

    The reward is 1 a step while all poles stand, for at most 500 steps; the choices are push left and push right for
    every cart. A factor changes the reward only through its own pole, and the end of an episode does not show which
    pole fell.

    >>> KCartPoles(num_envs=2, poles=3).single_action_space
    MultiDiscrete([2 2 2])
    """

    metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP, "render_modes": []}  # noqa: RUF012  # gymnasium's interface
    reward_threshold = 475.0

    def __init__(self, num_envs: int, poles: int = 8) -> None:
        check_count("num_envs", num_envs)
        check_count("poles", poles)
        self.num_envs, self.poles = num_envs, poles
        self._carts = CartPoleVectorEnv(num_envs=num_envs * poles)
        one = self._carts.single_observation_space
        assert isinstance(one, Box)  # gymnasium's cart-pole
        self.single_observation_space = Box(np.tile(one.low, poles), np.tile(one.high, poles), dtype=np.float32)
        self.single_action_space = MultiDiscrete([2] * poles)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        """Begin new episodes in all environments; gymnasium's interface."""
        observation, info = self._carts.reset(seed=seed, options=options)
        return observation.reshape(self.num_envs, -1), info

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, Any, Any, Any, dict]:
        """Make one step with actions (E, K); gymnasium's interface."""
        resets = self._carts.prev_done.reshape(self.num_envs, -1).any(1)
        observation, _, fallen, late, info = self._carts.step(np.asarray(actions).reshape(-1))
        terminated = fallen.reshape(self.num_envs, -1).any(1)
        truncated = late.reshape(self.num_envs, -1).any(1) & ~terminated
        self._carts.prev_done = np.repeat(terminated | truncated, self.poles)  # all poles begin anew together
        return observation.reshape(self.num_envs, -1), (~resets).astype(np.float32), terminated, truncated, info
