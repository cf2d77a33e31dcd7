"""Vector environments of gymnasium as tensors, with the reset transitions marked.

The contract: an environment that finished an episode resets on the *next* step, as gymnasium's vector environments do
by default. That step returns the first observation of a new episode, whatever the action, and is no transition of the
task: `valid` is False for it. The observation before it is the last one of the old episode, and a time-out bootstraps
from it. An environment must declare this in its metadata; a step raises if the environment contradicts that, or returns
anything but a finite number for each environment.

An environment may give action masks (`taugrad.rl.masks`). One of N agents, whose observations, actions and masks are
joined to one of each, names them in `metadata["agents"]`, a tuple of `Part`, and gives `info["rewards"]`, (N,), and
`info["alive"]`, (N,): an agent that is not alive chooses nothing. An episode ends when no agent is left, or times out.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from torch import Tensor

from taugrad.checks import check_count
from taugrad.errors import ConfigError, DataError, TaugradError
from taugrad.rl.masks import KEY, allowed, has_mask, is_joint, method_of, of_info, of_observation, to_mask
from taugrad.rl.spaces import (
    Part,
    Sizes,
    factors_of,
    flat_observation,
    flat_space,
    observation_dtype,
    to_environment,
    unit_of,
)


class Seen(NamedTuple):
    """Observations, masks and living agents of E environments, N agents in each, 1 if not several."""

    observation: Tensor  # (E, D), float32 or float64: the environment's numbers, exactly
    mask: Tensor  # (E, F, K), bool: the choices that are allowed
    alive: Tensor  # (E, N), bool: the agents that choose


class Step(NamedTuple):
    """Result of a step of E environments; `valid` is False for a reset."""

    seen: Seen  # after the step
    reward: Tensor  # (E, N)
    terminated: Tensor  # (E,), bool
    truncated: Tensor  # (E,), bool
    valid: Tensor  # (E,), bool


def make(id: str, num_envs: int, **kwargs: Any) -> VectorEnv:  # gymnasium's own name
    """Make `num_envs` copies of the environment registered as `id`, by its own vectorized class if it has one.

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


def build(make: Callable[..., VectorEnv], num_envs: int, **options: Any) -> "Environments":
    """Wrap the environments that `make(num_envs=num_envs, **options)` returns.

    Raises:
        ConfigError: `make` failed, but for its own TypeError or ValueError, or what it returned is not supported.
    """
    try:
        env = make(num_envs=num_envs, **options)
    except (TaugradError, TypeError, ValueError):  # their messages are sentences about an argument
        raise
    except Exception as error:  # foreign code may raise anything
        raise ConfigError(f"env.make raised {type(error).__name__}: {error}") from error
    environments = Environments(env)
    if environments.num_envs != num_envs:
        raise ConfigError(f"env.make must return num_envs={num_envs} environments, got {environments.num_envs}")
    return environments


class Environments:
    """E environments that take choices and give tensors.

    Raises:
        ConfigError: `env` is no vector environment, or its spaces, or its way to reset, are not supported.
    """

    def __init__(self, env: VectorEnv) -> None:
        if not isinstance(env, VectorEnv):
            raise ConfigError(f"env.make must return a gymnasium.vector.VectorEnv, got {type(env).__name__}")
        _check_resets(env.metadata)
        self.env = env
        self.num_envs = env.num_envs
        factors = factors_of(env.single_action_space)
        flat = flat_space(env.single_observation_space)
        self._factors = factors
        agents = _agents_of(env.metadata, math.prod(flat.shape), factors)
        self.sizes = Sizes(flat.shape, factors, agents, unit_of(flat))
        self.observation_dtype = observation_dtype(flat)
        self._dtype = np.float32 if self.observation_dtype == torch.float32 else np.float64
        self._resets = np.zeros(self.num_envs, dtype=bool)
        self._masks, self._joint = self._find_masks(), False
        if self._masks is not None and is_joint(self._given(*self._first()), factors):
            if self.sizes.agents:
                raise ConfigError("several agents must have a mask for each factor, got one of joint actions")
            self.sizes, self._joint = self.sizes._replace(factors=(math.prod(factors),)), True
        self._owners = tuple(part.name for part in self.sizes.agents for _ in part.factors)
        self._free = allowed(self.sizes.factors).expand(self.num_envs, -1, -1)
        self._everyone = torch.ones(self.num_envs, len(self.sizes.parts), dtype=torch.bool)

    def _find_masks(self) -> Callable[[Any, Any], Any] | None:
        """Return the function from observation and info to the masks that are given; None if there are none."""
        if has_mask(self.env.single_observation_space):
            return lambda observation, info: of_observation(observation)
        method = method_of(self.env)
        if method is not None:
            return lambda observation, info: method()
        if KEY in self._first()[1]:
            return lambda observation, info: of_info(info)
        return None

    def _first(self) -> tuple[Any, dict[str, Any]]:
        """Reset the environments to see what they give."""
        try:
            observation, info = self.env.reset(seed=0)
        except TaugradError:
            raise
        except Exception as error:  # foreign code may raise anything
            raise _raised("reset", error) from error
        return observation, info if isinstance(info, Mapping) else {}

    @property
    def masked(self) -> bool:
        """True if the environments give action masks."""
        return self._masks is not None

    @property
    def reward_threshold(self) -> float | None:
        """Mean return from which the environment counts as solved, if it has one."""
        own = getattr(self.env.unwrapped, "reward_threshold", None)
        return own if own is not None else getattr(self.env.spec, "reward_threshold", None)

    def reset(self, seed: int | None = None) -> Seen:
        """Begin new episodes in all environments, and return what is seen first; errors as in `step`."""
        self._resets = np.zeros(self.num_envs, dtype=bool)
        try:
            observation, info = self.env.reset(seed=seed)
        except TaugradError:
            raise
        except Exception as error:  # foreign code may raise anything
            raise _raised("reset", error) from error
        return self._seen(observation, info, ended=self._resets)

    def step(self, action: Tensor) -> Step:
        """Make one step with choices (E, F).

        Raises:
            DataError: the environment raised, or resets in another way than it says, or an observation or reward is
                NaN, infinite or not one for each environment, or a mask is refused by `masks.to_mask`.
        """
        if self._joint:
            action = torch.stack(torch.unravel_index(action[:, 0], self._factors), -1)
        given = to_environment(action, self.env.single_action_space)
        try:
            observation, reward, terminated, truncated, info = self.env.step(given)
        except TaugradError:
            raise
        except Exception as error:  # foreign code may raise anything
            raise _raised("step", error) from error
        named = {"a termination": terminated, "a truncation": truncated}
        ends = [self._each(name, _copy(name, end, bool)) for name, end in named.items()]
        rewards = self._rewards(reward, info)
        reset, self._resets = self._resets, ends[0] | ends[1]
        if (self._resets & reset).any() or (isinstance(info, Mapping) and _SAME_STEP & info.keys()):
            raise DataError(
                "the environment does not reset on the next step, as its autoreset_mode says: it "
                "ended an episode in the step that was to begin one, or returned the final observation beside the next"
            )
        seen = self._seen(observation, info, ended=self._resets)
        return Step(seen, *map(torch.from_numpy, (rewards, *ends, ~reset)))

    def picture(self) -> np.ndarray:
        """Render the first environment, (height, width, 3), uint8; ConfigError if it cannot be, or lacks a package."""
        try:
            drawn = self.env.render()
        except Exception as error:  # foreign code may raise anything, such as that there is no display
            raise ConfigError(f"this environment cannot be rendered: {str(error) or type(error).__name__}") from error
        if drawn is None or drawn[0] is None:
            raise ConfigError("this environment cannot be rendered: it returns no picture")
        picture = np.asarray(drawn[0])
        if picture.ndim != 3:
            raise ConfigError(f"this environment cannot be rendered: its picture has shape {picture.shape}")
        return picture

    def close(self) -> None:
        """Close the environments."""
        self.env.close()

    def _seen(self, observation: Any, info: Any, ended: np.ndarray) -> Seen:
        mask, alive = self._free, self._everyone
        if self._masks is not None:
            mask = to_mask(self._given(observation, info), self.sizes.factors, ended, self._owners)
        elif isinstance(info, Mapping) and KEY in info:
            raise DataError(f"the environment gives info[{KEY!r}] in a step, but gave none when it was reset")
        if self.sizes.agents:
            alive = torch.from_numpy(self._of_agents("alive", info, bool))
        return Seen(self._observation(observation), mask, alive)

    def _given(self, observation: Any, info: Any) -> Any:
        """Return the masks as the environments give them."""
        assert self._masks is not None
        try:
            return self._masks(observation, info)
        except Exception as error:  # foreign code may raise anything
            raise _raised(KEY, error) from error

    def _observation(self, observation: Any) -> Tensor:
        flat = flat_observation(self.env.single_observation_space, observation)
        values = _finite("an observation", flat, self._dtype)
        E, D = self.num_envs, self.sizes.observation
        if values.size != E * D or (E > 1 and len(values) != E):
            shape = (E, *self.sizes.shape)
            raise DataError(f"the environment must return observations of shape {shape}, got {values.shape}")
        return torch.from_numpy(values).view(E, D)

    def _rewards(self, reward: Any, info: Any) -> np.ndarray:
        """Return the reward of each agent, (E, N); of one, the environment's own."""
        if self.sizes.agents:
            return _finite("a reward", self._of_agents("rewards", info, np.float64))
        return self._each("a reward", _finite("a reward", reward))[:, None]

    def _of_agents(self, key: str, info: Any, dtype: Any) -> np.ndarray:
        """Return what `info` has for each agent, (E, N)."""
        E, N = self.num_envs, len(self.sizes.agents)
        values = info.get(key) if isinstance(info, Mapping) else None
        if values is None or np.shape(values) != (E, N):
            raise DataError(f"the environment of {N} agents must give info[{key!r}] of shape ({N},) in every step")
        return _copy(key, values, dtype)

    def _each(self, name: str, values: np.ndarray) -> np.ndarray:
        """Reshape values, one for each environment, to (E,); a column is accepted."""
        if values.size != self.num_envs:
            each = f"{name} for each of its {self.num_envs}"
            raise DataError(f"the environment must return {each}, got shape {values.shape}")
        return values.reshape(self.num_envs)


_SAME_STEP = {"final_obs", "final_observation"}  # keys of info of environments that reset in an episode's last step


def _check_resets(metadata: Mapping[str, Any]) -> None:
    """Require that the mode, gymnasium's enum or its text, is to reset on the next step."""
    mode = metadata.get("autoreset_mode")
    text = str(getattr(mode, "value", mode)).rpartition(".")[-1]
    if mode is None:
        raise ConfigError(
            "a vector environment must reset on the next step and say so: "
            "metadata['autoreset_mode'] is missing, it must be AutoresetMode.NEXT_STEP"
        )
    if text.replace("_", "").replace("-", "").lower() != AutoresetMode.NEXT_STEP.value.lower():
        raise ConfigError(f"a vector environment must reset on the next step, autoreset_mode is {mode}")


def _agents_of(metadata: Mapping[str, Any], numbers: int, factors: tuple[int, ...]) -> tuple[Part, ...]:
    """Return the agents that the environment names; ConfigError unless their parts are all of the spaces, in order."""
    parts = metadata.get("agents") or ()
    if parts and not (
        isinstance(parts, (tuple, list))
        and all(isinstance(part, Part) and part.observation > 0 and len(part.factors) > 0 for part in parts)
        and sum(part.observation for part in parts) == numbers
        and tuple(n for part in parts for n in part.factors) == factors
        and len({part.name for part in parts}) == len(parts)
    ):
        raise ConfigError(
            "metadata['agents'] must hold a Part for each agent, of distinct names, whose observations add up to "
            f"{numbers} numbers and whose factors are {factors} in order, got {parts}"
        )
    return tuple(parts)


def _raised(method: str, error: Exception) -> DataError:
    return DataError(f"the environment's {method} raised {type(error).__name__}: {error} (debug=true shows where)")


def _copy(name: str, values: Any, dtype: Any) -> np.ndarray:
    """Copy values, because many environments write each step over the last; DataError if they are no numbers."""
    try:
        with np.errstate(over="ignore"):
            return np.asarray(values).astype(dtype)
    except (TypeError, ValueError) as error:
        raise DataError(f"the environment must return {name} of numbers: {error}") from error


def _finite(name: str, values: Any, dtype: Any = np.float32) -> np.ndarray:
    """Copy values; DataError if one is not finite in float32, in which networks compute."""
    numbers = _copy(name, values, np.float32)
    if not (finite := np.isfinite(numbers)).all():
        raise DataError(f"the environment returned {name} of {np.asarray(values)[~finite][0]}")
    return numbers if dtype == np.float32 else _copy(name, values, dtype)
