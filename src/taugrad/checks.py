"""Checks of hyperparameters and losses; each failure is one sentence that names the argument or the term."""

import math
from collections.abc import Sequence
from numbers import Real

import torch
from torch import Tensor

from taugrad.errors import NonFiniteLossError


def check_number(name: str, value: float) -> None:
    """Raise unless `value` is a number.

    >>> check_number("weight", "1")
    Traceback (most recent call last):
    TypeError: weight must be a number, got '1'
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, got {value!r}")


def check_positive(name: str, value: float) -> None:
    """Raise unless `value` is a positive, finite number.

    >>> check_positive("gap", -1.0)
    Traceback (most recent call last):
    ValueError: gap must be a positive finite number, got -1.0
    """
    check_number(name, value)
    if not 0 < value < math.inf:
        raise ValueError(f"{name} must be a positive finite number, got {value}")


def check_share(name: str, value: float) -> None:
    """Raise unless `value` is a number in [0, 1].

    >>> check_share("gamma", 1.5)
    Traceback (most recent call last):
    ValueError: gamma must be in [0, 1], got 1.5
    """
    check_number(name, value)
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must be in [0, 1], got {value}")


def check_mixed(name: str, value: float) -> None:
    """Raise unless `value` is a number in [0, 1), such as the share of the uniform categorical in a mixture.

    >>> check_mixed("unimix", 1.0)
    Traceback (most recent call last):
    ValueError: unimix must be in [0, 1), got 1.0
    """
    check_number(name, value)
    if not 0 <= value < 1:
        raise ValueError(f"{name} must be in [0, 1), got {value}")


def check_count(name: str, value: int, smallest: int = 1) -> None:
    """Raise unless `value` is a whole number of at least `smallest`.

    >>> check_count("draws", 0)
    Traceback (most recent call last):
    ValueError: draws must be at least 1, got 0
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be a whole number, got {value!r}")
    if value < smallest:
        raise ValueError(f"{name} must be at least {smallest}, got {value}")


def check_counts(name: str, values: Sequence[int]) -> None:
    """Raise unless every one of `values` is a whole number of at least 1.

    >>> check_counts("encoder", [16, 0])
    Traceback (most recent call last):
    ValueError: encoder[1] must be at least 1, got 0
    """
    for i, value in enumerate(values):
        check_count(f"{name}[{i}]", value)


def require_finite(term: str, value: Tensor, step: int, tau: float | None = None) -> None:
    """Raise when a term of the loss is NaN or infinite, and name it.

    Raises:
        NonFiniteLossError: the term is NaN or infinite.

    >>> require_finite("KL", torch.tensor(1.0), step=0)
    """
    if not torch.isfinite(value):
        at, help_by = ("", "") if tau is None else (f" (tau = {tau:.4g})", " or a higher tau")
        raise NonFiniteLossError(
            f"the {term} term of the loss is {value.item()} at step {step}{at}: a lower learning rate{help_by} "
            "usually helps"
        )


def check_image_size(sizes: Sequence[int]) -> None:
    """Raise unless `sizes` are height and width of an image, or channels, height and width.

    >>> check_image_size([28])
    Traceback (most recent call last):
    ValueError: image_size must be height and width, or channels, height and width, got [28]
    """
    if len(sizes) not in (2, 3):
        raise ValueError(f"image_size must be height and width, or channels, height and width, got {sizes}")
