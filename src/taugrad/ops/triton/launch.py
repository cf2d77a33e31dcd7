"""The Triton kernels as functions of tensors without gradient.

Every function here takes tensors for which `holds` is true, of any strides, with the K classes at `dim`. Results are
contiguous. A seed is a 0-d int64 tensor on their device, and so is read by no host.
"""

from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
import triton  # pyright: ignore[reportMissingImports]
from torch import Tensor
from triton import knobs  # pyright: ignore[reportMissingImports]
from triton.compiler import ASTSource  # pyright: ignore[reportMissingImports]
from triton.runtime import driver  # pyright: ignore[reportMissingImports]

from taugrad.errors import KernelError, reason_of
from taugrad.ops._checks import compute_dtype
from taugrad.ops._torch import has_plain_memory
from taugrad.ops.onehot import Relaxation
from taugrad.ops.triton import kernels

_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_PLAIN = (Tensor, torch.nn.Parameter)
_BLOCK = 2048  # elements of a block of short rows
_LONGEST = 8192  # classes of a row that fit one block
_CHUNK = 4096
_THREAD = 16  # elements of a thread
_ROWS = 128  # of a block, above which a thread has half as many elements
_MOST = 2**31 - _CHUNK  # classes, and rows: an index and a launch count in 32 bits


def holds(x: Tensor) -> bool:
    """Return whether the kernels can work on `x`, a tensor of such a device: plain, and of a shape that `fits`."""
    return type(x) in _PLAIN and has_plain_memory(x) and fits(x)


def fits(x: Tensor) -> bool:
    """Return whether the kernels take tensors of this dtype and shape, on a device that they are for."""
    return x.dtype in _DTYPES and x.ndim > 0 and max(x.shape) < _MOST


def devices() -> tuple[str, ...]:
    """Return the types of devices that the kernels run on. The interpreter runs on a CPU.

    Raises:
        Exception: Triton cannot compile a kernel, for one of many reasons.
    """
    if knobs.runtime.interpret:
        return ("cpu",)
    signature = {"out": "*fp32", "seed": "*i64", "count": "i32", "B": "constexpr", "DOUBLE": "constexpr"}
    source = ASTSource(kernels.noise_run, signature, {"B": 64, "DOUBLE": False})  # the smallest
    triton.compile(source, target=driver.active.get_current_target())
    return ("cuda", "xpu")


class _Layout(NamedTuple):
    """Starts of a tensor's rows and distance of its classes: the kernels' `inner` and three strides."""

    inner: int
    outer: int
    near: int
    step: int


def _layout(x: Tensor) -> _Layout | None:
    """Return the layout of x (..., K), or None where its rows need more than two strides."""
    groups: list[tuple[int, int]] = []
    for size, stride in zip(x.shape[:-1], x.stride()[:-1], strict=True):
        if size == 1:
            continue
        if groups and groups[-1][1] == stride * size:
            groups[-1] = (groups[-1][0] * size, stride)
        else:
            groups.append((size, stride))
    step = x.stride(-1)
    if len(groups) > 2:
        return None
    if len(groups) == 2:
        return _Layout(groups[1][0], groups[0][1], groups[1][1], step)
    return _Layout(1, groups[0][1] if groups else 0, 0, step)


class _Rows:
    """Tensors of one shape as rows of K classes, with one `inner`; a tensor that does not fit becomes contiguous."""

    def __init__(self, dim: int, *tensors: Tensor) -> None:
        moved = [x.movedim(dim, -1) for x in tensors]
        layouts = [_layout(x) for x in moved]
        self.K = moved[0].shape[-1]
        self.count = moved[0].numel() // self.K if self.K else 0
        # The last tensor is the one that the kernel writes: it keeps its place.
        last = layouts[-1]
        split = [n for n in (last, *layouts) if n and n.inner > 1]
        self.inner = split[0].inner if split and last else 1
        self.arguments: list[Any] = []
        self.held: list[Tensor] = []
        for x, found in zip(moved, layouts, strict=True):
            layout = found
            if layout is None or layout.inner not in (1, self.inner):
                x = x.contiguous()
                layout = _Layout(1, self.K, 0, 1)
            if layout.inner != self.inner:
                layout = _Layout(self.inner, layout.outer * self.inner, layout.outer, layout.step)
            self.held.append(x)
            self.arguments += [x, layout.outer, layout.near, layout.step]


def _blocks(K: int, double: bool, *, averages: bool = False) -> dict[str, Any]:
    """Return the compile-time arguments of a kernel: the block's size, and whether its noise is one run.

    Doubles, and an average that is kept while noise is drawn, need twice the registers an element: half a block then.
    So do noise that is no run, whose elements have words of their own, and very short rows: half as many for a thread.
    """
    part = 2 if double or averages else 1
    B = triton.next_power_of_2(K)
    if _LONGEST // part**2 < B:
        chunk = _CHUNK // part
        return {"B": chunk, "RUN": K % 64 == 0 and not double, "DOUBLE": double, "num_warps": 8}
    R = 1 if K % 64 == 0 and K != B else max(1, _BLOCK // part // B)
    run = (K == B or (R == 1 and K % 64 == 0)) and R * B >= 64 and not double
    elements = _THREAD // part // (1 if run and R <= _ROWS else 2)
    warps = min(16, max(4, R * B // (32 * elements)))
    return {"R": R, "B": B, "RUN": run, "DOUBLE": double, "num_warps": warps}


def _noise_blocks(double: bool) -> dict[str, Any]:
    return {"B": _BLOCK, "DOUBLE": double, "num_warps": _BLOCK // (32 * _THREAD) * (4 if double else 1)}


def _launch(name: str, rows: int, arguments: list[Any], constants: dict[str, Any], device: torch.device) -> None:
    R = constants.get("R")
    kernel = getattr(kernels, f"{name}_tile" if R else f"{name}_chunks")
    _run(kernel, -(-rows // (R or 1)), arguments, constants, device)


def _run(kernel: Any, programs: int, arguments: list[Any], constants: dict[str, Any], device: torch.device) -> None:
    if programs == 0:
        return
    constants = {**constants, "enable_fp_fusion": True}  # else the default of Triton's release
    here = device.type == "cpu" or torch.accelerator.current_device_index() == device.index
    try:
        with nullcontext() if here else torch.get_device_module(device).device(device):
            kernel[(programs,)](*arguments, **constants)
    except Exception as error:  # Triton, the device's assembler and its driver may fail in any way
        reason = reason_of(error)
        raise KernelError(
            f"Triton's kernel {kernel.__name__} cannot run on {device}: {reason}. TAUGRAD_BACKEND=torch draws without"
        ) from error


def _number(value: float | Tensor, like: Tensor) -> tuple[float, Tensor | None]:
    """Return a number for a kernel, or a tensor that holds it. A kernel's number is float32."""
    if isinstance(value, Tensor):
        if value.device == like.device:
            return 0.0, value
        value = value.item()  # the value lies on a CPU: nothing waits
    if like.dtype is torch.float64:
        return 0.0, torch.full((), value, dtype=torch.float64, device=like.device)
    return value, None


def _tau(tau: float | Tensor, like: Tensor, dim: int) -> tuple[float, Tensor | None, int]:
    """Return tau as a number, or as a tensor with the step from one row to the next; `dim` is that of the classes.

    Raises:
        ValueError: tau is on another device than `like`, and not on the CPU.
    """
    if isinstance(tau, Tensor) and tau.device != like.device and (tau.ndim or tau.device.type != "cpu"):
        raise ValueError(f"tau must be on the device of the logits, {like.device}, got one on {tau.device}")
    if isinstance(tau, Tensor) and tau.ndim:
        rows = tau.expand(*like.shape[:dim], 1, *like.shape[dim + 1 :])
        return 0.0, rows.movedim(dim, -1).contiguous(), 1
    return *_number(tau, like), 0


def sample(
    x: Tensor,
    seed: Tensor | None,
    relaxation: Relaxation,
    tau: float | Tensor,
    dim: int = -1,
    gap: float = 0.0,
    *,
    hard: bool | None = True,
    keeps: bool = False,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Return `z`, or `y` unless `hard`, or None if `hard` is; with `keeps`, what `sample_backward` needs; the classes.

    Without a seed it is the softmax of Relaxation.PLAIN. Kept are (2 or 3, rows) numbers. The classes, int64 (...), are
    None where nobody needs them.
    """
    dim %= x.ndim
    out = None if hard is None else torch.empty_like(x, memory_format=torch.contiguous_format)
    rows = _Rows(dim, x, x if out is None else out)
    wide = compute_dtype(x.dtype)
    numbers = 3 if relaxation is Relaxation.MARKED else 2
    kept = torch.empty(numbers, rows.count, dtype=wide, device=x.device) if keeps else None
    index = None
    if hard is None or (keeps and relaxation not in (Relaxation.PERTURBED, Relaxation.PLAIN)):
        index = torch.empty(x.movedim(dim, -1).shape[:-1], dtype=torch.int64, device=x.device)
    constants = _blocks(rows.K, wide is torch.float64)
    drawn = seed is not None and (hard is not False or relaxation is not Relaxation.PLAIN)
    constants |= {"RELAXATION": int(relaxation), "HARD": bool(hard), "DRAWN": drawn}
    arguments = rows.arguments[:4] + ([None, 0, 0, 0] if out is None else rows.arguments[4:])
    arguments += [index, kept, seed, *_tau(tau, x, dim), *_number(gap, x), rows.count, rows.K, rows.inner]
    _launch("sample", rows.count, arguments, constants, x.device)
    return out, kept, index


def sample_backward(
    grad: Tensor,
    x: Tensor,
    kept: Tensor,
    index: Tensor | None,
    seed: Tensor,
    relaxation: Relaxation,
    tau: float | Tensor,
    dim: int = -1,
    gap: float = 0.0,
    *,
    to_tau: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Return the gradient to `x`, and for each row that to tau, (...), if asked for."""
    dim %= x.ndim
    dx = torch.empty_like(x, memory_format=torch.contiguous_format)
    rows = _Rows(dim, grad, x, dx)
    dtau = torch.empty(x.movedim(dim, -1).shape[:-1], dtype=kept.dtype, device=x.device) if to_tau else None
    constants = _blocks(rows.K, kept.dtype is torch.float64) | {"RELAXATION": int(relaxation)}
    arguments = [*rows.arguments, dtau, index, kept, seed, *_tau(tau, x, dim), *_number(gap, x)]
    arguments += [rows.count, rows.K, rows.inner]
    _launch("sample_backward", rows.count, arguments, constants, x.device)
    return dx, dtau


def gumbel_rao(
    grad: Tensor, x: Tensor, kept: Tensor, index: Tensor, seed: Tensor, draws: int, tau: float | Tensor, dim: int = -1
) -> Tensor:
    """Return Gumbel-Rao's gradient for the classes that `sample` drew from `x` with this seed, over `draws` draws."""
    dim %= x.ndim
    dx = torch.empty_like(x, memory_format=torch.contiguous_format)
    rows = _Rows(dim, grad, x, dx)
    constants = _blocks(rows.K, kept.dtype is torch.float64, averages=True)
    arguments = [index, kept, seed, draws, *_tau(tau, x, dim), rows.count, rows.K, rows.inner]
    if "R" in constants:
        _launch("gumbel_rao", rows.count, [*rows.arguments, *arguments], constants, x.device)
        return dx
    sums = torch.empty(rows.count, draws, 2, dtype=kept.dtype, device=x.device)
    for writes in (False, True):
        chosen = constants | {"WRITES": writes}
        _launch("gumbel_rao", rows.count, [*rows.arguments, sums, *arguments], chosen, x.device)
    return dx


def one_hot(x: Tensor, seed: Tensor, dim: int = -1) -> Tensor:
    """Return one-hot samples, NaN for a row without one."""
    z, _, _ = sample(x, seed, Relaxation.NONE, 1.0, dim)
    return z  # pyright: ignore[reportReturnType]


def argmax(x: Tensor, seed: Tensor) -> Tensor:
    """Return the classes drawn of logits (..., K), int64 (...), any class for a row without one."""
    _, _, index = sample(x, seed, Relaxation.NONE, 1.0, hard=None)
    return index  # pyright: ignore[reportReturnType]


def softmax(x: Tensor, tau: float | Tensor, dim: int = -1) -> Tensor:
    """Return `softmax(x / tau)`."""
    y, _, _ = sample(x, None, Relaxation.PLAIN, tau, dim, hard=False)
    return y  # pyright: ignore[reportReturnType]


def softmax_backward(grad: Tensor, y: Tensor, tau: float | Tensor) -> Tensor:
    """Return `(grad - <grad, y>) y / tau`, of contiguous tensors (..., K)."""
    dx = torch.empty_like(y)
    K = y.shape[-1]
    constants = _blocks(K, y.dtype is torch.float64)
    del constants["RUN"]
    arguments = [grad, y, dx, *_tau(tau, y, y.ndim - 1), y.numel() // K, K]
    _launch("softmax_backward", y.numel() // K, arguments, constants, y.device)
    return dx


def noise(g: Tensor, seed: Tensor) -> Tensor:
    """Fill contiguous `g`, float32 or float64, with Gumbel(0,1) noise, that which `sample` adds to logits (..., K)."""
    constants = _noise_blocks(g.dtype is torch.float64)
    _run(kernels.noise_run, -(-g.numel() // _BLOCK), [g, seed, g.numel()], constants, g.device)
    return g
