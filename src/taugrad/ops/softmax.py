r"""The tempered softmax and its backward without the Jacobian.

    y     = softmax(x / tau)
    dL/dx = (dL/dy - <dL/dy, y>) * y / tau

The Jacobian of y is (diag(y) - y y^T) / tau, K x K numbers a row. Its product with dL/dy needs none of them: the
diagonal is one multiplication, the outer product one dot product. The autograd Function here saves y and nothing else.
The gradient to tau needs no more: x = tau log y + const, and dL/dx sums to zero over a row, so the constant is gone in

    dL/dtau = -<dL/dx, x> / tau = -<dL/dx, log y>.

The contract: any `dim` and leading shape, any stride, float16 to float64 (half precision is computed in float32),
tau a number or a tensor with one value in all or one for each row, with or without gradient, double backward,
`torch.func` transforms, forward mode, `torch.compile(fullgraph=True)`. Results and gradients are contiguous, as
torch's are.
"""

from typing import Any

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_variadic

from taugrad.ops import _fused, _torch
from taugrad.ops._checks import check_logits, check_tau, compute_dtype, log_where_positive


def softmax(x: Tensor, tau: float | Tensor = 1.0, dim: int = -1) -> Tensor:
    r"""Return the tempered softmax, $y = \mathrm{softmax}(x / \tau)$, with the efficient backward.

    Args:
        x: logits (..., K, ...), floating point; -inf masks a class.
        tau: temperature, a positive number or a tensor that broadcasts to `x`, of size 1 along `dim`; a tensor may
            require a gradient.
        dim: the dimension of the K classes.

    Returns:
        Probabilities in the shape and dtype of `x`. A row with NaN, with +inf, or with every class masked is NaN, and
        so is everything under a tensor `tau` that is not positive.

    Raises:
        TypeError: `x` is not floating point, or `tau` is neither number nor tensor.
        ValueError: `tau` is a number that is not positive and finite, or a tensor of a shape that does not fit.
        IndexError: `dim` is out of range.

    Bias: none, an exact gradient.

    >>> softmax(torch.tensor([0.0, 1.0, -torch.inf]), tau=0.5)
    tensor([0.1192, 0.8808, 0.0000])
    """
    if has_torch_function_variadic(x, tau):
        return handle_torch_function(softmax, (x, tau), x, tau, dim)
    check_logits(x, dim, "x")
    tau = check_tau(tau, x, dim)
    return _tempered_softmax(x, tau, dim)


def _tempered_softmax(x: Tensor, tau: float | Tensor, dim: int) -> Tensor:
    """Return softmax(x / tau) as `softmax` does, of arguments that are checked."""
    if torch.compiler.is_compiling():
        # The compiler cannot trace a Function with forward mode, and derives the same backward by itself.
        return _softmax_value(x, tau, dim)
    return _TemperedSoftmax.apply(x, tau, dim)


def softmax_backward(grad: Tensor, y: Tensor, tau: float | Tensor = 1.0, dim: int = -1) -> Tensor:
    r"""Return the gradient to the logits, $(g - \langle g, y\rangle)\, y / \tau$: O(K) a row in time and memory.

    Args:
        grad: dL/dy, the shape of `y`.
        y: the softmax's output (..., K, ...).
        tau: the temperature of the forward.
        dim: the dimension of the K classes.

    Returns:
        dL/dx in the shape of `y`.

    >>> y = torch.tensor([0.25, 0.75])
    >>> softmax_backward(torch.tensor([1.0, 0.0]), y)
    tensor([ 0.1875, -0.1875])
    """
    dx = _fused.softmax_backward(grad, y, tau, dim)
    if dx is not None:
        return dx
    if has_torch_function_variadic(grad, y, tau):
        return handle_torch_function(softmax_backward, (grad, y, tau), grad, y, tau, dim)
    if not _torch.tracing() and grad.shape != y.shape:
        grad, y = torch.broadcast_tensors(grad, y)
    return (_torch.softmax_backward(grad, y, dim) / tau).contiguous()


def softmax_jacobian(y: Tensor, tau: float | Tensor = 1.0, dim: int = -1) -> Tensor:
    r"""Return the dense Jacobian $(\mathrm{diag}(y) - y y^\top) / \tau$: the oracle, K times the memory of `y`.

    Args:
        y: the softmax's output (..., K, ...).
        tau: the temperature of the forward.
        dim: the dimension of the K classes.

    Returns:
        (..., K, K), the classes moved to the end.

    >>> softmax_jacobian(torch.tensor([0.25, 0.75]))
    tensor([[ 0.1875, -0.1875],
            [-0.1875,  0.1875]])
    """
    tau = check_tau(tau, y, dim)
    if isinstance(tau, Tensor) and tau.ndim:
        tau = tau.movedim(dim, -1).unsqueeze(-1)
    y = y.movedim(dim, -1)
    return (torch.diag_embed(y) - y.unsqueeze(-1) * y.unsqueeze(-2)) / tau


def softmax_backward_by_jacobian(grad: Tensor, y: Tensor, tau: float | Tensor = 1.0, dim: int = -1) -> Tensor:
    r"""Return the gradient by the textbook, $J^\top g$ with the dense Jacobian: the slow side of the benchmark.

    Args:
        grad: dL/dy, the shape of `y`.
        y: the softmax's output (..., K, ...).
        tau: the temperature of the forward.
        dim: the dimension of the K classes.

    Returns:
        dL/dx in the shape of `y`.

    >>> y = torch.tensor([0.25, 0.75])
    >>> softmax_backward_by_jacobian(torch.tensor([1.0, 0.0]), y)
    tensor([ 0.1875, -0.1875])
    """
    jacobian = softmax_jacobian(y, tau, dim)
    return torch.einsum("...ij,...i->...j", jacobian, grad.movedim(dim, -1)).movedim(-1, dim).contiguous()


def _softmax_value(x: Tensor, tau: float | Tensor, dim: int) -> Tensor:
    y = _fused.softmax(x, tau, dim)
    return y if y is not None else torch.softmax(x.to(compute_dtype(x.dtype)) / tau, dim).to(x.dtype)


class _TemperedSoftmax(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, tau: float | Tensor, dim: int) -> Tensor:
        return _softmax_value(x, tau, dim)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, tau, ctx.dim = inputs
        saved = (output, tau) if isinstance(tau, Tensor) else (output,)
        ctx.tau = None if isinstance(tau, Tensor) else tau
        ctx.save_for_backward(*saved)
        ctx.save_for_forward(*saved)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        y, tau = _saved(ctx)
        wide = compute_dtype(y.dtype)
        dx = None if ctx.needs_input_grad[1] else _fused.softmax_backward(grad, y, tau, ctx.dim)
        if dx is not None:
            return dx, None, None
        dx = softmax_backward(grad.to(wide), y.to(wide), tau, ctx.dim)
        dtau = None
        if ctx.needs_input_grad[1]:
            dtau = -(dx * log_where_positive(y.to(wide))).sum_to_size(tau.shape).to(tau.dtype)
        return dx.to(y.dtype), dtau, None

    @staticmethod
    def jvp(ctx: Any, x_t: Tensor | None, tau_t: Tensor | None, _: None) -> Tensor:
        # J is symmetric, so the product from the left is the product from the right; d(x/tau) = (dx - log y dtau) / tau
        y, tau = _saved(ctx)
        wide = compute_dtype(y.dtype)
        u_t = torch.zeros_like(y, dtype=wide) if x_t is None else x_t.to(wide)
        if tau_t is not None:
            u_t = u_t - log_where_positive(y.to(wide)) * tau_t
        return softmax_backward(u_t, y.to(wide), tau, ctx.dim).to(y.dtype)


def _saved(ctx: Any) -> tuple[Tensor, Any]:
    y, *tau = ctx.saved_tensors
    return y, tau[0] if tau else ctx.tau
