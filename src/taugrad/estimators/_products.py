"""Hard samples whose gradient is a product: a function of the gradient to `z`, evaluated in the backward alone.

A straight-through estimator needs dL/dx = J g, and not J. What is here saves what `product` asks for, and no Jacobian.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from taugrad.ops import _conditional
from taugrad.ops._checks import check_rows, classes_last
from taugrad.ops._torch import compiled_forward_mode
from taugrad.ops.gumbel import gumbel_max
from taugrad.ops.onehot import straight_through, tangent
from taugrad.ops.softmax import softmax

Product = Callable[..., Tensor]  # takes (g, pi, D, tau), all (..., K) but tau, perhaps seeds, and named arguments


def sample(
    logits: Tensor,
    tau: float | Tensor,
    dim: int,
    product: Product,
    *,
    generator: torch.Generator | None,
    draws: int = 0,
    **arguments: Any,
) -> Tensor:
    r"""Draw $D \sim \pi = \mathrm{softmax}(\theta)$, exactly one-hot, with the gradient `product(g, pi, D, tau)`.

    Args:
        logits: theta, (..., K, ...), floating point; -inf masks a class.
        tau: passed to `product`; it gets no gradient.
        dim: the dimension of the K classes.
        product: gradient to the logits, (..., K), linear in g, of g = dL/dD, pi and D, (..., K), in a dtype to compute
            in, and of tau.
        generator: a source of randomness; default torch's own.
        draws: draws of the noise that fits D: `product` is then given the seeds after tau, and `draws` by name.
        arguments: further arguments of `product`.

    Returns:
        The shape and dtype of `logits`.

    >>> x = torch.zeros(2, requires_grad=True)
    >>> sample(x, 1.0, -1, lambda g, pi, D, tau: pi * g, generator=None).sum().backward()
    >>> x.grad
    tensor([0.5000, 0.5000])
    """
    theta, tau = classes_last(logits, tau, dim)
    of = []
    if draws:
        z, seeds = _conditional.draw(logits, tau, dim, draws, generator)
        of, arguments = [seeds], {**arguments, "draws": draws}
    else:
        z = gumbel_max(logits, dim, generator=generator)
    t = tangent(logits).movedim(dim, -1)
    pi = softmax(theta.detach().to(t.dtype))
    tau = tau.detach().to(t.dtype) if isinstance(tau, Tensor) else tau
    check_rows(pi * tau, -1, tau)
    dz = gradient_by(product, t, pi, z.movedim(dim, -1).to(t.dtype), tau, *of, **arguments)
    return straight_through(z, dz.movedim(-1, dim).to(z.dtype))


def gradient_by(
    product: Product, t: Tensor, pi: Tensor, D: Tensor, tau: float | Tensor, *of: Tensor, **arguments: Any
) -> Tensor:
    """Return zeros, NaN where pi or tau is, with the gradient `product(g, pi, D, tau, *of)` to `t`, a tangent.

    >>> x = torch.zeros(2, requires_grad=True)
    >>> gradient_by(lambda g, pi, D, tau: pi * g, x, torch.ones(2), torch.ones(2), 1.0).sum().backward()
    >>> x.grad
    tensor([1., 1.])
    """
    if torch.compiler.is_compiling() and compiled_forward_mode():  # which would take the tangent for zero
        raise NotImplementedError("this estimator has no forward mode: what it has is the product of a backward")
    return _Product.apply(t, pi, D, tau, product, arguments, *of)


class _Product(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(
        t: Tensor, pi: Tensor, D: Tensor, tau: float | Tensor, product: Product, arguments: dict[str, Any], *of: Tensor
    ) -> Tensor:
        return t * pi * tau

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, pi, D, tau, ctx.product, ctx.arguments, *of = inputs
        ctx.tau = None if isinstance(tau, Tensor) else tau
        ctx.save_for_backward(pi, D, *([tau] if ctx.tau is None else []), *of)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        pi, D, *of = ctx.saved_tensors
        dx = ctx.product(g, pi, D, *([] if ctx.tau is None else [ctx.tau]), *of, **ctx.arguments)
        return dx, *[None] * (5 + len(of) - (ctx.tau is None))
