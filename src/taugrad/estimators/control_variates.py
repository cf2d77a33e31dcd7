"""Unbiased estimators with f of a relaxation as control variate."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from taugrad.checks import check_positive
from taugrad.estimators.base import Estimator
from taugrad.estimators.score_function import with_gradient
from taugrad.ops._checks import check_latents, check_rows, values_of
from taugrad.ops.categorical import log_prob
from taugrad.ops.noise import gumbel_noise
from taugrad.ops.onehot import one_hot
from taugrad.ops.softmax import softmax


@dataclass(frozen=True)
class REBAR(Estimator):
    r"""REBAR: REINFORCE with f of the relaxation as control variate, corrected by reparametrization given `z`.

    $s = \log\pi + g$, $z = \mathrm{onehot}(\arg\max s)$, and $\tilde s \sim p(s \mid z)$ reparametrized in the
    logits; $y = \mathrm{softmax}(s/\tau)$, $\tilde y = \mathrm{softmax}(\tilde s/\tau)$. The gradient is
    $(f(z) - \eta f(\tilde y)) \nabla \log q(z) + \eta \nabla f(y) - \eta \nabla f(\tilde y)$.

    The noise of s~ is taken from s itself, so that y~ and y are the same point with different gradients: the paper's
    coupling at its strongest, and the gradient to f's own parameters has no share of the relaxation.

    With `eta=None` each row's eta is the least-squares fit of f(z) by f(y~), weighted by $|\nabla \log q(z)|^2$, over
    the other rows of the call: no state, and no bias, for it does not depend on the row's own sample. A single row, as
    under `torch.func.vmap`, has eta = 1.

    Bias: none, at every tau and eta; they set the variance. f must take soft z. Cost: 3 evaluations of f. Deviation:
    the paper learns eta by the gradient of the whole variance; the fit leaves out that of $\nabla f(y) - \nabla
    f(\tilde y)$, which matters at a low tau. Source: 1703.07370.

    >>> REBAR().expectation(lambda z: z.sum((-2, -1)), torch.zeros(5, 2, 3), tau=0.5)
    tensor([2., 2., 2., 2., 2.])
    """

    eta: float | None = 1.0

    def __post_init__(self) -> None:
        if self.eta is not None:
            check_positive("eta", self.eta)

    def expectation(
        self,
        f: Callable[[Tensor], Tensor],
        logits: Tensor,
        tau: float | Tensor = 1.0,
        *,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Return f(z), (...), for `f` from (..., N, K) to (...) and logits (..., N, K)."""
        check_latents(logits)
        g = gumbel_noise(logits, generator=generator)
        log_pi = torch.log_softmax(logits.to(g.dtype), -1)
        z, y, y_given_z = _coupled_samples(log_pi, g, logits, tau)
        value, relaxed, relaxed_given_z = (values_of(f, x) for x in (z, y, y_given_z))
        eta = self.eta
        if eta is None:
            size = (z - log_pi.exp()).square().sum((-2, -1))  # |d log q(z) / d logits|^2
            eta = _fitted_to_other_rows(*(x.detach().to(g.dtype) for x in (value, relaxed_given_z, size)))
            eta = eta.to(value.dtype)
        log_q = log_prob(logits, z).sum(-1)
        path = eta * (relaxed - relaxed_given_z)
        return value + (value - eta * relaxed_given_z).detach() * (log_q - log_q.detach()) + (path - path.detach())


def relax(
    f: Callable[[Tensor], Tensor],
    control: Callable[[Tensor], Tensor],
    logits: Tensor,
    tau: float | Tensor = 1.0,
    *,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    r"""Estimate E f(z) by RELAX: `REBAR` with a learned function c of soft samples in place of $\eta f$.

    The gradient to the logits is $G = (f(z) - c(\tilde y)) \nabla\log q(z) + \nabla c(y) - \nabla c(\tilde y)$, with
    $z$, $y$ and $\tilde y$ of `REBAR`. c trains by the variance of G, and that is by $|G|^2$, for the mean of G does
    not depend on it:

        value, square = relax(f, control, logits, tau)
        (loss(value) + square.mean()).backward()

    `value` has no gradient to what `control` depends on, and `square` has one to nothing else. It is a function and no
    `Estimator` because c has parameters: they belong to your module and its optimizer.

    Args:
        f: from one-hot z (..., N, K) to (...); it needs no gradient and no soft samples.
        control: c, from soft samples (..., N, K) to (...), differentiable twice.
        logits: (..., N, K).
        tau: temperature of the soft samples.
        generator: a source of randomness; default torch's own.

    Returns:
        f(z), (...), and $|G|^2$, (...).

    Bias: none, for every c and tau. Cost: 1 evaluation of f, 2 of c with a double backward. Not for `torch.func`
    transforms nor under `torch.no_grad`. Deviation: c sees a softmax of the paper's perturbed logits, which may be
    -inf. Source: 1711.00123.

    >>> logits = torch.zeros(5, 2, 3, requires_grad=True)
    >>> control = torch.nn.Sequential(torch.nn.Flatten(-2), torch.nn.Linear(6, 1), torch.nn.Flatten(0))
    >>> value, square = relax(lambda z: z.sum((-2, -1)), control, logits, tau=0.5)
    >>> value, square.shape
    (tensor([2., 2., 2., 2., 2.], grad_fn=<AddBackward0>), torch.Size([5]))
    """
    check_latents(logits)
    g = gumbel_noise(logits, generator=generator)
    leaf = logits.detach().to(g.dtype).requires_grad_()
    log_pi = torch.log_softmax(leaf, -1)
    z, y, y_given_z = _coupled_samples(log_pi, g, logits, tau)
    value = values_of(f, z)
    c, c_given_z = (values_of(control, x, "control") for x in (y, y_given_z))
    (path,) = torch.autograd.grad((c - c_given_z).sum(), leaf, create_graph=True)
    G = (value.detach() - c_given_z)[..., None, None] * (z - log_pi.detach().exp()) + path
    return with_gradient(value, G.detach(), logits), G.square().sum((-2, -1))


def _coupled_samples(log_pi: Tensor, g: Tensor, like: Tensor, tau: float | Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return `z`, `y` and `y~` of `REBAR`, in the dtype of `like`, for log-probabilities and noise (..., K)."""
    s = log_pi + g
    z = one_hot(s.argmax(-1), like)
    y, y_given_z = (softmax(x, tau).to(like.dtype) for x in (s, _reparametrized_given(z, s.detach(), log_pi)))
    check_rows(y, -1, tau)
    return z, y, y_given_z


def _fitted_to_other_rows(value: Tensor, relaxed: Tensor, weight: Tensor) -> Tensor:
    """Return for each row, (...), the eta of the least weighted squares of `value - eta * relaxed` over the others."""
    products, squares = weight * value * relaxed, weight * relaxed.square()
    others, scale = products.sum() - products, squares.sum() - squares
    eta = others / scale
    # One row may be all of the sum, and the others' share rounding; with no other row it is 0 / 0.
    return torch.where(scale > 0, eta, 1.0).clamp(0.0, 2.0)


def _reparametrized_given(z: Tensor, s: Tensor, log_pi: Tensor) -> Tensor:
    """Return the value of `s` as a function of log_pi and of noise independent of `z` (see `conditional_perturbed`).

    Given `z` the largest s is a Gumbel(0) variable, and another is -log(E / pi + exp(-top)) with E ~ Exp(1). The
    equation is solved for E, which is then constant.
    """
    masked = log_pi == -torch.inf
    log_pi = log_pi.masked_fill(masked, 0.0)
    top = s.amax(-1, keepdim=True)
    log_e = (log_pi - s.masked_fill(masked, 0.0) + torch.log1p(-(s - top).exp())).detach()
    others = -torch.logaddexp(log_e - log_pi, -top)
    return torch.where(z > 0, top, others.masked_fill(masked, -torch.inf))
