"""Several agents as one policy: their observations side by side, their actions one joint action, their rewards added.

For environments whose observation and action spaces are tuples over agents, such as level-based foraging (lbforaging)
and robotic warehouses (rware), which work together.
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
    """One policy for all agents of `env`.

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
        """A new episode; gymnasium's interface."""
        observation, info = self.env.reset(seed=seed, options=options)
        return np.concatenate(observation), info

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        """One step of all agents; gymnasium's interface."""
        observation, reward, terminated, truncated, info = self.env.step(tuple(int(a) for a in action))
        rewards = np.asarray(reward, dtype=float)  # one of each agent
        over, late = bool(np.all(terminated)), bool(np.all(truncated))  # one for all agents, or one of each
        return np.concatenate(observation), float(rewards.sum()), over, late, info


def make(id: str, num_envs: int, time_limit: int | None = None) -> VectorEnv:  # gymnasium's own name
    """`num_envs` copies of a registered environment of several agents, as one policy's.

    Args:
        id: package:name, such as lbforaging:Foraging-8x8-2p-3f-v3.
        num_envs: E.
        time_limit: steps after which an episode ends, where the environment has no limit itself.

    Raises:
        ConfigError: there is no such environment, or it lacks a package.
    """
    check_count("num_envs", num_envs)
    try:
        return SyncVectorEnv([functools.partial(_one, id, time_limit)] * num_envs)
    except (gymnasium.error.Error, ModuleNotFoundError) as error:
        raise ConfigError(f"env.make.id={id}: {error}") from error


def _one(id: str, time_limit: int | None) -> gymnasium.Env[np.ndarray, np.ndarray]:
    env = Joint(gymnasium.make(id, disable_env_checker=True))  # which expects one reward, not one of each agent
    return TimeLimit(env, time_limit) if time_limit else env
