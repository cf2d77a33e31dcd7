"""Checks of logits, tau, rows and values of f, and the dtype to compute in: for every function of logits."""

import math
from collections.abc import Callable
from numbers import Real
from typing import NoReturn

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_unary, has_torch_function_variadic

from taugrad.errors import LogitsError
from taugrad.ops._torch import readable, tracing


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
    if not tracing() and logits.shape[dim] == 0:
        raise ValueError(f"{name} must have at least one class along dim {dim}, got shape {tuple(logits.shape)}")


def check_latents(logits: Tensor) -> None:
    """Raise unless `logits` are those of N categoricals of K classes, (..., N, K).

    >>> check_latents(torch.zeros(3))
    Traceback (most recent call last):
    ValueError: logits must have shape (..., N, K), got (3,)
    """
    if has_torch_function_unary(logits):
        return
    check_logits(logits, -1)
    if logits.ndim < 2:
        raise ValueError(f"logits must have shape (..., N, K), got {tuple(logits.shape)}")


def values_of(f: Callable[[Tensor], Tensor], z: Tensor, name: str = "f") -> Tensor:
    """Return f(z), (*more, ...), of `z` (*more, ..., N, K); values that are integers or bools become numbers.

    Raises:
        TypeError: `f` returns no tensor.
        ValueError: it does not return one value for each sample: a mean over the batch would be broadcast.

    >>> values_of(lambda z: z.argmax(-1).sum(-1), torch.eye(2).unsqueeze(1))
    tensor([0., 1.])
    """
    values = f(z)
    if has_torch_function_variadic(z, values):
        return values
    if not isinstance(values, Tensor):
        raise TypeError(f"{name} must return a tensor, got {type(values).__name__}")
    if not tracing() and values.shape != z.shape[:-2]:
        raise ValueError(
            f"{name} must return one value for each sample, shape {tuple(z.shape[:-2])} for z of shape "
            f"{tuple(z.shape)}, got {tuple(values.shape)}"
        )
    return values if values.is_floating_point() else values.to(compute_dtype(z.dtype))


def check_tau(tau: float | Tensor, logits: Tensor, dim: int = -1) -> float | Tensor:
    """Return `tau` as a float, a 0-d tensor or, with one value a row, a tensor of as many dimensions as `logits`.

    A tensor's value is not read, because that would stall a GPU and break a compiled graph: where it is not positive it
    becomes NaN, which shows in everything computed from it.

    Raises:
        TypeError: `tau` is no real number and no tensor of real numbers.
        ValueError: `tau` is a number that is not positive and finite, or a tensor that does not broadcast to the shape
            of `logits`, or that differs between the classes of a row.

    >>> check_tau(0.0, torch.zeros(3))
    Traceback (most recent call last):
    ValueError: tau must be a positive finite number, got 0.0
    >>> check_tau(torch.tensor([-1.0]), torch.zeros(3))
    tensor(nan)
    >>> check_tau(torch.ones(2, 1), torch.zeros(4, 2, 3)).shape
    torch.Size([1, 2, 1])
    """
    if type(tau) is float and 0 < tau < math.inf:  # the usual case first: a call takes only microseconds
        return tau
    if isinstance(tau, Tensor):
        if tau.is_complex() or tau.dtype is torch.bool:
            raise TypeError(f"tau must be a number or a floating-point tensor, got {tau.dtype}")
        tau = _one_a_row(tau, logits, dim) if tau.ndim else tau
        tau = tau if tau.is_floating_point() else tau.to(torch.get_default_dtype())
        return tau.masked_fill(tau <= 0, math.nan)
    if isinstance(tau, (torch.SymFloat, torch.SymInt)):  # they stand for numbers in an export
        return tau  # pyright: ignore[reportReturnType]
    if not isinstance(tau, Real) or isinstance(tau, bool):
        raise TypeError(f"tau must be a number or a floating-point tensor, got {type(tau).__name__}")
    if not (tau > 0 and tau < math.inf):
        raise ValueError(f"tau must be a positive finite number, got {tau}")
    return float(tau)


def _one_a_row(tau: Tensor, logits: Tensor, dim: int) -> Tensor:
    padded = tau[(None,) * (logits.ndim - tau.ndim)]
    if tracing():
        return padded
    if all(n == 1 for n in tau.shape):
        return tau.reshape(())
    fits = padded.ndim == logits.ndim and all(n in (1, m) for n, m in zip(padded.shape, logits.shape, strict=True))
    if not fits or padded.shape[dim] != 1:
        raise ValueError(
            f"tau must have one value, or one for each row: a shape that broadcasts to {tuple(logits.shape)} and has "
            f"size 1 along dim {dim}, got {tuple(tau.shape)}"
        )
    return padded


def check_rows(y: Tensor, dim: int, tau: float | Tensor = 1.0) -> None:
    """Raise when a row of the probabilities `y` is NaN: its logits allow no class or hold NaN or +inf, or tau is bad.

    One NaN logit makes its whole row NaN under softmax, so it is enough to check one entry of each row. Where values
    cannot be read the NaN propagates.
    """
    if not readable(y):
        return
    bad = y.detach().select(dim, 0).isnan()
    if bad.any():
        raise_bad_rows(int(bad.sum()), bad.numel(), tau)


def raise_bad_rows(bad: int, rows: int, tau: float | Tensor = 1.0) -> NoReturn:
    """Raise for `bad` of `rows` rows of logits that have no sample, or for the tau that is the reason."""
    if isinstance(tau, Tensor) and not (tau > 0).all():
        raise ValueError(f"tau must be a positive finite number, got a tensor with {tau[~(tau > 0)][0].item()}")
    raise LogitsError(
        f"logits must have a finite entry in every row and no NaN or +inf, got {bad} of {rows} rows without"
    )


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype to compute in: float32 for half precision, else the tensor's own.

    >>> compute_dtype(torch.bfloat16)
    torch.float32
    """
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def classes_last(logits: Tensor, tau: float | Tensor, dim: int) -> tuple[Tensor, float | Tensor]:
    """Return the logits, and tau where it has a value for each row, with the K classes moved from `dim` to the end.

    >>> rows, tau = classes_last(torch.zeros(4, 3, 2), torch.ones(4, 1, 1), dim=1)
    >>> rows.shape, tau.shape
    (torch.Size([4, 2, 3]), torch.Size([4, 1, 1]))
    """
    if has_torch_function_variadic(logits, tau):
        return handle_torch_function(classes_last, (logits, tau), logits, tau, dim)
    check_logits(logits, dim)
    tau = check_tau(tau, logits, dim)
    return logits.movedim(dim, -1), tau.movedim(dim, -1) if isinstance(tau, Tensor) and tau.ndim else tau


def is_scalar(tau: float | Tensor) -> bool:
    """Return whether one temperature holds for all rows, as the kernels need it.

    >>> is_scalar(0.5), is_scalar(torch.ones(2, 1))
    (True, False)
    """
    return not (isinstance(tau, Tensor) and tau.ndim)


def log_where_positive(y: Tensor) -> Tensor:
    """Return log y, finite where `y` is zero, for products with what is zero there too: 0 * log 0 is 0.

    >>> log_where_positive(torch.tensor([1.0, 0.0])).isfinite()
    tensor([True, True])
    """
    return y.clamp_min(torch.finfo(y.dtype).tiny).log()
