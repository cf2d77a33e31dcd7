"""Demands of torch's own tests of a distribution, against enumeration, quadrature and torch; and Pyro's inference."""

import math

import pyro
import pytest
import torch
from helpers.cases import each
from helpers.estimators import HARD, PATHWISE
from helpers.samples import FALSE_FAILURE, frequencies_p_value
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.infer import SVI, Trace_ELBO, TraceEnum_ELBO, config_enumerate
from torch import distributions as theirs
from torch.distributions import kl_divergence

from taugrad.distributions import OneHotCategorical, RelaxedOneHotCategorical
from taugrad.estimators import RLOO, STGumbelSoftmax, StraightThrough
from taugrad.ops import categorical

ST = StraightThrough()


def of(shape, **options):
    return OneHotCategorical(ST, logits=torch.randn(*shape, dtype=torch.float64), **options)


@each("shape", [(3,), (2, 3), (4, 2, 3)])
def test_shapes_are_those_of_torch(shape):
    logits = torch.randn(shape)
    pairs = [
        (OneHotCategorical(ST, logits, 0.5), theirs.OneHotCategorical(logits=logits)),
        (RelaxedOneHotCategorical(logits, 0.5), theirs.RelaxedOneHotCategorical(torch.tensor(0.5), logits=logits)),
    ]
    for ours, other in pairs:
        assert (ours.batch_shape, ours.event_shape) == (other.batch_shape, other.event_shape)
        assert ours.support.event_dim == other.support.event_dim
        assert ours.has_rsample
        for sample_shape in ((), (5,), (5, 2)):
            for draw in (ours.sample, ours.rsample):
                y = draw(sample_shape)
                assert y.shape == other.sample(sample_shape).shape
                assert ours.support.check(y).all()
                assert ours.log_prob(y).shape == other.log_prob(other.sample(sample_shape)).shape
        assert not ours.sample().requires_grad
    ours, other = pairs[0]
    for expand in (True, False):
        assert torch.equal(ours.enumerate_support(expand), other.enumerate_support(expand))
    for name in ("probs", "mean", "mode", "variance"):
        torch.testing.assert_close(getattr(ours, name), getattr(other, name))
    assert ours.param_shape == other.param_shape


@each("unimix", [0.0, 0.1])
def test_log_prob_entropy_moments_and_kl_are_those_of_enumeration(unimix):
    p, q = of((2, 4), unimix=unimix), of((2, 4))
    z = p.enumerate_support()
    log_p, log_q = p.log_prob(z), q.log_prob(z)
    expected = (1 - unimix) * (torch.softmax(p.logits, -1) - unimix / 4) / (1 - unimix) + unimix / 4
    torch.testing.assert_close(log_p.exp().T, expected)
    if unimix:
        assert (p.probs >= unimix / 4).all()
    torch.testing.assert_close(log_p.exp().sum(0), torch.ones(2, dtype=torch.float64))
    torch.testing.assert_close(p.entropy(), -(log_p.exp() * log_p).sum(0))
    mean = (log_p.exp().unsqueeze(-1) * z).sum(0)
    torch.testing.assert_close(p.mean, mean)
    torch.testing.assert_close(p.variance, (log_p.exp().unsqueeze(-1) * (z - mean).square()).sum(0))
    kl = (log_p.exp() * (log_p - log_q)).sum(0)
    torch_p, torch_q = (theirs.OneHotCategorical(logits=d.logits) for d in (p, q))
    for a, b in ((p, q), (p, torch_q), (torch_p, q), (p.expand((2,)), q)):
        torch.testing.assert_close(kl_divergence(a, b), kl)
    joint = kl_divergence(theirs.Independent(p, 1), theirs.Independent(q, 1))
    torch.testing.assert_close(joint, kl.sum())


def test_a_masked_class_counts_as_zero_in_all_of_them():
    p = OneHotCategorical(ST, logits=torch.tensor([0.0, -torch.inf, 0.0]).requires_grad_())
    assert p.log_prob(torch.eye(3))[1] == -torch.inf
    total = p.entropy() + kl_divergence(p, OneHotCategorical(ST, logits=torch.zeros(3))) + p.log_prob(p.rsample())
    (g,) = torch.autograd.grad(total, p.logits)
    assert torch.isfinite(g).all()
    assert g[1] == 0


@each("estimator", HARD)
def test_samples_are_of_the_distribution_with_the_gradient_of_the_estimator(estimator):
    logits, w = torch.randn(4, dtype=torch.float64, requires_grad=True), torch.randn(3, 4, dtype=torch.float64)
    p = OneHotCategorical(estimator, logits, tau=0.7)
    torch.manual_seed(1)
    z = p.rsample((3,))
    torch.manual_seed(1)
    expected = estimator.sample(logits.expand(3, 4), 0.7)
    ours, other = (torch.autograd.grad((s * w).sum(), logits)[0] for s in (z, expected))
    assert torch.equal(ours, other)
    for draw in (p.sample, p.rsample):
        counts = draw((3000,)).detach().sum(0)
        assert frequencies_p_value(counts, p.probs.detach()) > FALSE_FAILURE
        assert frequencies_p_value(counts, p.probs.detach().flip(0)) < FALSE_FAILURE


def test_expanding_keeps_the_parameters_the_class_and_validation():
    for p in (of((2, 3), tau=0.3, validate_args=False), RelaxedOneHotCategorical(torch.randn(2, 3), 0.3)):
        e = p.expand((5, 2))
        assert type(e) is type(p)
        assert (e.batch_shape, e.event_shape, e.tau) == ((5, 2), (3,), 0.3)
        assert e._validate_args == p._validate_args
        y = e.rsample((4,))
        assert y.shape == (4, 5, 2, 3)
        torch.testing.assert_close(e.log_prob(y), p.log_prob(y), rtol=1e-4, atol=1e-4)
    taus = torch.tensor([[0.2], [0.9]])
    assert RelaxedOneHotCategorical(torch.zeros(2, 3), taus).expand((5, 2)).rsample((4,)).shape == (4, 5, 2, 3)


def test_the_relaxed_density_is_torchs_where_that_holds_and_integrates_to_one():
    logits = torch.randn(2, 4, dtype=torch.float64)
    for tau in (0.5, 2.0):
        ours = RelaxedOneHotCategorical(logits, tau)
        other = theirs.RelaxedOneHotCategorical(torch.tensor(tau, dtype=torch.float64), logits=logits)
        y = other.sample((50,)).clamp_min(1e-12)
        y = y / y.sum(-1, keepdim=True)
        torch.testing.assert_close(ours.log_prob(y), other.log_prob(y))
    two = RelaxedOneHotCategorical(torch.tensor([0.7, -0.2], dtype=torch.float64), 0.8)
    t = torch.linspace(-40, 40, 4001, dtype=torch.float64)  # y = sigma(t), whose derivative is y (1 - y)
    y = torch.stack([torch.sigmoid(t), torch.sigmoid(-t)], -1)
    assert abs(torch.trapezoid(two.log_prob(y).exp() * y.prod(-1), t) - 1) < 1e-6
    masked = RelaxedOneHotCategorical(torch.tensor([0.7, -torch.inf, -0.2], dtype=torch.float64), 0.8)
    padded = torch.stack([y[:, 0], torch.zeros_like(t), y[:, 1]], -1)
    torch.testing.assert_close(masked.log_prob(padded), two.log_prob(y))


@each("dtype", [torch.float16, torch.float32, torch.float64])
def test_the_relaxed_log_density_of_a_sample_holds_where_it_underflows(dtype):
    logits = torch.tensor([3.0, 0.0, -2.0, -torch.inf], dtype=dtype, requires_grad=True)
    tau = 0.002 if dtype is not torch.float16 else 0.05
    p = RelaxedOneHotCategorical(logits, tau)
    y = p.rsample((100,))
    assert (y[:, :3] == 0).any()
    log_p = p.log_prob(y)
    assert torch.isfinite(log_p).all()
    log_y, a = p._last[1].detach().double()[:, :3], logits.detach().double()[:3]
    exact = math.log(2) + 2 * math.log(tau) + (a - (tau + 1) * log_y).sum(-1) - 3 * (a - tau * log_y).logsumexp(-1)
    torch.testing.assert_close(log_p.detach().double(), exact, rtol=2e-3 if dtype is torch.float16 else 1e-5, atol=1e-3)
    (g,) = torch.autograd.grad(log_p.mean() + y.mean(), logits)
    assert torch.isfinite(g).all()
    assert g[3] == 0
    if dtype is torch.float32:
        assert torch.isfinite(p.log_prob(y.clone())).all()  # zeros of an unknown size
        other = theirs.RelaxedOneHotCategorical(torch.tensor(tau), logits=logits[:3].detach())
        assert not torch.isfinite(other.log_prob(other.sample((100,)))).all()  # what this one is for


def test_validation_and_bad_arguments_get_a_sentence():
    p, soft = of((3,), validate_args=True), RelaxedOneHotCategorical(torch.zeros(3), validate_args=True)
    for value in (torch.full((3,), 1 / 3), torch.ones(3), torch.zeros(2)):
        with pytest.raises(ValueError, match=r"support|event_shape"):
            p.log_prob(value)
    with pytest.raises(ValueError, match="support"):
        soft.log_prob(torch.ones(3))
    with pytest.raises(ValueError, match="logits"):
        OneHotCategorical(ST, torch.tensor([0.0, torch.nan]), validate_args=True)
    with pytest.raises(TypeError, match="estimator must be a pathwise estimator"):
        OneHotCategorical(RLOO(2), torch.zeros(3))
    for make in (lambda *a, **k: OneHotCategorical(ST, *a, **k), RelaxedOneHotCategorical):
        for logits in (torch.tensor([0.0, torch.inf]), torch.full((2,), -torch.inf)):
            with pytest.raises(ValueError, match="logits must have a finite entry in every row and no NaN"):
                make(logits, validate_args=False).rsample()
        with pytest.raises(ValueError, match=r"tau must be a positive finite number, got 0\.0"):
            make(torch.zeros(3), 0.0)
        with pytest.raises(ValueError, match=r"unimix must be in \[0, 1\), got 1\.5"):
            make(torch.zeros(3), unimix=1.5)
        with pytest.raises(TypeError, match=r"logits must be a floating-point tensor, got torch\.int64"):
            make(torch.tensor([0, 1]))


class Pyros(OneHotCategorical, TorchDistributionMixin):
    """Distribution for Pyro, whose own ones are made of torch's in this way."""


def test_pyro_infers_with_them_by_samples_and_by_enumeration():
    pyro.clear_param_store()
    data = torch.tensor([3.0, 2.5, -3.0])
    means = torch.tensor([-3.0, 3.0])

    def model(pathwise=True):
        with pyro.plate("data", len(data)):
            z = pyro.sample("z", Pyros(STGumbelSoftmax(), torch.zeros(3, 2)))
            pyro.sample("x", pyro.distributions.Normal(z @ means, 1.0), obs=data)

    def guide(pathwise=True):
        logits = pyro.param("logits", torch.zeros(3, 2))
        with pyro.plate("data", len(data)):
            pyro.sample("z", Pyros(STGumbelSoftmax(), logits, tau=0.7).has_rsample_(pathwise))

    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO())
    assert math.isfinite(svi.step())
    assert pyro.param("logits").ne(0).all()  # by rsample: no row is left without a gradient
    # Enumerated, the ELBO is exact: at the posterior it is the evidence.
    with torch.no_grad():
        log_joint = math.log(0.5) + torch.distributions.Normal(means, 1.0).log_prob(data[:, None])
        pyro.param("logits").copy_(log_joint)
    enumerated = TraceEnum_ELBO(max_plate_nesting=1)
    evidence = log_joint.logsumexp(-1).sum()
    loss = enumerated.differentiable_loss(model, config_enumerate(guide), pathwise=False)
    torch.testing.assert_close(-loss, evidence)
    assert -enumerated.loss(config_enumerate(model), lambda: None) == pytest.approx(evidence.item())
    step = SVI(model, config_enumerate(guide), pyro.optim.Adam({"lr": 0.1}), enumerated).step(pathwise=False)
    assert math.isfinite(step)
    pyro.clear_param_store()


def test_every_estimator_samples_in_it_in_the_dtype_of_the_logits():
    for estimator in PATHWISE:
        for dtype in (torch.float16, torch.float64):
            assert OneHotCategorical(estimator, torch.zeros(2, 3, dtype=dtype)).rsample((2,)).dtype == dtype
    assert categorical.entropy(OneHotCategorical(ST, torch.zeros(2)).logits) == pytest.approx(math.log(2))
