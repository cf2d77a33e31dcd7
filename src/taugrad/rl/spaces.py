"""What spaces a policy takes: box-like observations, and actions of one or several discrete factors."""

import math

import numpy as np
from gymnasium import Space
from gymnasium.spaces import Box, Discrete, MultiBinary, MultiDiscrete
from torch import Tensor

from taugrad.errors import ConfigError


def factors_of(space: Space) -> tuple[int, ...]:
    """The number of choices of each factor of an action: Discrete is one factor, MultiDiscrete several.

    Raises:
        ConfigError: the space is neither.

    >>> factors_of(Discrete(4)), factors_of(MultiDiscrete([2, 3]))
    ((4,), (2, 3))
    """
    if isinstance(space, Discrete):
        return (int(space.n),)
    if isinstance(space, MultiDiscrete) and space.nvec.ndim == 1:
        return tuple(int(n) for n in space.nvec)
    raise ConfigError(f"a policy's actions must be Discrete or a flat MultiDiscrete, the environment's are {space}")


def observation_size(space: Space) -> int:
    """The length of an observation, flattened.

    Raises:
        ConfigError: the space is not a Box or MultiBinary.

    >>> observation_size(Box(0, 1, (10, 10, 4)))
    400
    """
    if isinstance(space, (Box, MultiBinary)):
        return math.prod(space.shape)
    raise ConfigError(f"a policy's observations must be Box or MultiBinary, the environment's are {space}")


def to_environment(action: Tensor, space: Space) -> np.ndarray:
    """Choices (E, F) as an action of E environments, whose single action is of `space`.

    >>> import torch
    >>> to_environment(torch.tensor([[0], [2]]), Discrete(3, start=-1))
    array([-1,  1])
    """
    choices = action.cpu().numpy()
    if isinstance(space, Discrete):
        return choices[:, 0] + space.start
    return choices + np.asarray(space.start)  # pyright: ignore[reportAttributeAccessIssue]
