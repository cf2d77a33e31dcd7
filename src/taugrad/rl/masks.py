"""Action masks of vector environments: where an environment gives them, and in which shape.

An environment may give the choices that are allowed in its present state in three places, searched in this order:

    observation["action_mask"]     of a Dict observation
    action_masks()                 a method, of each environment or of the vector of them, as sb3-contrib calls it
    info["action_mask"]            of reset and of every step

A mask is 1 or True for what is allowed. For F factors of n_1, ..., n_F choices it is one array of n_1 + ... + n_F
numbers in the factors' order, or a tuple of arrays, nested as the `sample` of the action's space takes it: a mask for
each factor. Or it is an array of shape (n_1, ..., n_F): a mask of joint actions, which independent factors cannot keep
to, so that the action is then one factor of n_1 n_2 ... n_F choices.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from gymnasium import Space
from gymnasium.spaces import Dict
from gymnasium.vector import VectorEnv, VectorWrapper
from torch import Tensor

from taugrad.errors import ConfigError, DataError

KEY = "action_mask"
METHOD = "action_masks"


def allowed(factors: Sequence[int]) -> Tensor:
    """Return the mask (F, K), bool, of all choices that there are.

    >>> allowed((2, 3)).int()
    tensor([[1, 1, 0],
            [1, 1, 1]], dtype=torch.int32)
    """
    return torch.arange(max(factors)) < torch.tensor(factors)[:, None]


def has_mask(space: Space) -> bool:
    """Return whether observations of `space` carry a mask.

    >>> from gymnasium.spaces import Box, MultiBinary
    >>> has_mask(Dict({"board": Box(0, 1, (6, 7)), "action_mask": MultiBinary(7)})), has_mask(Box(0, 1, (7,)))
    (True, False)
    """
    return isinstance(space, Dict) and KEY in space.spaces


def method_of(env: VectorEnv) -> Callable[[], Any] | None:
    """Return the function that gives the masks of E environments by a method of theirs; None if they have none.

    Raises:
        ConfigError: some environments have the method and some do not.
    """
    while True:
        own = getattr(env, METHOD, None)
        if own is not None:
            return own if callable(own) else functools.partial(getattr, env, METHOD)
        if not isinstance(env, VectorWrapper):
            break
        env = env.env  # a wrapper of vectors, unlike one of environments, passes no method on
    if not hasattr(env, "call"):  # of gymnasium's own vectors of separate environments
        return None
    have = env.call("has_wrapper_attr", METHOD)  # pyright: ignore[reportAttributeAccessIssue]
    if any(have) and not all(have):
        raise ConfigError(f"all environments must have the method {METHOD}, or none: {sum(have)} of {len(have)} do")
    return functools.partial(env.call, METHOD) if all(have) else None  # pyright: ignore[reportAttributeAccessIssue]


def of_observation(observation: Any) -> Any:
    """Return the masks in observations of E environments, each a Dict.

    >>> of_observation({"action_mask": (np.array([[1], [0]]), np.array([[0, 1], [1, 1]]))})
    [(array([1]), array([0, 1])), (array([0]), array([1, 1]))]
    """
    return _each(observation[KEY])


def _each(batch: Any) -> Any:
    """Turn a tuple of batches, nested however deep, as gymnasium has it, into a batch of tuples."""
    return list(zip(*map(_each, batch), strict=True)) if isinstance(batch, tuple) else batch


def of_info(info: Any) -> Any:
    """Return the masks in the info of E environments, None for one that gave none.

    >>> of_info({"action_mask": np.array([[1, 1], [0, 0]]), "_action_mask": np.array([True, False])})
    [array([1, 1]), None]
    """
    masks, given = (info.get(key) if isinstance(info, Mapping) else None for key in (KEY, f"_{KEY}"))
    if masks is None or given is None or np.all(given):
        return masks
    return [mask if there else None for mask, there in zip(masks, given, strict=True)]


def is_joint(masks: Any, factors: Sequence[int]) -> bool:
    """Return whether masks of E environments are of joint actions.

    >>> is_joint(np.ones((4, 2, 3)), (2, 3)), is_joint(np.ones((4, 5)), (2, 3))
    (True, False)
    """
    one = next((mask for mask in masks if mask is not None), None) if hasattr(masks, "__iter__") else None
    return len(factors) > 1 and isinstance(one, np.ndarray) and one.shape == tuple(factors)


def to_mask(masks: Any, factors: Sequence[int], ended: np.ndarray, owners: Sequence[str] = ()) -> Tensor:
    """Return the mask (E, F, K), bool, of masks as E environments give them; K is the largest factor.

    Where an episode has just `ended`, (E,), there is nothing to choose: a mask that is missing or no mask, or a factor
    whose choices it forbids, counts as all allowed. `owners` names the agent of each factor, if there are several.

    Raises:
        DataError: a mask is missing, has another shape, other values than 0 and 1, or forbids all choices of a factor.

    >>> to_mask(np.array([[1, 0, 1, 1, 0]]), (2, 3), np.array([False])).int()
    tensor([[[1, 0, 0],
             [1, 1, 0]]], dtype=torch.int32)
    """
    F, K = len(factors), max(factors)
    exists = _exists(tuple(factors))
    whole = np.zeros((len(ended), F, K), dtype=bool)
    whole[:, exists] = _rows(masks, factors, ended)
    if not (some := whole.any(-1)).all():
        whole |= exists & (ended[:, None] & ~some)[..., None]
        if len(nothing := np.argwhere(~(some | ended[:, None]))):
            e, f = nothing[0]
            raise DataError(f"the environment's {KEY} forbids {_choices(f, F, owners)}, in environment {e}")
    return torch.from_numpy(whole)


def _choices(f: int, F: int, owners: Sequence[str]) -> str:
    """Name the choices of a factor."""
    if not owners:
        return f"every choice of factor {f}" if F > 1 else "every action"
    own = [g for g in range(F) if owners[g] == owners[f]]
    return (f"every choice of factor {own.index(f)}" if len(own) > 1 else "every action") + f" of agent {owners[f]}"


@functools.cache
def _exists(factors: tuple[int, ...]) -> np.ndarray:
    return allowed(factors).numpy()  # kept, for it takes as long as the rest of a step's mask


def _rows(masks: Any, factors: Sequence[int], ended: np.ndarray) -> np.ndarray:
    """Join masks of E environments, each of any accepted shape, to (E, n_1 + ... + n_F), bool."""
    E, width = len(ended), sum(factors)
    if masks is None:
        raise _missing()
    if isinstance(masks, Mapping) or not hasattr(masks, "__len__"):
        raise DataError(f"the environment must give an {KEY} for each of its {E} copies, got {type(masks).__name__}")
    if E == 1 and len(masks) and np.isscalar(masks[0]):  # a single environment may return bare numbers
        masks = [masks]
    if len(masks) != E:
        raise DataError(f"the environment must give an {KEY} for each of its {E} copies, got {len(masks)}")
    if isinstance(masks, np.ndarray) and masks.dtype != object:
        rows = masks.reshape(E, -1)
    else:
        rows = [_last(mask, width) if over else _row(mask) for mask, over in zip(masks, ended, strict=True)]
    if any(len(row) != width for row in rows):
        wrong = next(e for e in range(E) if len(rows[e]) != width)
        shapes = f"({width},)" if len(factors) == 1 else f"({width},), a mask for each of {len(factors)} factors"
        mask = masks[wrong]
        told = f"a {type(mask).__name__} of {len(rows[wrong])}" if isinstance(mask, (tuple, list)) else np.shape(mask)
        raise DataError(f"the environment's {KEY} must have shape {shapes}, got {told}")
    rows = np.asarray(rows)
    values = rows[~ended]
    if rows.dtype != bool and not (known := (values == 0) | (values == 1)).all():
        raise DataError(f"the environment's {KEY} must hold 0 and 1, got {values[~known][0]}")
    return rows == 1


def _row(mask: Any) -> np.ndarray:
    """Join the masks of an environment's factors, however deep they are nested."""
    if mask is None:
        raise _missing()
    if nested(mask):
        if any(part is None for part in mask):  # gymnasium's `sample` takes it for no mask
            raise DataError(f"the environment's {KEY} must have numbers for each of its parts, got None for one")
        return np.concatenate([_row(part) for part in mask])
    return np.ravel(np.asarray(mask))


def nested(mask: Any) -> bool:
    """Return whether a mask has parts, such as one for each factor.

    >>> nested([1, 0, 1]), nested([[1, 0], [1, 1]])
    (False, True)
    """
    return isinstance(mask, (tuple, list)) and any(hasattr(part, "__len__") for part in mask)


def _last(mask: Any, width: int) -> np.ndarray:
    """Join the masks of an environment whose episode has ended; all allowed if they are none."""
    try:
        row = _row(mask) == 1
    except DataError:
        return np.ones(width, dtype=bool)
    return row if len(row) == width else np.ones(width, dtype=bool)


def _missing() -> DataError:
    return DataError(f"the environment gave no {KEY} in a step, but gives them: one is needed in every step")
