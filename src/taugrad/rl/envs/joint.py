"""Several agents as one policy: observations concatenated, actions one joint action, rewards added.

This is for environments of cooperating agents whose observation and action spaces are tuples over agents, such as
level-based foraging (lbforaging) and robotic warehouses (rware).
"""

import functools
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete, MultiDiscrete, Tuple
from gymnasium.vector import SyncVectorEnv, VectorEnv
from gymnasium.wrappers import TimeLimit

from taugrad.checks import check_count
from taugrad.errors import ConfigError


class Joint(gymnasium.Wrapper[np.ndarray, Any, Any, Any]):
    """Wrapper that shows all agents of `env` as one.

    Raises:
        ConfigError: the spaces are not tuples of flat boxes and of Discrete.
    """

    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        super().__init__(env)
        seen, actions = env.observation_space, env.action_space
        if not (
            isinstance(seen, Tuple)
            and isinstance(actions, Tuple)
            and all(isinstance(space, Box) and len(space.shape) == 1 for space in seen)
            and all(isinstance(space, Discrete) for space in actions)
        ):
            raise ConfigError(f"agents must see a flat Box and choose from a Discrete each, got {seen} and {actions}")
        low, high = (np.concatenate([getattr(space, end) for space in seen]) for end in ("low", "high"))
        self.observation_space = Box(low, high, dtype=low.dtype)
        n, start = ([int(getattr(space, name)) for space in actions] for name in ("n", "start"))
        self.action_space = MultiDiscrete(n, start=start)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        """Begin a new episode; gymnasium's interface."""
        observation, info = self.env.reset(seed=seed, options=options)
        return np.concatenate(observation), info

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        """Make one step of all agents; gymnasium's interface."""
        observation, reward, terminated, truncated, info = self.env.step(tuple(int(a) for a in action))
        rewards = np.asarray(reward, dtype=float)  # one for each agent
        over, late = bool(np.all(terminated)), bool(np.all(truncated))  # one value for all agents, or one for each
        return np.concatenate(observation), float(rewards.sum()), over, late, info


def make(id: str, num_envs: int, time_limit: int | None = None) -> VectorEnv:  # gymnasium's own name
    """Make `num_envs` copies of a registered environment of several agents, each shown as one agent.

    Its `id` is package:name, such as lbforaging:Foraging-8x8-2p-3f-v3. An episode ends after `time_limit` steps, for an
    environment without a limit of its own.

    Raises:
        ConfigError: there is no such environment, or it lacks a package.
    """
    check_count("num_envs", num_envs)
    try:
        return SyncVectorEnv([functools.partial(_one, id, time_limit)] * num_envs)
    except (gymnasium.error.Error, ModuleNotFoundError) as error:
        raise ConfigError(f"env.make.id={id}: {error}") from error


def _one(id: str, time_limit: int | None) -> gymnasium.Env[np.ndarray, np.ndarray]:
    env = Joint(gymnasium.make(id, disable_env_checker=True))  # the checker expects one reward, not one for each agent
    return TimeLimit(env, time_limit) if time_limit else env
