"""Checks of the arguments that every function of logits shares; each failure is one sentence naming the argument."""

import math
from collections.abc import Sequence
from numbers import Real
from typing import NoReturn

import torch
from torch import Tensor


def check_logits(logits: Tensor, dim: int, name: str = "logits") -> None:
    """Raise unless `logits` is a floating-point tensor with at least one class along `dim`.

    >>> check_logits(torch.tensor([1, 2]), -1)
    Traceback (most recent call last):
    TypeError: logits must be a floating-point tensor, got torch.int64
    """
    if not isinstance(logits, Tensor):
        raise TypeError(f"{name} must be a floating-point tensor, got {type(logits).__name__}")
    if not logits.is_floating_point():
        raise TypeError(f"{name} must be a floating-point tensor, got {logits.dtype}")
    if logits.ndim == 0:
        raise ValueError(f"{name} must have a dimension of classes, got a 0-d tensor")
    if not -logits.ndim <= dim < logits.ndim:
        raise IndexError(
            f"dim must be in [{-logits.ndim}, {logits.ndim - 1}] for {name} of shape {tuple(logits.shape)}, got {dim}"
        )
    if logits.shape[dim] == 0:
        raise ValueError(f"{name} must have at least one class along dim {dim}, got shape {tuple(logits.shape)}")


def check_tau(tau: float | Tensor) -> float | Tensor:
    """Return `tau` when it is a positive number or a 0-d tensor; raise otherwise.

    A tensor's value is not read, for that would stall a GPU and break a compiled graph: a tensor that is not positive
    becomes NaN and shows in everything computed from it.

    >>> check_tau(0.0)
    Traceback (most recent call last):
    ValueError: tau must be a positive finite number, got 0.0
    >>> check_tau(torch.tensor(-1.0))
    tensor(nan)
    """
    if type(tau) is float and 0 < tau < math.inf:  # the usual case, which a call's few microseconds are worth
        return tau
    if isinstance(tau, Tensor):
        if tau.ndim != 0 or not tau.is_floating_point():
            raise ValueError(
                f"tau must be a number or a 0-d floating-point tensor, got {tau.dtype} of shape {tuple(tau.shape)}"
            )
        return torch.where(tau > 0, tau, math.nan)
    if not isinstance(tau, (Real, torch.SymFloat)) or isinstance(tau, bool):
        raise TypeError(f"tau must be a number or a 0-d floating-point tensor, got {type(tau).__name__}")
    if not (tau > 0 and tau < math.inf):
        raise ValueError(f"tau must be a positive finite number, got {tau}")
    return tau  # pyright: ignore[reportReturnType]  # SymFloat stands for a float while compiling


def check_positive(name: str, value: float) -> None:
    """Raise unless `value` is a positive, finite number.

    >>> check_positive("gap", -1.0)
    Traceback (most recent call last):
    ValueError: gap must be a positive finite number, got -1.0
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, got {value!r}")
    if not 0 < value < math.inf:
        raise ValueError(f"{name} must be a positive finite number, got {value}")


def check_share(name: str, value: float) -> None:
    """Raise unless `value` is a number in [0, 1].

    >>> check_share("gamma", 1.5)
    Traceback (most recent call last):
    ValueError: gamma must be in [0, 1], got 1.5
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, got {value!r}")
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must be in [0, 1], got {value}")


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


def check_rows(y: Tensor, dim: int, tau: float | Tensor = 1.0) -> None:
    """Raise when a row of the probabilities `y` is NaN: its logits allow no class or hold NaN or +inf, or tau is bad.

    One NaN logit makes its whole row NaN under softmax, so one entry of each row tells. While compiling and under
    `torch.func` transforms nothing may depend on a value: there the NaN is left to propagate.
    """
    if torch.compiler.is_compiling() or torch._C._functorch.is_functorch_wrapped_tensor(y):  # pyright: ignore
        return
    if torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.FAKE) is not None:  # pyright: ignore
        return  # shapes without values
    bad = y.detach().select(dim, 0).isnan()
    if bad.any():
        raise_bad_rows(int(bad.sum()), bad.numel(), tau)


def raise_bad_rows(bad: int, rows: int, tau: float | Tensor = 1.0) -> NoReturn:
    """Raise for `bad` of `rows` rows of logits that nothing can be drawn from, or for the tau that is the reason."""
    if isinstance(tau, Tensor) and not tau > 0:
        raise ValueError(f"tau must be a positive finite number, got a tensor of {tau.item()}")
    raise ValueError(
        f"logits must have a finite entry in every row and no NaN or +inf, got {bad} of {rows} rows without"
    )


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype to calculate in: float32 for half precision, else the tensor's own.

    >>> compute_dtype(torch.bfloat16)
    torch.float32
    """
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def check_counts(name: str, values: Sequence[int]) -> None:
    """Raise unless every one of `values` is a whole number of at least 1.

    >>> check_counts("encoder", [16, 0])
    Traceback (most recent call last):
    ValueError: encoder[1] must be at least 1, got 0
    """
    for i, value in enumerate(values):
        check_count(f"{name}[{i}]", value)
