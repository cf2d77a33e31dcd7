"""Several agents shown as one environment: observations, choices and masks joined, rewards kept apart.

The agents come from an environment with the parallel interface of PettingZoo, or from one of gymnasium whose spaces are
tuples over agents, such as level-based foraging (lbforaging) and robotic warehouses (rware). Of N agents, in the order
of `possible_agents`,

    observation        the flattened observations one after the other; zeros for an agent that is not alive
    action             the factors of the actions one after the other; only living agents get theirs
    reward             the sum of the agents' rewards
    info["rewards"]    (N,), float64: the reward of each; 0 for an agent that was not alive
    info["alive"]      (N,), bool: the agents that choose next
    info["action_mask"]     if an agent has a mask: all of them joined; agents without one may choose everything

An episode ends when no agent is left. It is truncated if time ran out for an agent that was left, which then still
counts as alive, and terminated otherwise. An agent that ends before its episode does has terminated.
"""

import importlib
import os
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import gymnasium
import numpy as np
from gymnasium import Space
from gymnasium.spaces import Box, Discrete, MultiDiscrete, Tuple
from gymnasium.vector import SyncVectorEnv, VectorEnv
from gymnasium.wrappers import TimeLimit

from taugrad.checks import check_count
from taugrad.errors import ConfigError, DataError
from taugrad.extras import extra
from taugrad.rl.envs.processes import Processes
from taugrad.rl.masks import KEY, has_mask, nested
from taugrad.rl.spaces import Part, factors_of, flat_one, flat_space

_EXTRAS = {"mpe2": "mpe", "pettingzoo": "pettingzoo", "lbforaging": "foraging", "rware": "rware"}


class _Agent(NamedTuple):
    """An agent's spaces, and its places in what is joined."""

    name: str
    sees: Space
    chooses: Space
    numbers: slice  # its part of the observation
    factors: slice  # its part of the action
    choices: slice  # its part of the mask


class Joint(gymnasium.Env[np.ndarray, np.ndarray]):
    """Environment that shows all agents of `env` as one; `metadata["agents"]` names their parts.

    Raises:
        ConfigError: `env` has no parallel interface and no spaces that are tuples over agents, or an agent's spaces are
            not supported.
        DataError: in a step: an agent is unknown, or its observation, its reward or its mask is missing or has another
            size than its space says. After a reset also: there is no agent.
    """

    def __init__(self, env: Any) -> None:
        self.env = _Tuples(env) if isinstance(env, gymnasium.Env) else env
        _check_parallel(self.env)
        names, agents, parts, flat = list(self.env.possible_agents), [], [], []
        numbers = factors = choices = 0
        for name in names:
            sees, chooses = self.env.observation_space(name), self.env.action_space(name)
            try:
                flat.append(flat_space(sees))
                part = Part(str(name), int(np.prod(flat[-1].shape)), factors_of(chooses))
            except ConfigError as error:
                raise ConfigError(f"agent {name}: {error}") from error
            ends = numbers + part.observation, factors + len(part.factors), choices + sum(part.factors)
            agents.append(_Agent(name, sees, chooses, *map(slice, (numbers, factors, choices), ends)))
            parts.append(part)
            numbers, factors, choices = ends
        self._agents, self._known = agents, frozenset(names)
        self._masked = any(has_mask(agent.sees) for agent in agents)
        self._gives: dict[Any, bool] = {}  # whether an agent's info has a mask
        self._alive, self._over = np.zeros((2, len(names)), dtype=bool)
        self._size = numbers
        self.action_space = MultiDiscrete([n for part in parts for n in part.factors])
        self.observation_space = _joined(flat)
        self.metadata = {**getattr(self.env, "metadata", {}), "agents": tuple(parts)}
        self.render_mode = getattr(self.env, "render_mode", None)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        """Begin a new episode; gymnasium's interface."""
        seen, info = self.env.reset(seed=seed, options=options)
        self._alive, self._over = self._listed(), np.zeros(len(self._agents), dtype=bool)
        if not self._alive.any():
            raise DataError("the environment's agents are none after its reset: an episode must begin with one")
        return self._shown(seen, info, np.zeros(len(self._agents)), last=False)

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        """Make one step of the living agents; gymnasium's interface."""
        given = {
            a.name: _choose(action[a.factors], a.chooses)
            for a, alive in zip(self._agents, self._alive, strict=True)
            if alive
        }
        seen, reward, terminated, truncated, info = self.env.step(given)
        rewards, late = np.zeros(len(self._agents)), np.zeros(len(self._agents), dtype=bool)
        left = self._listed()
        for i, agent in enumerate(self._agents):
            if agent.name not in given:
                continue
            if agent.name not in reward:
                raise DataError(f"the environment returned no reward of agent {agent.name}")
            rewards[i] = reward[agent.name]
            over, late[i] = bool(terminated.get(agent.name)), bool(truncated.get(agent.name))
            self._over[i] = over or late[i]
            late[i] &= not over
        left &= ~self._over  # some environments go on to list an agent that has ended
        ended = not left.any()
        self._alive = late if ended else left
        timeout = bool(ended and late.any())
        observation, info = self._shown(seen, info, rewards, last=ended)
        return observation, float(rewards.sum()), bool(ended and not timeout), timeout, info

    def render(self) -> Any:
        """Render the environment; gymnasium's interface."""
        return self.env.render()

    def close(self) -> None:
        """Close the environment; gymnasium's interface."""
        self.env.close()

    def _listed(self) -> np.ndarray:
        """Return which agents the environment lists as alive, (N,)."""
        listed = self.env.agents
        if unknown := [name for name in listed if name not in self._known]:
            raise DataError(f"agent {unknown[0]} appeared, which is not among the environment's possible_agents")
        return np.array([agent.name in listed for agent in self._agents])

    def _shown(
        self, seen: Mapping[Any, Any], info: Mapping[Any, Any], rewards: np.ndarray, last: bool
    ) -> tuple[np.ndarray, dict]:
        """Join what the living agents see; in an episode's `last` observation masks may be missing."""
        observation = np.zeros(self._size, self.observation_space.dtype)
        given = {}
        for agent, alive in zip(self._agents, self._alive, strict=True):
            if not alive:
                continue
            if agent.name not in seen:
                raise DataError(f"the environment returned no observation of agent {agent.name}")
            own = seen[agent.name]
            numbers, place = np.ravel(flat_one(agent.sees, own)), observation[agent.numbers]
            if numbers.size != place.size:
                raise DataError(f"agent {agent.name} must see {place.size} numbers, got {numbers.size}")
            place[:] = numbers
            mask = own[KEY] if has_mask(agent.sees) else (info.get(agent.name) or {}).get(KEY)
            if not last and self._gives.setdefault(agent.name, mask is not None) != (mask is not None):
                raise DataError(f"agent {agent.name} must have an {KEY} in every step or in none")
            if mask is not None:
                given[agent.name] = mask
        told = {"rewards": rewards, "alive": self._alive.copy()}
        self._masked |= bool(given)
        return observation, told | ({KEY: self._mask(given)} if self._masked else {})

    def _mask(self, given: Mapping[Any, Any]) -> np.ndarray:
        """Join the masks of the living agents that have one."""
        whole = np.ones(self._agents[-1].choices.stop)
        for agent in self._agents:
            if agent.name not in given:
                continue
            mask, place = given[agent.name], whole[agent.choices]
            row = _row(mask)
            if row.shape != place.shape:  # (2, 2), of joint choices of two factors, has 2 + 2 numbers too
                raise DataError(f"agent {agent.name}'s {KEY} must have shape {place.shape}, got {row.shape}")
            place[:] = row
        return whole


class _Tuples:
    """PettingZoo's parallel interface to an environment of gymnasium whose spaces are tuples over agents.

    One reward for all is the team's, which the agents share equally.
    """

    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        sees, chooses = env.observation_space, env.action_space
        if not (isinstance(sees, Tuple) and isinstance(chooses, Tuple) and len(sees) == len(chooses) > 0):
            raise ConfigError(
                f"an environment of several agents must have a Tuple of spaces, one for each, got {sees} and {chooses}"
            )
        self.env, self.metadata, self.render_mode = env, env.metadata, env.render_mode
        self.possible_agents = self.agents = [f"agent_{i}" for i in range(len(sees))]
        self._sees, self._chooses = (dict(zip(self.agents, spaces, strict=True)) for spaces in (sees, chooses))
        self.observation_space, self.action_space = self._sees.__getitem__, self._chooses.__getitem__
        self._first = {
            name: _choose(np.zeros(len(factors_of(space)), int), space) for name, space in self._chooses.items()
        }

    def reset(self, *, seed: int | None, options: dict[str, Any] | None) -> tuple[dict, dict]:
        observation, info = self.env.reset(seed=seed, options=options)
        self.agents = self.possible_agents
        return self._each("an observation", observation), self._masks(info)

    def step(self, given: Mapping[str, Any]) -> tuple[dict, dict, dict, dict, dict]:
        whole = tuple({**self._first, **given}.values())  # an agent that has ended does something too
        observation, reward, terminated, truncated, info = self.env.step(whole)
        rewards = self._numbers("a reward", reward, float)
        if np.asarray(reward).ndim == 0:  # the team's
            rewards = rewards / len(whole)
        ended = self._numbers("a termination", terminated, bool)
        late = self._numbers("a truncation", truncated, bool)
        over = ended | late
        self.agents = [name for name in self.agents if not over[self.possible_agents.index(name)]]
        seen, told = self._each("an observation", observation), self._masks(info)
        return seen, self._named(rewards), self._named(ended), self._named(late), told

    def render(self) -> Any:
        return self.env.render()

    def close(self) -> None:
        self.env.close()

    def _each(self, what: str, values: Any) -> dict[str, Any]:
        if not hasattr(values, "__len__") or len(values) != len(self.possible_agents):
            raise self._not_each(what, values)
        return self._named(values)

    def _named(self, values: Any) -> dict[str, Any]:
        return dict(zip(self.possible_agents, values, strict=True))

    def _numbers(self, what: str, values: Any, dtype: type) -> np.ndarray:
        """Return a number for each agent, (N,), of one for all or one for each."""
        numbers, N = np.asarray(values, dtype), len(self.possible_agents)
        if numbers.shape not in ((), (N,)):
            raise self._not_each(what, values)
        return np.broadcast_to(numbers, N)

    def _not_each(self, what: str, values: Any) -> DataError:
        return DataError(
            f"the environment must return {what} for each of its {len(self.possible_agents)} agents, got {values}"
        )

    def _masks(self, info: Any) -> dict[str, Any]:
        """Return the masks of `info`, if there are any, for each agent."""
        masks = info.get(KEY) if isinstance(info, Mapping) else None
        return {} if masks is None else {name: {KEY: mask} for name, mask in self._each(f"an {KEY}", masks).items()}


def _check_parallel(env: Any) -> None:
    """Require PettingZoo's parallel interface."""
    if hasattr(env, "agent_iter") or hasattr(env, "last"):
        raise ConfigError(
            f"agents must act at the same time, those of {type(env).__name__} take turns: give the environment's "
            "parallel_env, or convert it by pettingzoo.utils.conversions.aec_to_parallel"
        )
    needed = "possible_agents", "observation_space", "action_space", "reset", "step"
    if missing := [name for name in needed if not hasattr(env, name)]:
        raise ConfigError(f"an environment of several agents must have {missing[0]}, {type(env).__name__} has not")
    if not env.possible_agents:
        raise ConfigError("an environment of several agents must name them in possible_agents, which is empty")


def _row(mask: Any) -> np.ndarray:
    """Join an agent's mask if it is one for each factor; an array of another shape stays what it is."""
    return np.concatenate([_row(part) for part in mask]) if nested(mask) else np.asarray(mask)


def _joined(flat: list[Any]) -> Box:
    """Return the space of flattened observations one after the other, in the dtype that holds all."""
    dtype = np.result_type(*(space.dtype for space in flat))
    ends = [
        [np.ravel(getattr(s, end)) if isinstance(s, Box) else np.full(int(np.prod(s.shape)), v, s.dtype) for s in flat]
        for end, v in (("low", 0), ("high", 1))
    ]
    low, high = (np.concatenate(end).astype(dtype) for end in ends)
    return Box(low, high, dtype=dtype)  # pyright: ignore[reportArgumentType]


def _choose(choices: np.ndarray, space: Space) -> Any:
    """Convert an agent's choices (F,), counted from 0, to an action of `space`."""
    if isinstance(space, Tuple):
        parts = np.split(choices, np.cumsum([len(factors_of(part)) for part in space])[:-1])
        return tuple(_choose(a, part) for a, part in zip(parts, space, strict=True))
    if isinstance(space, Discrete):
        return int(choices[0]) + int(space.start)
    return choices.reshape(space.shape).astype(space.dtype) + getattr(space, "start", 0)


def make(
    id: str,  # gymnasium's own name
    num_envs: int,
    time_limit: int | None = None,
    processes: int = 1,
    **kwargs: Any,
) -> VectorEnv:
    """Make `num_envs` copies of an environment registered in gymnasium whose spaces are tuples over agents.

    Its `id` is package:name, such as lbforaging:Foraging-8x8-2p-3f-v3. An episode ends after `time_limit` steps, for an
    environment without a limit of its own. So many `processes` step the copies, this one included.

    Raises:
        ConfigError: there is no such environment, or it lacks a package, or its agents are not supported.
    """
    _import(id.partition(":")[0])
    _draw_without_screen(kwargs)
    one = partial(gymnasium.make, id, disable_env_checker=True, **kwargs)  # the checker expects one reward, not N
    try:
        return _vector(one, num_envs, time_limit, processes)
    except (gymnasium.error.Error, ModuleNotFoundError) as error:
        raise ConfigError(f"env.make.id={id}: {error}") from error


def make_parallel(
    id: str,
    num_envs: int,
    time_limit: int | None = None,
    processes: int = 1,
    **kwargs: Any,
) -> VectorEnv:
    """Make `num_envs` copies of the environment that `parallel_env(**kwargs)` of the module `id` returns.

    Such modules are mpe2.simple_spread_v3, those of PettingZoo, and your own. An episode ends after `time_limit` steps,
    for an environment without a limit of its own. So many `processes` step the copies, this one included.

    Raises:
        ConfigError: there is no such module, or it lacks a package or `parallel_env`, or its agents are not supported.
    """
    _import(id.partition(".")[0])
    _draw_without_screen(kwargs)
    try:
        module = importlib.import_module(id)
    except (ImportError, ValueError, TypeError) as error:  # no text, an empty one, one that begins with a dot
        raise ConfigError(f"env.make.id={id}: {error}") from error
    if not callable(getattr(module, "parallel_env", None)):
        raise ConfigError(
            f"env.make.id={id} has no parallel_env: agents that take turns must be made to act at the same time, "
            "such as by pettingzoo.utils.conversions.aec_to_parallel in a module of your own; a game of turns is for "
            f"env=connect_four env.make.id={id}"
        )
    return _vector(partial(_parallel, id, kwargs), num_envs, time_limit, processes)


def _parallel(id: str, kwargs: Mapping[str, Any]) -> Any:
    return importlib.import_module(id).parallel_env(**kwargs)


def _import(package: str) -> None:
    """Import a package that an extra installs, so that the error can name the extra."""
    if package in _EXTRAS:
        extra(package, _EXTRAS[package])


def _draw_without_screen(kwargs: Mapping[str, Any]) -> None:
    if kwargs.get("render_mode") == "rgb_array":
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # pygame would want a display for pictures in memory too


def _vector(one: Callable[[], Any], num_envs: int, time_limit: int | None, processes: int) -> VectorEnv:
    check_count("num_envs", num_envs)
    check_count("processes", processes)
    if time_limit is not None:
        check_count("time_limit", time_limit)
    several = partial(_several, one, time_limit)
    return several(num_envs) if processes == 1 else Processes(several, num_envs, processes)


def _several(one: Callable[[], Any], time_limit: int | None, n: int) -> VectorEnv:
    return SyncVectorEnv([partial(_one, one, time_limit)] * n)


def _one(one: Callable[[], Any], time_limit: int | None) -> gymnasium.Env[np.ndarray, np.ndarray]:
    env = Joint(one())
    return TimeLimit(env, time_limit) if time_limit else env
