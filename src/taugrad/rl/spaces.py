"""Spaces of a policy: observations of numbers, actions of discrete factors, and which agent of several has which part.

An observation that is no Box or MultiBinary is flattened as gymnasium flattens it: a Discrete becomes a one-hot, the
parts of a Dict (in the order of their keys) and of a Tuple are joined.
"""

import math
from collections.abc import Iterable
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from gymnasium import Space
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Tuple
from gymnasium.spaces.utils import flatten, flatten_space
from gymnasium.vector.utils import batch_space, iterate
from torch import Tensor

from taugrad.errors import ConfigError
from taugrad.rl.masks import KEY, has_mask


class Part(NamedTuple):
    """Numbers of the observation that one agent sees, and factors of the action that it chooses, in order."""

    name: str
    observation: int  # numbers
    factors: tuple[int, ...]  # number of choices of each


class Sizes(NamedTuple):
    """Sizes of observations and actions, from which an algorithm builds its networks.

    >>> sizes = Sizes((10, 10, 4), (6,))
    >>> sizes.observation, sizes.parts
    (400, (Part(name='agent', observation=400, factors=(6,)),))
    """

    shape: tuple[int, ...]  # shape of an observation before it is flattened
    factors: tuple[int, ...]  # number of choices of each factor of an action
    agents: tuple[Part, ...] = ()  # one entry for each of several agents
    unit: float = 1.0  # the largest number, for pictures of integers

    @property
    def observation(self) -> int:
        """Length D of a flattened observation."""
        return math.prod(self.shape)

    @property
    def parts(self) -> tuple[Part, ...]:
        """The agents; one that has all if there are not several."""
        return self.agents or (Part("agent", self.observation, self.factors),)


def factors_of(space: Space) -> tuple[int, ...]:
    """Return the number of choices of each factor of an action.

    Discrete is one factor, MultiDiscrete and MultiBinary have one for each entry, a Tuple has those of all its parts.

    Raises:
        ConfigError: the space is another, or has no factor.

    >>> factors_of(Discrete(4)), factors_of(MultiDiscrete([2, 3])), factors_of(Tuple([Discrete(4), MultiBinary(2)]))
    ((4,), (2, 3), (4, 2, 2))
    """
    factors = None
    if isinstance(space, Discrete):
        factors = (int(space.n),)
    elif isinstance(space, MultiDiscrete):
        factors = tuple(int(n) for n in space.nvec.flat)
    elif isinstance(space, MultiBinary):
        factors = (2,) * math.prod(space.shape)
    elif isinstance(space, Tuple):
        factors = tuple(n for part in space for n in factors_of(part))
    if not factors:
        raise ConfigError(
            "a policy's actions must be Discrete, MultiDiscrete, MultiBinary or a Tuple of them, "
            f"the environment's are {space}"
        )
    return factors


def to_environment(action: Tensor, space: Space) -> Any:
    """Convert choices (E, F), counted from 0, to an action of E environments whose single action is of `space`.

    >>> to_environment(torch.tensor([[0], [2]]), Discrete(3, start=-1))
    array([-1,  1])
    """
    if isinstance(space, Tuple):
        parts = action.cpu().split([len(factors_of(part)) for part in space], 1)
        return tuple(to_environment(a, part) for a, part in zip(parts, space, strict=True))
    choices = action.cpu().numpy().reshape(len(action), *(space.shape or ()))
    return choices.astype(space.dtype) + getattr(space, "start", 0)  # some environments require their dtype


def observed(space: Space) -> Space:
    """Return the space of an observation without its action mask; the only part of a Dict stands for itself.

    >>> observed(Dict({"observation": Box(0, 1, (6, 7)), "action_mask": MultiBinary(7)}))
    Box(0.0, 1.0, (6, 7), float32)
    """
    if not (isinstance(space, Dict) and (has_mask(space) or len(space) == 1)):
        return space
    rest = {key: part for key, part in space.spaces.items() if key != KEY}
    # A list, because `Dict` would sort a dict's keys.
    return next(iter(rest.values())) if len(rest) == 1 else Dict(list(rest.items()))


def flat_space(space: Space) -> Box | MultiBinary:
    """Return the space of what the networks get of observations of `space`, a mask left out.

    Raises:
        ConfigError: the space or a part of it is another, or it is empty, or has a mask alone or deeper in it.

    >>> flat_space(Box(0, 1, (10, 10, 4))).shape, flat_space(Dict({"a": Discrete(3), "b": MultiBinary(2)})).shape
    ((10, 10, 4), (5,))
    """
    if has_mask(space) and len(cast(Dict, space)) == 1:
        raise ConfigError(f"a policy's observations must hold more than the {KEY}, the environment's are {space}")
    seen = observed(space)
    if _hides_mask(seen):
        raise ConfigError(f"the {KEY} must stand at the top of a Dict observation, the environment's are {space}")
    if _is_of_numbers(seen):
        flat = seen if isinstance(seen, (Box, MultiBinary)) else flatten_space(seen)
        if isinstance(flat, (Box, MultiBinary)) and math.prod(flat.shape) > 0:
            return flat
    raise ConfigError(
        "a policy's observations must be Box, MultiBinary, Discrete, MultiDiscrete, or a Dict or Tuple of them, "
        f"the environment's are {space}"
    )


def _parts_of(space: Space) -> Iterable[Space]:
    return space.values() if isinstance(space, Dict) else space if isinstance(space, Tuple) else ()


def _hides_mask(space: Space) -> bool:
    return has_mask(space) or any(map(_hides_mask, _parts_of(space)))


def _is_of_numbers(space: Space) -> bool:
    """Return whether flattened numbers of `space` mean something: gymnasium would number the letters of a Text too."""
    if isinstance(space, (Dict, Tuple)):
        return len(space) > 0 and all(map(_is_of_numbers, _parts_of(space)))
    return isinstance(space, (Box, MultiBinary, Discrete, MultiDiscrete))


def flat_observation(space: Space, observation: Any) -> Any:
    """Return observations of E environments, each of `space`, flattened to (E, ...), a mask left out."""
    space, observation = _without_mask(space, observation)
    if isinstance(space, (Box, MultiBinary)):
        return observation
    E = len(_leaf(observation))
    return np.stack([np.asarray(flatten(space, x)) for x in iterate(batch_space(space, E), observation)])


def unit_of(space: Space) -> float:
    """Return the largest number of pictures of integers, such as 255, and 1 for other spaces.

    >>> unit_of(Box(0, 255, (84, 84), np.uint8)), unit_of(Box(0, 255, (84, 84))), unit_of(Box(0, 255, (9,), np.uint8))
    (255.0, 1.0, 1.0)
    """
    if isinstance(space, Box) and len(space.shape) > 1 and np.issubdtype(space.dtype, np.integer):
        return max(1.0, float(space.high.max()))
    return 1.0


def flat_one(space: Space, observation: Any) -> Any:
    """Return one observation of `space`, flattened if it is no array, a mask left out.

    >>> space = Dict({"hand": Discrete(3), "action_mask": MultiBinary(2)})
    >>> flat_one(space, {"hand": 1, "action_mask": [1, 0]})
    array([0, 1, 0])
    """
    space, observation = _without_mask(space, observation)
    return observation if isinstance(space, (Box, MultiBinary)) else np.asarray(flatten(space, observation))


def _without_mask(space: Space, observation: Any) -> tuple[Space, Any]:
    seen = observed(space)
    if seen is space:
        return space, observation
    rest = {key: value for key, value in observation.items() if key != KEY}
    return seen, rest if len(rest) > 1 else next(iter(rest.values()))


def _leaf(observation: Any) -> Any:
    while isinstance(observation, (dict, tuple)):
        observation = next(iter(observation.values())) if isinstance(observation, dict) else observation[0]
    return observation


def observation_dtype(space: Space) -> torch.dtype:
    """Return the dtype that holds every observation of `space` exactly: float32, or float64 if needed.

    >>> observation_dtype(Box(0, 255, (84, 84), np.uint8)), observation_dtype(Box(0, 1, (2,), np.float64))
    (torch.float32, torch.float64)
    """
    return torch.float32 if np.can_cast(space.dtype, np.float32) else torch.float64  # pyright: ignore[reportArgumentType]
