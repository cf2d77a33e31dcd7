"""Spaces of a policy: box-like observations, and actions of one or several discrete factors."""

import math
from typing import Any

import numpy as np
import torch
from gymnasium import Space
from gymnasium.spaces import Box, Discrete, MultiBinary, MultiDiscrete, Tuple
from torch import Tensor

from taugrad.errors import ConfigError


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


def observation_size(space: Space) -> int:
    """Return the length of a flattened observation.

    Raises:
        ConfigError: the space is not a Box or MultiBinary, or empty.

    >>> observation_size(Box(0, 1, (10, 10, 4)))
    400
    """
    if isinstance(space, (Box, MultiBinary)) and math.prod(space.shape) > 0:
        return math.prod(space.shape)
    raise ConfigError(f"a policy's observations must be Box or MultiBinary, the environment's are {space}")


def observation_dtype(space: Space) -> torch.dtype:
    """Return the dtype that holds every observation of `space` exactly: float32, or float64 if needed.

    >>> observation_dtype(Box(0, 255, (84, 84), np.uint8)), observation_dtype(Box(0, 1, (2,), np.float64))
    (torch.float32, torch.float64)
    """
    return torch.float32 if np.can_cast(space.dtype, np.float32) else torch.float64  # pyright: ignore[reportArgumentType]
