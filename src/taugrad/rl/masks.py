"""Action masks of vector environments: where an environment gives them, and in which shape.

An environment may give the choices that are allowed in its present state in three places, searched in this order:

    observation["action_mask"]     of a Dict observation
    action_masks()                 a method, of each environment or of the vector of them, as sb3-contrib calls it
    info["action_mask"]            of reset and of every step

A mask is 1 or True for what is allowed. For F factors of n_1, ..., n_F choices it is one array of n_1 + ... + n_F
numbers in the factors' order, or a tuple of F arrays as `MultiDiscrete.sample` takes it: a mask for each factor. Or it
is an array of shape (n_1, ..., n_F): a mask of joint actions, which independent factors cannot keep to, so that the
action is then one factor of n_1 n_2 ... n_F choices.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from gymnasium import Space
from gymnasium.spaces import Dict
from gymnasium.vector import VectorEnv
from torch import Tensor

from taugrad.errors import DataError

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


def has_method(env: VectorEnv) -> bool:
    """Return whether `env`, or each environment in it, has the method `action_masks`."""
    if callable(getattr(env, METHOD, None)):
        return True
    if not hasattr(env, "call"):  # of gymnasium's own vectors of separate environments
        return False
    return all(env.call("has_wrapper_attr", METHOD))  # pyright: ignore[reportAttributeAccessIssue]


def by_method(env: VectorEnv) -> Any:
    """Return the masks of E environments that have the method."""
    own = getattr(env, METHOD, None)
    return own() if callable(own) else env.call(METHOD)  # pyright: ignore[reportAttributeAccessIssue]


def is_joint(masks: Any, factors: Sequence[int]) -> bool:
    """Return whether masks of E environments are of joint actions.

    >>> is_joint(np.ones((4, 2, 3)), (2, 3)), is_joint(np.ones((4, 5)), (2, 3))
    (True, False)
    """
    one = next((mask for mask in masks if mask is not None), None)
    return len(factors) > 1 and isinstance(one, np.ndarray) and one.shape == tuple(factors)


def to_mask(masks: Any, factors: Sequence[int], ended: np.ndarray) -> Tensor:
    """Return the mask (E, F, K), bool, of masks as E environments give them; K is the largest factor.

    Where an episode has just `ended`, (E,), there is nothing to choose, and all is allowed whatever the mask is.

    Raises:
        DataError: a mask is missing, has another shape, other values than 0 and 1, or forbids all choices of a factor.

    >>> to_mask(np.array([[1, 0, 1, 1, 0]]), (2, 3), np.array([False])).int()
    tensor([[[1, 0, 0],
             [1, 1, 0]]], dtype=torch.int32)
    """
    F, K = len(factors), max(factors)
    exists = allowed(factors).numpy()
    whole = np.zeros((len(ended), F, K), dtype=bool)
    whole[:, exists] = _rows(masks, factors, ended)
    whole[ended] = exists
    if not (some := whole.any(-1)).all():
        e, f = np.argwhere(~some)[0]
        what = f"every choice of factor {f}" if F > 1 else "every action"
        raise DataError(f"the environment's {KEY} forbids {what}, in environment {e}")
    return torch.from_numpy(whole)


def _rows(masks: Any, factors: Sequence[int], ended: np.ndarray) -> np.ndarray:
    """Join masks of E environments, each of any accepted shape, to (E, n_1 + ... + n_F), bool."""
    E, width = len(ended), sum(factors)
    if isinstance(masks, np.ndarray) and masks.dtype != object:
        rows = masks.reshape(len(masks), -1) if len(masks) else masks
    elif masks is None or len(masks) != E:
        raise DataError(f"the environment must give an {KEY} for each of its {E}, got {_told(masks)}")
    else:
        free = np.ones(width, dtype=bool)
        each = [free if mask is None and over else _row(mask) for mask, over in zip(masks, ended, strict=True)]
        rows = np.stack(each) if len({len(row) for row in each}) == 1 else each[0][None]
    if rows.shape != (E, width):
        shapes = f"({width},)" if len(factors) == 1 else f"({width},), a mask for each of {len(factors)} factors"
        raise DataError(f"the environment's {KEY} must have shape {shapes}, got {_told(masks)}")
    if rows.dtype != bool and not np.isin(rows[~ended], (0, 1)).all():
        raise DataError(f"the environment's {KEY} must hold 0 and 1, got {rows[~np.isin(rows, (0, 1))][0]}")
    return rows.astype(bool)


def _row(mask: Any) -> np.ndarray:
    if mask is None:
        raise DataError(f"the environment gave no {KEY} in this step, but gave one before")
    parts = mask if isinstance(mask, (tuple, list)) else (mask,)
    return np.concatenate([np.ravel(np.asarray(part)) for part in parts])


def _told(masks: Any) -> str:
    """Describe masks of E environments for an error: the shape of the first."""
    if masks is None:
        return "none"
    one = masks[0] if len(masks) else masks
    if isinstance(one, (tuple, list)):
        return f"a tuple of {', '.join(str(np.shape(part)) for part in one)}"
    return str(np.shape(one))
