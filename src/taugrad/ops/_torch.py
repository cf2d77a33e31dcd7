"""Private names of torch: every one that the library uses, behind a function with a plain name.

Torch may remove any of them in any release. They are looked up when this module is imported: a missing one fails there,
and not in the middle of a training run; but for an attribute that only some objects have. The test of this module says
which one it is.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.compiler import is_compiling

_C: Any = torch._C
_functorch: Any = _C._functorch
_modes: Any = _C._TorchDispatchModeKey

_dispatch_mode = _C._get_dispatch_mode
_dispatch_modes = _C._len_torch_dispatch_stack
_has_storage = _C._has_storage
_is_wrapped = _functorch.is_functorch_wrapped_tensor
_is_zero = Tensor._is_zerotensor
_softmax_backward: Any = torch._softmax_backward_data  # pyright: ignore[reportPrivateImportUsage]
_trace = _C._get_tracing_state
_transform = _functorch.peek_interpreter_stack

_WITHOUT_VALUES = (_modes.FAKE, _modes.PROXY, _modes.FUNCTIONAL)


def watched() -> bool:
    """Return whether a compiler, tracer, transform or mode is active: it would miss a kernel that is no operator.

    >>> watched()
    False
    """
    return followed() or _dispatch_modes() > 0


def followed() -> bool:
    """Return whether a compiler, tracer or transform is active: it derives a gradient from the operators it sees.

    >>> followed()
    False
    """
    return is_compiling() or transformed()


def transformed() -> bool:
    """Return whether `torch.func`, `torch.jit.trace` or forward mode is active.

    >>> transformed()
    False
    """
    return _transform() is not None or _trace() is not None or forward_ad._current_level >= 0


def tracing() -> bool:
    """Return whether `torch.jit.trace` is active: shapes are tensors then, and Python must not depend on them.

    >>> tracing()
    False
    """
    return _trace() is not None


def readable(x: Tensor) -> bool:
    """Return whether Python may depend on the values of `x`.

    It may not where there are none (the meta device, fake tensors, what `torch.fx` traces with), where the program is
    recorded for other values (compiling, exporting, tracing), nor under `torch.func` transforms. On a GPU it would have
    to wait for them.

    >>> readable(torch.zeros(2)), readable(torch.zeros(2, device="meta"))
    (True, False)
    """
    return (
        isinstance(x, Tensor)
        and not is_compiling()
        and x.device.type == "cpu"
        and type(x).__torch_dispatch__ is Tensor.__torch_dispatch__  # pyright: ignore[reportAttributeAccessIssue]
        and not _is_wrapped(x)
        and not tracing()
        and not any(_dispatch_mode(mode) for mode in _WITHOUT_VALUES)
    )


def constant_for_compilers(function: Callable[..., Any]) -> Callable[..., Any]:
    """Let a compiler call `function` while it traces, and take the result for a constant.

    `torch.compiler.assume_constant_result` does the same, but imports the compiler, which takes a second.
    """
    function._dynamo_marked_constant = True  # pyright: ignore[reportFunctionMemberAccess]
    return function


@constant_for_compilers
def compiled_transform() -> bool:
    """Return whether the program that is compiled is under a transform here: a compiler enters them while it traces.

    >>> compiled_transform()
    False
    """
    return transformed()


@constant_for_compilers
def compiled_forward_mode() -> bool:
    """Return whether forward mode is active where the program that is compiled is traced.

    >>> compiled_forward_mode()
    False
    """
    return forward_ad._current_level >= 0


def softmax_backward(grad: Tensor, y: Tensor, dim: int) -> Tensor:
    """Return `(grad - <grad, y>) y` by one operator.

    >>> softmax_backward(torch.tensor([1.0, 0.0]), torch.tensor([0.25, 0.75]), -1)
    tensor([ 0.1875, -0.1875])
    """
    return _softmax_backward(grad, y, dim, y.dtype)


def has_plain_memory(x: Tensor) -> bool:
    """Return whether the memory of `x` holds its values: it wraps no other tensor, and no lazy sign or zero is pending.

    >>> has_plain_memory(torch.zeros(2)), has_plain_memory(torch._neg_view(torch.zeros(2)))
    (True, False)
    """
    return _has_storage(x) and not x.is_neg() and not _is_zero(x)


def unscales_gradients(optimizer: torch.optim.Optimizer) -> bool:
    """Return whether the optimizer divides scaled gradients itself, in its fused step, so that nobody can clip them.

    >>> p = torch.zeros(2, requires_grad=True)
    >>> unscales_gradients(torch.optim.Adam([p], fused=True)), unscales_gradients(torch.optim.Adam([p]))
    (True, False)
    """
    return getattr(optimizer, "_step_supports_amp_scaling", False)
