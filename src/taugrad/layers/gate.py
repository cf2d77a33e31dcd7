r"""Gates that open or close a part of a network, with the exact expected number of open ones.

    z ~ Bernoulli(sigma(l)),  (z, 1 - z) ~ softmax(l, 0)                        BinaryGate, by any pathwise estimator
    s = sigma((log u - log(1 - u) + l) / beta),  z = clamp(s (zeta - gamma) + gamma, 0, 1)       HardConcreteGate
    P(z != 0) = sigma(l),   sigma(l - beta log(-gamma / zeta))                  the expected L0 cost of a gate

The logits l belong to the module that is gated: a parameter, or the output of a network.
"""

import math
from typing import final

import torch
from torch import Tensor, nn

from taugrad.checks import check_number
from taugrad.estimators import Pathwise, check_pathwise
from taugrad.ops._checks import check_logits, check_tau
from taugrad.ops._torch import readable
from taugrad.ops.gumbel import gumbel_softmax


@final
class BinaryGate(nn.Module):
    r"""Gates of 0 and 1 with an estimator's gradient; the more probable of the two in evaluation mode.

    $z \sim \mathrm{Bernoulli}(\sigma(l))$, drawn as the first of two classes with logits $(l, 0)$.

    Args:
        estimator: any pathwise estimator; a soft one gives gates between 0 and 1 in training.

    Bias: that of the estimator. Source: 1308.3432 for straight-through gates.

    >>> from taugrad.estimators import StraightThrough
    >>> gate = BinaryGate(StraightThrough())
    >>> gate(torch.tensor([-torch.inf, 50.0])), gate.expected_l0(torch.tensor([-torch.inf, 0.0]))
    (tensor([0., 1.]), tensor([0.0000, 0.5000]))
    """

    def __init__(self, estimator: Pathwise) -> None:
        super().__init__()
        check_pathwise(estimator)
        self.estimator = estimator

    def forward(self, logits: Tensor, tau: float | Tensor = 1.0, *, generator: torch.Generator | None = None) -> Tensor:
        """Draw gates `z` in the shape and dtype of `logits` (...); -inf keeps a gate closed, without gradient.

        Args:
            logits: (...), floating point, of an open gate against a closed one.
            tau: temperature of the estimator, a positive number or a tensor that broadcasts to `logits`.
            generator: a source of randomness; default torch's own.

        Raises:
            ValueError: a logit is NaN or +inf, or `tau` is not positive.
            TypeError: `logits` is not floating point.
        """
        two, tau = _two_classes(logits, tau)
        if self.training:
            return self.estimator.sample(two, tau, generator=generator)[..., 0]
        return torch.where(_invalid(logits), math.nan, (logits.detach() > 0).to(logits.dtype))

    def expected_l0(self, logits: Tensor) -> Tensor:
        r"""Return $P(z = 1) = \sigma(l)$, (...): its sum is the expected number of open gates, exactly."""
        return torch.sigmoid(logits)

    def extra_repr(self) -> str:
        """Show the estimator in the module's repr."""
        return repr(self.estimator)


@final
class HardConcreteGate(nn.Module):
    r"""Gates in [0, 1] that are exactly 0 or 1 with positive probability, and differentiable; fixed in evaluation mode.

    $s = \sigma((\log u - \log(1 - u) + l) / \beta)$, $z = \min(1, \max(0, s (\zeta - \gamma) + \gamma))$;
    in evaluation $s = \sigma(l)$. The temperature `tau` is $\beta$.

    Args:
        gamma: lower end of the stretched interval, below 0.
        zeta: upper end, above 1.

    Bias: none for E f(z) of these gates, which are not Bernoulli. Source: 1712.01312.

    >>> gate = HardConcreteGate().eval()
    >>> gate(torch.tensor([-5.0, 0.0, 5.0])), gate.expected_l0(torch.tensor([0.0]))
    (tensor([0.0000, 0.5000, 1.0000]), tensor([0.8318]))
    """

    def __init__(self, gamma: float = -0.1, zeta: float = 1.1) -> None:
        super().__init__()
        check_number("gamma", gamma)
        check_number("zeta", zeta)
        for name, value, side, right in (("gamma", gamma, "below 0", gamma < 0), ("zeta", zeta, "above 1", zeta > 1)):
            if not (right and math.isfinite(value)):
                raise ValueError(f"{name} must be a finite number {side}, got {value}")
        self.gamma = gamma
        self.zeta = zeta

    def forward(
        self, logits: Tensor, tau: float | Tensor = 2 / 3, *, generator: torch.Generator | None = None
    ) -> Tensor:
        """Draw gates `z` in the shape and dtype of `logits` (...); arguments and errors as for `BinaryGate`."""
        two, tau = _two_classes(logits, tau)
        if self.training:
            s = gumbel_softmax(two, tau, generator=generator)[..., 0]
        else:
            s = torch.where(_invalid(logits), math.nan, torch.sigmoid(logits))
        return (s * (self.zeta - self.gamma) + self.gamma).clamp(0, 1)

    def expected_l0(self, logits: Tensor, tau: float | Tensor = 2 / 3) -> Tensor:
        r"""Return $P(z \ne 0) = \sigma(l - \beta \log(-\gamma / \zeta))$, (...), at the `tau` that the gates take."""
        _, beta = _two_classes(logits, tau)
        beta = beta.squeeze(-1) if isinstance(beta, Tensor) and beta.ndim else beta
        return torch.sigmoid(logits - beta * math.log(-self.gamma / self.zeta))

    def extra_repr(self) -> str:
        """Show the interval in the module's repr."""
        return f"gamma={self.gamma}, zeta={self.zeta}"


def _two_classes(logits: Tensor, tau: float | Tensor) -> tuple[Tensor, float | Tensor]:
    """Return the logits of (open, closed), (..., 2), and a `tau` that broadcasts to them."""
    check_logits(logits.unsqueeze(-1) if isinstance(logits, Tensor) else logits, -1)
    two = torch.stack([logits, torch.zeros_like(logits)], -1)
    tau = tau.unsqueeze(-1) if isinstance(tau, Tensor) and tau.ndim else tau
    return two, check_tau(tau, two)


def _invalid(logits: Tensor) -> Tensor:
    """Return where a logit is NaN or +inf, and raise where reading is free: what samples do in training."""
    invalid = logits.isnan() | (logits == math.inf)
    if readable(logits) and invalid.any():
        raise ValueError("logits must have no NaN or +inf; -inf keeps a gate closed")
    return invalid
