"""The native kernels as functions of tensors without gradient.

`taugrad.ops._backend` decides on first use. One line of the log says what it is.

Every function here takes contiguous tensors (..., K) of one dtype for which `holds` is true. `taugrad.ops._fused`
checks that, and leaves all others to torch code.
"""

import ctypes
import functools
import logging
from typing import Any

import torch
from torch import Tensor

from taugrad.compiler import BuildError
from taugrad.ops._backend import backend_chosen
from taugrad.ops._torch import constant_for_compilers, has_plain_memory
from taugrad.ops.native.build import load
from taugrad.ops.onehot import Relaxation

_DTYPES = {torch.float32: "float32", torch.float64: "float64"}
_PLAIN = (Tensor, torch.nn.Parameter)
_EMPTY = torch.empty(0, device="cpu")
_MOST = 2**31  # elements, because an index in a lane is as wide as a float

_P, _I, _D = ctypes.c_void_p, ctypes.c_int64, ctypes.c_double
_ARGUMENTS = {  # arguments of each kernel, before the pool and the number of threads
    "sample": [_P, _I, _I, _P, _I, _D, _D, _P, _P, _P],
    "softmax_backward": [_P, _P, _I, _I, _D, _P],
    "reinmax_backward": [_P, _P, _I, _I, _D, _P],
    "gumbel_rao": [_P, _P, _P, _I, _I, _I, _D, _P],
    "entropy": [_P, _I, _I, _P],
    "entropy_backward": [_P, _P, _P, _I, _I, _P],
    "log_prob": [_P, _P, _I, _I, _I, _P],
    "bernoulli": [_P, _P, _I, _I, _I, _P],
    "bernoulli_backward": [_P, _P, _P, _I, _I, _I, _P],
    "noise": [_P, _I, _P],
    "gates": [_P, _P, _P, _P, _I, _I, _I, _P],
    "gates_backward": [_P, _P, _P, _P, _I, _I, _I, _P, _P, _P],
}


def holds(x: Tensor) -> bool:
    """Return whether the kernels can work on `x`: a plain tensor in the CPU's memory, float32 or float64.

    Gradients are the caller's concern, and so are transforms and modes, which would not see a kernel.
    """
    return (
        type(x) in _PLAIN
        and x.dtype in _DTYPES
        and x.is_cpu
        and has_plain_memory(x)
        and x.numel() < _MOST
        and available()
    )


@constant_for_compilers
def available() -> bool:
    """Return whether there are kernels at all. The first call decides.

    Raises:
        BuildError: there are none and TAUGRAD_BACKEND is `native`.
        ConfigError: TAUGRAD_BACKEND is none of its values.
    """
    return bool(_kernels())


def sample(
    x: Tensor, seed: Tensor, relaxation: Relaxation, tau: float, gap: float = 0.0, *, hard: bool = True
) -> tuple[Tensor, Tensor, int]:
    """Return `z` (empty unless `hard`), `y` (empty for Relaxation.NONE) and the number of rows without a sample."""
    K = x.shape[-1]
    z = torch.empty_like(x) if hard else _EMPTY
    y = torch.empty_like(x) if relaxation else _EMPTY
    failures = _kernels()["sample", x.dtype](
        x.data_ptr(),
        x.numel() // K,
        K,
        seed.data_ptr(),
        relaxation,
        tau,
        gap,
        y.data_ptr(),
        z.data_ptr(),
        None,
        _parallel(),
        torch.get_num_threads(),
    )
    return z, y, failures


def bound_sample(x: Tensor, relaxation: Relaxation, tau: float | Tensor, gap: float, hard: bool) -> Tensor | int | None:
    """Return `z`, or `y` unless `hard`, with the gradient of `y`: `sample` by torch's C++ autograd and its generator.

    Return the number of rows without a sample if there are any, and None where there is no binding or it does not take
    this tensor or tau. The caller checks that no transform or mode is active.
    """
    binding = _binding()
    return binding and binding.sample(x, tau, relaxation._value_, gap, hard, _parallel() or 0)


def bound_softmax_backward(grad: Tensor, y: Tensor, tau: float | Tensor) -> Tensor | None:
    """Return `(grad - <grad, y>) y / tau`, or None, as `bound_sample`."""
    binding = _binding()
    return binding and binding.softmax_backward(grad, y, tau, _parallel() or 0)


def one_hot(x: Tensor, seed: Tensor) -> tuple[Tensor, int]:
    """Return one-hot samples, and the number of rows without one."""
    z, _, failures = sample(x, seed, Relaxation.NONE, 1.0)
    return z, failures


def argmax(x: Tensor, seed: Tensor) -> tuple[Tensor, int]:
    """Return the classes drawn, int64 (...), and the number of rows without one."""
    index = torch.empty(x.shape[:-1], dtype=torch.int64, device="cpu")
    arguments = (x.data_ptr(), *_rows(x), seed.data_ptr(), Relaxation.NONE, 1.0, 0.0, None, None, index.data_ptr())
    return index, _kernels()["sample", x.dtype](*arguments, *_pool())


def softmax(x: Tensor, tau: float | Tensor) -> Tensor:
    """Return `softmax(x / tau)`."""
    y = torch.empty_like(x)
    arguments = (x.data_ptr(), *_rows(x), None, Relaxation.PLAIN, float(tau), 0.0, y.data_ptr(), None, None)
    _kernels()["sample", x.dtype](*arguments, *_pool())
    return y


def softmax_backward(grad: Tensor, y: Tensor, tau: float | Tensor) -> Tensor:
    """Return `(grad - <grad, y>) y / tau`."""
    return _backward("softmax_backward", grad, y, float(tau))


def reinmax_backward(grad: Tensor, marked: Tensor, tau: float) -> Tensor:
    """Return ReinMax's gradient from the `y` of Relaxation.MARKED."""
    return _backward("reinmax_backward", grad, marked, tau)


def _backward(name: str, grad: Tensor, y: Tensor, tau: float) -> Tensor:
    K = y.shape[-1]
    dx = torch.empty_like(y)
    _kernels()[name, y.dtype](
        grad.data_ptr(), y.data_ptr(), y.numel() // K, K, tau, dx.data_ptr(), _parallel(), torch.get_num_threads()
    )
    return dx


def gumbel_rao(grad: Tensor, x: Tensor, seed: Tensor, draws: int, tau: float) -> Tensor:
    """Return Gumbel-Rao's gradient for the `z` that `sample` drew from `x` with this seed, over `draws` draws."""
    dx = torch.empty_like(x)
    arguments = (grad.data_ptr(), x.data_ptr(), seed.data_ptr(), *_rows(x), draws, tau, dx.data_ptr())
    _kernels()["gumbel_rao", x.dtype](*arguments, *_pool())
    return dx


def entropy(x: Tensor) -> Tensor:
    """Return the entropy of logits `x`, (...)."""
    value = x.new_empty(x.shape[:-1])
    _kernels()["entropy", x.dtype](x.data_ptr(), *_rows(x), value.data_ptr(), *_pool())
    return value


def entropy_backward(grad: Tensor, x: Tensor, value: Tensor) -> Tensor:
    """Return the gradient to `x` of its entropy `value`; `grad` (...)."""
    dx = torch.empty_like(x)
    arguments = (grad.data_ptr(), x.data_ptr(), value.data_ptr(), *_rows(x), dx.data_ptr())
    _kernels()["entropy_backward", x.dtype](*arguments, *_pool())
    return dx


def log_prob(x: Tensor, z: Tensor) -> Tensor:
    """Return log p(z), (*more, ...), of `z` (*more, ..., K) for logits `x` (..., K)."""
    value = z.new_empty(z.shape[:-1])
    arguments = (x.data_ptr(), z.data_ptr(), *_repeated(z, x), value.data_ptr())
    _kernels()["log_prob", x.dtype](*arguments, *_pool())
    return value


def bernoulli(logits: Tensor, x: Tensor) -> Tensor:
    """Return log p(x) of independent Bernoullis, (*more, ...), for logits (*more, ..., D) and `x` (..., D)."""
    value = logits.new_empty(logits.shape[:-1])
    arguments = (logits.data_ptr(), x.data_ptr(), *_repeated(logits, x), value.data_ptr())
    _kernels()["bernoulli", x.dtype](*arguments, *_pool())
    return value


def bernoulli_backward(grad: Tensor, logits: Tensor, x: Tensor) -> Tensor:
    """Return the gradient of `bernoulli` to the logits; `grad` (*more, ...)."""
    dx = torch.empty_like(logits)
    arguments = (grad.data_ptr(), logits.data_ptr(), x.data_ptr(), *_repeated(logits, x), dx.data_ptr())
    _kernels()["bernoulli_backward", x.dtype](*arguments, *_pool())
    return dx


def noise(g: Tensor, seed: Tensor) -> Tensor:
    """Fill `g` with Gumbel(0,1) noise, that which `sample` adds to logits of its shape."""
    _kernels()["noise", g.dtype](g.data_ptr(), g.numel(), seed.data_ptr(), *_pool())
    return g


def gates(x: Tensor, c: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Return the outputs (gates, batch) of gates c (gates, 4) with inputs `a` and `b`, rows of x (inputs, batch)."""
    y = x.new_empty(len(c), x.shape[1])
    _kernels()["gates", x.dtype](*_layer(x, c, a, b), y.data_ptr(), *_pool())
    return y


def gates_backward(
    x: Tensor, c: Tensor, a: Tensor, b: Tensor, dy: Tensor, needs_x: bool
) -> tuple[Tensor | None, Tensor]:
    """Return the gradients of `gates` to `x`, if it is needed, and to `c`."""
    dx, dc = torch.empty_like(x) if needs_x else None, torch.empty_like(c)
    pointers = (dy.data_ptr(), dc.data_ptr(), None if dx is None else dx.data_ptr())
    _kernels()["gates_backward", x.dtype](*_layer(x, c, a, b), *pointers, *_pool())
    return dx, dc


def _layer(x: Tensor, c: Tensor, a: Tensor, b: Tensor) -> tuple[int, ...]:
    return x.data_ptr(), c.data_ptr(), a.data_ptr(), b.data_ptr(), len(x), len(c), x.shape[1]


def _rows(x: Tensor) -> tuple[int, int]:
    K = x.shape[-1]
    return x.numel() // K, K


def _repeated(many: Tensor, few: Tensor) -> tuple[int, int, int]:
    """Return the rows of `few`, how many times as many `many` has, and the length of a row."""
    rows, K = _rows(few)
    return rows, many.numel() // few.numel() if rows else 0, K


def _pool() -> tuple[int | None, int]:
    """Return torch's own thread pool, so that there is no second one, and its size."""
    return _parallel(), torch.get_num_threads()


@functools.cache
def _parallel() -> int | None:
    try:
        return ctypes.cast(ctypes.CDLL(None).GOMP_parallel, ctypes.c_void_p).value
    except AttributeError:  # another OpenMP has no such function: one thread
        return None


def bound() -> bool:
    """Return whether the kernels have the binding too."""
    return _binding() is not None


@functools.cache
def _binding() -> Any:
    return _kernels().get("binding")


@functools.cache
def _kernels() -> dict[Any, Any]:
    choice = backend_chosen()
    log = logging.getLogger("taugrad")
    if choice == "torch":
        log.info("discrete samples by torch, as TAUGRAD_BACKEND says")
    if choice in ("torch", "triton"):
        return {}
    try:
        library, binding = load()
    except BuildError as error:
        if choice == "native":
            raise
        log.info("discrete samples by torch: %s", error)
        return {}
    log.info("discrete samples by the native kernels%s", ", bound to torch's autograd" if binding else "")
    kernels: dict[Any, Any] = {"binding": binding}
    for name, arguments in _ARGUMENTS.items():
        for dtype, suffix in _DTYPES.items():
            function = library[f"taugrad_{name}_{suffix}"]
            function.argtypes = [*arguments, _P, _I]
            function.restype = _I if name == "sample" else None
            kernels[name, dtype] = function
    return kernels
