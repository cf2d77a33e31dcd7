"""Vector environments of gymnasium as tensors, with the reset transitions marked.

The contract: an environment that finished an episode resets on the *next* step, as gymnasium's vector environments do
by default. What that step returns, whatever the action, is the first observation of a new episode, and no transition of
the task: `valid` is False for it. The observation before it is the last one of the old episode, which a time-out
bootstraps from.
"""

from typing import Any, NamedTuple

import gymnasium
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from torch import Tensor

from taugrad._arguments import check_count
from taugrad.errors import ConfigError, DataError
from taugrad.rl.spaces import factors_of, observation_size, to_environment


class Step(NamedTuple):
    """What a step of E environments returns; `valid` is False where it only reset."""

    observation: Tensor  # (E, D)
    reward: Tensor  # (E,)
    terminated: Tensor  # (E,), bool
    truncated: Tensor  # (E,), bool
    valid: Tensor  # (E,), bool


def make(id: str, num_envs: int, **kwargs: Any) -> VectorEnv:  # gymnasium's own name
    """`num_envs` copies of the environment registered as `id`, by its own vectorized class where it has one.

    Raises:
        ConfigError: there is no such environment, or it lacks a package.

    >>> make("CartPole-v1", 2).single_action_space
    Discrete(2)
    """
    check_count("num_envs", num_envs)
    try:
        return gymnasium.make_vec(id, num_envs=num_envs, **kwargs)
    except (gymnasium.error.Error, ModuleNotFoundError) as error:
        raise ConfigError(f"env.make.id={id}: {error}") from error


class Environments:
    """E environments that take choices and give tensors.

    Args:
        env: a vector environment that resets on the next step.

    Raises:
        ConfigError: its spaces, or its way to reset, are not supported.
    """

    def __init__(self, env: VectorEnv) -> None:
        mode = env.metadata.get("autoreset_mode", AutoresetMode.NEXT_STEP)
        if mode is not AutoresetMode.NEXT_STEP:
            raise ConfigError(f"a vector environment must reset on the next step, autoreset_mode is {mode}")
        self.env = env
        self.num_envs = env.num_envs
        self.factors = factors_of(env.single_action_space)
        self.observation_size = observation_size(env.single_observation_space)
        self._resets = torch.zeros(self.num_envs, dtype=torch.bool)

    @property
    def reward_threshold(self) -> float | None:
        """The mean return from which on the environment counts as solved, if it has one."""
        own = getattr(self.env.unwrapped, "reward_threshold", None)
        return own if own is not None else getattr(self.env.spec, "reward_threshold", None)

    def reset(self, seed: int | None = None) -> Tensor:
        """The first observations, (E, D), of new episodes in all environments."""
        self._resets = torch.zeros(self.num_envs, dtype=torch.bool)
        return self._observation(self.env.reset(seed=seed)[0])

    def step(self, action: Tensor) -> Step:
        """One step with choices (E, F).

        Raises:
            DataError: an observation or reward is NaN or infinite.
        """
        given = to_environment(action, self.env.single_action_space)
        observation, reward, terminated, truncated, _ = self.env.step(given)
        ended = torch.from_numpy(np.asarray(terminated)), torch.from_numpy(np.asarray(truncated))
        valid, self._resets = ~self._resets, ended[0] | ended[1]
        rewards = torch.from_numpy(_finite("a reward", reward))
        return Step(self._observation(observation), rewards, *ended, valid)

    def picture(self) -> np.ndarray:
        """The first environment, (height, width, 3), uint8.

        Raises:
            ConfigError: it cannot be drawn, or lacks a package to do so.
        """
        try:
            drawn = self.env.render()
        except (gymnasium.error.Error, NotImplementedError) as error:
            raise ConfigError(f"this environment cannot be drawn: {error}") from error
        if drawn is None or drawn[0] is None:
            raise ConfigError("this environment cannot be drawn: it returns no picture")
        return np.asarray(drawn[0])

    def close(self) -> None:
        """Close the environments."""
        self.env.close()

    def _observation(self, observation: Any) -> Tensor:
        # A copy: many environments write each observation over the last.
        return torch.from_numpy(_finite("an observation", observation).copy()).view(self.num_envs, -1)


def _finite(name: str, values: Any) -> np.ndarray:
    """As float32.

    Raises:
        DataError: a value is NaN or infinite.
    """
    values = np.asarray(values, dtype=np.float32)
    if not np.isfinite(values).all():
        raise DataError(f"the environment returned {name} of {values[~np.isfinite(values)][0]}")
    return values
