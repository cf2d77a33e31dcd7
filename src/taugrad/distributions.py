r"""Distributions in the manner of `torch.distributions` whose reparameterized samples are those of an estimator.

z ~ softmax(logits) one-hot,  dz by the estimator                          OneHotCategorical
log y = log_softmax((logits + g) / tau)                                    RelaxedOneHotCategorical
log p(y) = log (K - 1)! + (K - 1) log tau + sum_k (logits_k - (tau + 1) log y_k)
- K log sum_k exp(logits_k - tau log y_k)                       1611.00712, eq. 10
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints, register_kl
from torch.distributions import OneHotCategorical as TorchOneHotCategorical

from taugrad.checks import check_mixed
from taugrad.estimators import Pathwise, check_pathwise
from taugrad.ops import categorical
from taugrad.ops._checks import check_logits, check_rows, check_tau, compute_dtype
from taugrad.ops.gumbel import gumbel_max
from taugrad.ops.noise import perturbed
from taugrad.ops.onehot import one_hot


class OneHotCategorical(Distribution):
    r"""One-hot categorical whose `rsample` has an estimator's gradient; all else is exact.

    $z \sim \mathrm{softmax}(\mathrm{logits})$, or of its mixture with the uniform categorical.

    Args:
        estimator: any pathwise estimator; samples of a soft one are not in the support, so `log_prob` refuses them.
        logits: (..., K), floating point; -inf masks a class.
        tau: temperature of the estimator, a positive number or a tensor that broadcasts to `logits`.
        unimix: share of the uniform categorical, in [0, 1); see `taugrad.ops.categorical.unimix`.
        validate_args: as in torch.

    Bias: that of the estimator, in `rsample` alone. Source: 1611.01144.

    >>> from taugrad.estimators import STGumbelSoftmax
    >>> p = OneHotCategorical(STGumbelSoftmax(), logits=torch.zeros(2, 3))
    >>> z = p.rsample()
    >>> p.log_prob(z), p.entropy()
    (tensor([-1.0986, -1.0986]), tensor([1.0986, 1.0986]))
    """

    arg_constraints = {"logits": constraints.real_vector}  # noqa: RUF012  # pyright: ignore[reportAssignmentType]
    support = constraints.one_hot  # pyright: ignore[reportAssignmentType]
    has_rsample = True
    has_enumerate_support = True

    def __init__(
        self,
        estimator: Pathwise,
        logits: Tensor,
        tau: float | Tensor = 1.0,
        unimix: float = 0.0,
        validate_args: bool | None = None,
    ) -> None:
        check_pathwise(estimator)
        self.estimator = estimator
        self.logits, self.tau = _mixed(logits, unimix), check_tau(tau, logits)
        super().__init__(logits.shape[:-1], logits.shape[-1:], validate_args=validate_args)

    @property
    def probs(self) -> Tensor:
        """Probabilities, (..., K)."""
        return torch.softmax(self.logits, -1)

    @property
    def mean(self) -> Tensor:
        """Mean of `z`, the probabilities."""
        return self.probs

    @property
    def mode(self) -> Tensor:
        """Most probable one-hot vector, (..., K)."""
        return one_hot(self.logits.argmax(-1), self.logits)

    @property
    def variance(self) -> Tensor:
        """Variance of each entry of `z`, p (1 - p)."""
        return self.probs * (1 - self.probs)

    @property
    def param_shape(self) -> torch.Size:
        """Shape of the logits."""
        return self.logits.shape

    def expand(self, batch_shape: Any, _instance: Any = None) -> "OneHotCategorical":
        """Return the distribution with another batch shape that its own broadcasts to."""
        new: Any = self._get_checked_instance(OneHotCategorical, _instance)
        new.estimator, new.tau = self.estimator, self.tau
        return _expanded(self, new, batch_shape)

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008, as in torch
        """Draw `z`, (*sample_shape, ..., K), without gradient."""
        return gumbel_max(self.logits.expand(self._extended_shape(sample_shape)))

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008, as in torch
        """Draw `z`, (*sample_shape, ..., K), with the estimator's gradient."""
        return self.estimator.sample(self.logits.expand(self._extended_shape(sample_shape)), self.tau)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return log p(z), (...), with a gradient to both."""
        if self._validate_args:
            self._validate_sample(value)
        return categorical.log_prob(self.logits, value)

    def entropy(self) -> Tensor:
        """Return the entropy in nats, (...)."""
        return categorical.entropy(self.logits)

    def enumerate_support(self, expand: bool = True) -> Tensor:
        """Return all K one-hot vectors, (K, ..., K), with ones for the batch's sizes unless `expand`."""
        K, batch = self.logits.shape[-1], self.batch_shape
        z = torch.eye(K, dtype=self.logits.dtype, device=self.logits.device).view(K, *[1] * len(batch), K)
        return z.expand(K, *batch, K) if expand else z


class RelaxedOneHotCategorical(Distribution):
    r"""Gumbel-Softmax, or Concrete, distribution on the simplex, whose log-density holds at any temperature.

    Samples are computed as log y. `log_prob` of the last sample takes it as it was, also where y is 0 in its precision;
    a zero of another origin counts as the smallest normal number. A masked class has no part in the density: it is
    that on the simplex of the others.

    Args:
        logits: (..., K), floating point; -inf masks a class.
        tau: temperature, a positive number or a tensor that broadcasts to `logits`, of size 1 in its last dimension.
        unimix: share of the uniform categorical, in [0, 1).
        validate_args: as in torch.

    Bias: in the value, E f(y) for E f(z), the less the smaller tau; the gradient of E f(y) is unbiased.
    Source: 1611.00712, 1611.01144.

    >>> p = RelaxedOneHotCategorical(logits=torch.zeros(3), tau=0.01)
    >>> y = p.rsample()
    >>> torch.isfinite(p.log_prob(y)).item()
    True
    """

    arg_constraints = {"logits": constraints.real_vector}  # noqa: RUF012  # pyright: ignore[reportAssignmentType]
    support = constraints.simplex  # pyright: ignore[reportAssignmentType]
    has_rsample = True

    def __init__(
        self, logits: Tensor, tau: float | Tensor = 1.0, unimix: float = 0.0, validate_args: bool | None = None
    ) -> None:
        self.logits, self.tau = _mixed(logits, unimix), check_tau(tau, logits)
        self._last: tuple[Tensor, Tensor] | None = None
        super().__init__(logits.shape[:-1], logits.shape[-1:], validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "RelaxedOneHotCategorical":
        """Return the distribution with another batch shape that its own broadcasts to."""
        new: Any = self._get_checked_instance(RelaxedOneHotCategorical, _instance)
        new.tau, new._last = self.tau, None
        return _expanded(self, new, batch_shape)

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008, as in torch
        """Draw `y`, (*sample_shape, ..., K), with its gradient.

        Raises:
            LogitsError: a row of the logits allows no class, or holds NaN or +inf.
        """
        s = perturbed(self.logits.expand(self._extended_shape(sample_shape)))
        log_y = torch.log_softmax(s / self.tau, -1)
        check_rows(log_y, -1, self.tau)
        y = log_y.exp().to(self.logits.dtype)
        self._last = y, log_y
        return y

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-density of `y` on the simplex, (...), with a gradient to all."""
        if self._validate_args:
            self._validate_sample(value)
        dtype = compute_dtype(self.logits.dtype)
        if self._last is not None and self._last[0] is value:
            log_y = self._last[1]
        else:
            log_y = value.to(dtype).clamp_min(torch.finfo(dtype).tiny).log()
        logits, tau = self.logits.to(dtype), torch.as_tensor(self.tau, dtype=dtype, device=log_y.device)
        masked = logits == -math.inf
        K = (~masked).sum(-1).to(dtype)
        log_y = torch.where(masked, 0.0, log_y)
        log_pi = torch.log_softmax(logits, -1)
        # The density is exp(log_pi - tau log y) over its sum, K times, so that only their differences are large.
        q = torch.log_softmax(torch.where(masked, -math.inf, log_pi - tau * log_y), -1)
        terms = torch.where(masked, 0.0, q) - log_y
        log_tau = tau.log().expand(*log_y.shape[:-1], 1).squeeze(-1)
        return (torch.lgamma(K) + (K - 1) * log_tau + terms.sum(-1)).to(self.logits.dtype)


def _mixed(logits: Tensor, unimix: float) -> Tensor:
    """Return the logits of the mixture with the uniform categorical, or those given, to the bit, for a share of 0."""
    check_logits(logits, -1)
    check_mixed("unimix", unimix)
    return logits if unimix == 0 else categorical.unimix(logits, unimix)


def _expanded(old: Any, new: Any, batch_shape: Any) -> Any:
    """Give `new`, an instance without arguments yet, the logits of `old` in another batch shape."""
    batch = torch.Size(batch_shape)
    new.logits = old.logits.expand(batch + old.event_shape)
    Distribution.__init__(new, batch, old.event_shape, validate_args=False)
    new._validate_args = old._validate_args
    return new


@register_kl(OneHotCategorical, OneHotCategorical)
@register_kl(OneHotCategorical, TorchOneHotCategorical)
@register_kl(TorchOneHotCategorical, OneHotCategorical)
def _kl_of_categoricals(p: Any, q: Any) -> Tensor:
    return categorical.kl(p.logits, q.logits)
