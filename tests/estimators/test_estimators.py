import inspect
from contextlib import nullcontext

import pytest
import torch
from helpers.backends import by_torch_alone, once
from helpers.cases import each
from helpers.estimators import BY_TORCH, DIFFUSED, EVERY, HARD, PATHWISE, UNBIASED
from helpers.oracles import enumerated_expectation
from helpers.samples import FALSE_FAILURE, frequencies_p_value, generator, mean_p_value
from scipy import stats

from taugrad import estimators
from taugrad.estimators import (
    REBAR,
    RLOO,
    DecoupledSTGumbelSoftmax,
    DisARM,
    Enumeration,
    Estimator,
    GappedStraightThrough,
    GumbelRao,
    GumbelSoftmax,
    Pathwise,
    ReinMax,
    STGumbelSoftmax,
    StraightThrough,
    configurations,
)
from taugrad.ops.gumbel import gumbel_softmax
from taugrad.ops.onehot import one_hot

pytestmark = pytest.mark.usefixtures("backend")

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def every_shape_and_every_dtype(*shapes):
    """Each shape in single precision, and each dtype in the last shape: no code depends on both."""
    return [*((shape, torch.float32) for shape in shapes[:-1]), *((shapes[-1], dtype) for dtype in DTYPES)]


def gradient(estimator, f, logits, tau=1.0, **kwargs):
    leaf = logits.detach().clone().requires_grad_()
    return torch.autograd.grad(estimator.expectation(f, leaf, tau, **kwargs).sum(), leaf)[0]


@once
def test_every_estimator_of_the_module_is_tested_here():
    classes = {c for c in vars(estimators).values() if isinstance(c, type) and issubclass(c, Estimator)}
    assert {c for c in classes if not inspect.isabstract(c)} == {type(e) for e in EVERY}


@once
@each("estimator", EVERY)
def test_every_docstring_states_bias_and_source(estimator):
    doc = type(estimator).__doc__ or ""
    assert "Bias:" in doc
    assert "Source:" in doc or isinstance(estimator, Enumeration)


@once
@each("estimator", EVERY)
def test_estimators_are_frozen_hashable_and_comparable(estimator):
    assert estimator == type(estimator)(**vars(estimator))
    assert hash(estimator) == hash(type(estimator)(**vars(estimator)))


# The contract of `expectation`, over every estimator


@each("lead, dtype", every_shape_and_every_dtype((), (7,), (2, 3)))
@each("estimator", EVERY)
def test_expectation_takes_any_leading_shape_and_dtype(estimator, lead, dtype):
    logits = torch.randn(*lead, 2, 3).to(dtype).requires_grad_()
    weights = torch.randn(2, 3).to(dtype)
    value = estimator.expectation(lambda z: (1 + (z * weights).sum((-2, -1))).square(), logits, 0.7)
    (g,) = torch.autograd.grad(value.sum(), logits)
    assert (value.shape, value.dtype) == (lead, dtype)
    assert torch.isfinite(g).all()
    assert g.abs().sum() > 0 or isinstance(estimator, RLOO | DisARM)  # equal samples have no gradient


@each("dtype", DTYPES)
@each("estimator", EVERY)
def test_expectation_gives_a_masked_class_no_gradient(estimator, dtype):
    logits = torch.randn(500, 2, 3).to(dtype)
    logits[:, 0, 1] = -torch.inf
    logits.requires_grad_()
    weights = torch.randn(2, 3).to(dtype)
    value = estimator.expectation(lambda z: (z * weights).sum((-2, -1)).square(), logits, 0.5)
    (g,) = torch.autograd.grad(value.sum(), logits)
    assert torch.isfinite(value).all()
    assert torch.isfinite(g).all()
    assert (g[:, 0, 1] == 0).all()
    assert (g[:, 0, 0] != 0).any()


@each("estimator", EVERY)
def test_expectation_refuses_a_row_with_every_class_masked(estimator):
    with pytest.raises(ValueError, match="logits must have a finite entry in every row"):
        estimator.expectation(lambda z: z.sum((-2, -1)), torch.full((2, 2, 3), -torch.inf))


BY_VALUES = [*UNBIASED, Enumeration()]  # weigh values of f by each sample's probability: both need their shapes


@once
@each(
    "logits, sentence",
    [
        (torch.zeros(3), r"logits must have shape \(..., N, K\), got \(3,\)"),
        (torch.zeros(2, 0), r"logits must have at least one class along dim -1, got shape \(2, 0\)"),
        (torch.zeros(2, 3, dtype=torch.int64), "logits must be a floating-point tensor, got torch.int64"),
        ([[0.0, 0.0]], "logits must be a floating-point tensor, got list"),
    ],
)
@each("estimator", BY_VALUES)
def test_estimators_by_values_say_what_logits_they_take(estimator, logits, sentence):
    with pytest.raises((TypeError, ValueError), match=sentence):
        estimator.expectation(lambda z: z.sum((-2, -1)), logits)


@once
@each(
    "f, sentence",
    [
        (lambda z: z.mean(), r"f must return one value for each sample, shape \(.*4,?\) for z of shape .*, got \(\)"),
        (
            lambda z: z.sum(-1),
            r"f must return one value for each sample, shape \(.*4,?\) for z of shape .*, got \(.*4, 2\)",
        ),
        (lambda z: z.sum((-2, -1)).tolist(), "f must return a tensor, got list"),
    ],
)
@each("estimator", BY_VALUES)
def test_estimators_by_values_refuse_an_f_of_another_shape(estimator, f, sentence):
    with pytest.raises((TypeError, ValueError), match=sentence):
        estimator.expectation(f, torch.zeros(4, 2, 3, requires_grad=True))


@once
@each("estimator", BY_VALUES)
def test_rewards_may_be_integers_or_bools(estimator):
    logits = torch.randn(500, 2, 3)
    f = lambda z: (z[..., 0, :].argmax(-1) == 1) & (z[..., 1, 2] > 0)  # noqa: E731
    of_bools, of_integers, of_floats = (
        gradient(estimator, lambda z, cast=cast: cast(f(z)), logits, generator=generator())
        for cast in (torch.Tensor.bool, torch.Tensor.long, torch.Tensor.float)
    )
    assert torch.equal(of_bools, of_floats)
    assert torch.equal(of_integers, of_floats)
    assert of_floats.abs().sum() > 0


@each("dtype", [torch.float16, torch.bfloat16])
@each("estimator", UNBIASED)
def test_the_value_is_fs_to_the_bit_where_the_score_is_far_larger(estimator, dtype):
    """Take 400 latents and values in the hundreds: a product with log q is beyond half precision's range or digits."""
    logits = torch.randn(20, 400, 3).to(dtype).requires_grad_()
    calls = []

    def f(z):
        calls.append(400 * z[..., 0, 0] + z[..., 1, 1])
        return calls[-1]

    value = estimator.expectation(f, logits, 0.5)
    assert torch.equal(value, calls[0] if isinstance(estimator, REBAR) else calls[0].mean(0))
    (g,) = torch.autograd.grad(value.sum(), logits)
    assert torch.isfinite(g).all()


@each("estimator", [*PATHWISE, *UNBIASED])
def test_expectation_is_determined_by_a_generator_and_spares_the_global_state(estimator):
    before = torch.get_rng_state()
    logits = torch.randn(50, 2, 3, generator=generator())
    f = lambda z: (z[..., 0, 0] * z[..., 1, 1] + z[..., 0, 2]).square()  # noqa: E731
    a, b = (gradient(estimator, f, logits, 0.7, generator=generator(3)) for _ in range(2))
    assert torch.equal(a, b)
    assert torch.equal(torch.get_rng_state(), before)


@each("estimator", EVERY)
def test_the_gradient_to_fs_own_parameters_is_that_of_its_values(estimator):
    logits = torch.randn(2, 3, dtype=torch.float64)
    weights = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    calls = []

    def f(z):
        calls.append(z.detach())
        return (z * weights).sum((-2, -1)).square()

    value = estimator.expectation(f, logits, 0.7, generator=generator())
    (g,) = torch.autograd.grad(value, weights)
    if isinstance(estimator, Enumeration):
        expected = enumerated_expectation(lambda z: (z * weights).sum().square(), logits)
    else:
        expected = (calls[0] * weights).sum((-2, -1)).square().mean()
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(g, torch.autograd.grad(expected, weights)[0])


# The contract, over every pathwise estimator


@each("shape, dtype", every_shape_and_every_dtype((5,), (7, 5), (2, 3, 5)))
@each("estimator", PATHWISE)
def test_samples_have_the_logits_shape_and_dtype_and_sum_to_one_along_dim(estimator, shape, dtype):
    for dim in range(-len(shape), len(shape)):
        z = estimator.sample(torch.randn(shape).to(dtype), 0.7, dim)
        assert (z.shape, z.dtype) == (shape, dtype)
        torch.testing.assert_close(z.sum(dim), torch.ones_like(z.sum(dim)), rtol=0, atol=0.02)


@each("dtype", DTYPES)
@each("estimator", HARD)
def test_hard_samples_are_one_hot_to_the_bit_and_distributed_as_softmax(estimator, dtype):
    logits = torch.tensor([0.5, -1.0, 2.0, -torch.inf]).to(dtype)
    z = estimator.sample(logits.expand(10_000, 4), 0.3)
    assert torch.equal(z.unique(), torch.tensor([0.0, 1.0], dtype=dtype))
    assert frequencies_p_value(z.double().sum(0), logits.double().softmax(-1)) > FALSE_FAILURE


@each("estimator", PATHWISE)
def test_a_generator_determines_the_sample_and_spares_the_global_state(estimator):
    before = torch.get_rng_state()
    logits = torch.randn(100, 5, generator=generator())
    a, b = (estimator.sample(logits, 0.7, generator=generator(3)) for _ in range(2))
    assert torch.equal(a, b)
    assert torch.equal(torch.get_rng_state(), before)


@each("dtype", DTYPES)
@each("estimator", PATHWISE)
def test_a_masked_class_is_never_drawn_and_gets_no_gradient(estimator, dtype):
    logits = torch.zeros(2000, 3, dtype=dtype)
    logits[:, 1] = -torch.inf
    logits.requires_grad_()
    z = estimator.sample(logits, 0.5)
    (g,) = torch.autograd.grad((z * torch.randn(3).to(dtype)).sum(), logits)
    assert z[:, 1].sum() == 0
    assert (g[:, 1] == 0).all()
    assert torch.isfinite(g).all()


@each("estimator", PATHWISE)
def test_a_row_with_every_class_masked_raises(estimator):
    with pytest.raises(ValueError, match="logits must have a finite entry in every row"):
        estimator.sample(torch.full((2, 3), -torch.inf))


@each("estimator", PATHWISE)
def test_a_tau_that_is_not_positive_raises(estimator):
    with pytest.raises(ValueError, match="tau must be a positive finite number"):
        estimator.sample(torch.zeros(2, 3), 0.0)


@each("dim", [-1, 0, 1])
@each("estimator", [*HARD, *DIFFUSED])
def test_a_hard_sample_may_be_changed_in_place(estimator, dim):
    x = torch.randn(3, 1, 4, requires_grad=True)
    weights = torch.randn(3, 1, 4)
    z, same = (estimator.sample(x, 0.7, dim, generator=generator()) for _ in range(2))
    z.mul_(2.0)
    (changed,) = torch.autograd.grad((z * weights).sum(), x)
    torch.testing.assert_close(changed, torch.autograd.grad((2.0 * same * weights).sum(), x)[0])


@each("estimator", PATHWISE)
def test_non_contiguous_logits_change_nothing(estimator):
    logits = torch.randn(5, 4, 3)
    a = estimator.sample(logits.transpose(0, 2), 0.5, generator=generator())
    b = estimator.sample(logits.transpose(0, 2).contiguous(), 0.5, generator=generator())
    assert torch.equal(a, b)


@each("estimator", PATHWISE)
def test_vmap_equals_the_batch_by_torch_alone(estimator):
    logits = torch.randn(6, 4, 5)
    torch.manual_seed(0)
    mapped = torch.func.vmap(lambda x: estimator.sample(x, 0.5), randomness="different")(logits)
    torch.manual_seed(0)
    with by_torch_alone():
        assert torch.equal(mapped, estimator.sample(logits, 0.5))


@pytest.mark.parametrize(
    ("estimator", "backend"),
    [*((e, "torch") for e in PATHWISE), *((e, "bound") for e in PATHWISE if e not in BY_TORCH)],
    indirect=["backend"],
    ids=str,
)
@pytest.mark.command
def test_compiles_without_a_graph_break(estimator):
    torch.compiler.reset()
    compiled = torch.compile(estimator.sample, fullgraph=True, backend="aot_eager")
    logits = torch.randn(6, 5, requires_grad=True)
    weights = torch.randn(6, 5)

    def result(sample):
        torch.manual_seed(0)
        z = sample(logits, 0.5)
        return z, torch.autograd.grad((z * weights).sum(), logits)[0]

    expected = result(estimator.sample)
    torch.testing.assert_close(result(compiled), expected)


@each("estimator", PATHWISE)
def test_expectation_is_f_of_the_sample_in_value_and_gradient(estimator):
    logits = torch.randn(4, 2, 3, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(2, 3, dtype=torch.float64)
    f = lambda z: (z * weights).sum((-2, -1)).square()  # noqa: E731
    by_expectation = estimator.expectation(f, logits, 0.5, generator=generator())
    by_sample = f(estimator.sample(logits, 0.5, generator=generator()))
    assert by_expectation.shape == (4,)
    assert torch.equal(by_expectation, by_sample)
    gradients = [torch.autograd.grad(e.sum(), logits)[0] for e in (by_expectation, by_sample)]
    assert torch.equal(*gradients)


@each("estimator", EVERY)
def test_expectation_under_vmap_gives_what_the_batch_gives_in_distribution(estimator):
    logits = torch.randn(2, 3, dtype=torch.float64)
    weights = torch.randn(2, 3, dtype=torch.float64)
    f = lambda z: (1 + (z * weights).sum((-2, -1))).square()  # noqa: E731
    rows = logits.expand(4000, 2, 3)
    value = lambda x: estimator.expectation(f, x, 0.7)  # noqa: E731
    mapped = torch.func.vmap(torch.func.grad(value), randomness="different")(rows)
    batched = gradient(estimator, f, rows, 0.7)
    if isinstance(estimator, Enumeration):
        torch.testing.assert_close(mapped, batched)
    else:
        assert mean_p_value(mapped - batched, torch.zeros(2, 3)) > FALSE_FAILURE
        assert len({tuple(g.flatten().tolist()) for g in mapped}) >= 9  # not one draw for all rows


@pytest.mark.command
@once
# Of the pathwise ones, whose `expectation` is one, one.
@pytest.mark.parametrize("estimator", [STGumbelSoftmax(), *UNBIASED, Enumeration()], ids=repr)
def test_expectation_compiles_without_a_graph_break(estimator):
    torch.compiler.reset()
    weights = torch.randn(2, 3)
    f = lambda z: (1 + (z * weights).sum((-2, -1))).square()  # noqa: E731
    compiled = torch.compile(lambda x: estimator.expectation(f, x, 0.7), fullgraph=True, backend="aot_eager")
    logits = torch.randn(6, 2, 3, requires_grad=True)

    def result(call):
        torch.manual_seed(0)
        value = call(logits)
        return value, torch.autograd.grad(value.sum(), logits)[0]

    with by_torch_alone() if estimator in BY_TORCH else nullcontext():
        expected = result(lambda x: estimator.expectation(f, x, 0.7))
    torch.testing.assert_close(result(compiled), expected)


@pytest.mark.slow
@pytest.mark.parametrize("estimator", [*PATHWISE, *UNBIASED], ids=repr)
def test_a_hundred_million_draws_with_a_mask_are_finite(estimator):
    logits = torch.randn(100_000, 1, 5)
    logits[:, :, 2] = -torch.inf
    weights = torch.randn(1, 5)
    for _ in range(1000):
        leaf = logits.clone().requires_grad_()
        value = estimator.expectation(lambda z: (z * weights).sum((-2, -1)).square(), leaf, 0.5)
        (g,) = torch.autograd.grad(value.sum(), leaf)
        assert torch.isfinite(value).all()
        assert torch.isfinite(g).all()
        assert (g[:, :, 2] == 0).all()


# Identities


def test_st_gumbel_softmax_has_soft_gumbel_softmaxs_gradient_on_a_linear_f():
    logits = torch.randn(4, 2, 3, dtype=torch.float64)
    weights = torch.randn(2, 3, dtype=torch.float64)
    linear = lambda z: (z * weights).sum((-2, -1))  # noqa: E731
    soft, hard = (gradient(e, linear, logits, 0.5, generator=generator()) for e in (GumbelSoftmax(), STGumbelSoftmax()))
    torch.testing.assert_close(hard, soft, rtol=0, atol=1e-15)


def test_the_named_estimators_are_gumbel_softmax_soft_and_hard():
    logits = torch.randn(4, 3)
    for estimator, hard in ((GumbelSoftmax(), False), (STGumbelSoftmax(), True)):
        expected = gumbel_softmax(logits, 0.5, hard=hard, generator=generator())
        assert torch.equal(estimator.sample(logits, 0.5, generator=generator()), expected)


def test_decoupled_with_equal_taus_is_st_gumbel_softmax_and_its_forward_tau_changes_nothing():
    logits = torch.randn(4, 2, 3, dtype=torch.float64)
    f = lambda z: (z[..., 0, 0] * z[..., 1, 1] + z[..., 0, 2]).square()  # noqa: E731
    decoupled = DecoupledSTGumbelSoftmax(backward_tau=0.7)
    expected = gradient(STGumbelSoftmax(), f, logits, 0.7, generator=generator())
    for forward in (0.7, 0.1, 5.0):
        assert torch.equal(gradient(decoupled, f, logits, forward, generator=generator()), expected)


# One latent of K = 5 classes, its K draws enumerated: the expected gradient of an estimator without further noise

K = 5


def quadratic(A, z):
    return ((z @ A) * z).sum(-1)


def cubic(A, z):
    return quadratic(A, z) * (z @ A[0])


def expected_gradient(estimator, f, logits, tau=1.0):
    """Mean gradient over all K draws, each found among 1,000 and weighted by its probability; f takes (..., K)."""
    leaf = logits.expand(1000, K).clone().requires_grad_()
    z = estimator.sample(leaf, tau, generator=generator())
    (every,) = torch.autograd.grad(f(z).sum(), leaf)
    gradients = dict(zip(z.argmax(-1).tolist(), every, strict=True))
    return logits.softmax(-1) @ torch.stack([gradients[k] for k in range(K)])


def exact_gradient(f, logits):
    return gradient(Enumeration(), lambda z: f(z.squeeze(-2)), logits.unsqueeze(0))[0]


@pytest.fixture
def problem():
    g = generator(7)
    return torch.randn(K, generator=g, dtype=torch.float64), torch.randn(K, K, generator=g, dtype=torch.float64)


@each("estimator", [StraightThrough(), ReinMax()])
def test_straight_through_and_reinmax_are_exact_on_a_linear_f(estimator, problem):
    logits, A = problem
    linear = lambda z: z @ A[0]  # noqa: E731
    error = expected_gradient(estimator, linear, logits) - exact_gradient(linear, logits)
    assert error.abs().max() <= 1e-12


def test_straight_through_is_exact_on_a_linear_f_for_every_draw(problem):
    logits, A = problem
    linear = lambda z: (z @ A[0]).squeeze(-1)  # noqa: E731
    exact = gradient(Enumeration(), linear, logits.unsqueeze(0))
    for seed in range(20):
        estimate = gradient(StraightThrough(), linear, logits.unsqueeze(0), generator=generator(seed))
        torch.testing.assert_close(estimate, exact, rtol=0, atol=1e-12)


def test_reinmax_is_exact_on_a_quadratic_f_and_straight_through_is_not(problem):
    logits, A = problem
    f = lambda z: quadratic(A, z)  # noqa: E731
    exact = exact_gradient(f, logits)
    assert (expected_gradient(ReinMax(), f, logits) - exact).abs().max() <= 1e-12
    for estimator in (StraightThrough(), GappedStraightThrough()):
        assert (expected_gradient(estimator, f, logits) - exact).abs().max() > 0.01


def test_reinmax_is_biased_on_a_cubic_f_and_on_a_quadratic_one_at_tau_two(problem):
    logits, A = problem
    for f, tau in ((lambda z: cubic(A, z), 1.0), (lambda z: quadratic(A, z), 2.0)):
        error = expected_gradient(ReinMax(), f, logits, tau) - exact_gradient(f, logits)
        assert error.abs().max() > 0.01


def test_reinmax_is_the_papers_formula(problem):
    theta, _ = problem
    leaf = theta.clone().requires_grad_()
    D = ReinMax().sample(leaf, 1.3, generator=generator())
    g = torch.randn(K, dtype=torch.float64)
    (ours,) = torch.autograd.grad(D, leaf, g)
    J = lambda p: torch.diag(p) - torch.outer(p, p)  # noqa: E731
    pi, pi_D = theta.softmax(-1), ((theta / 1.3).softmax(-1) + D.detach()) / 2
    torch.testing.assert_close(ours, 2 * J(pi_D) @ g - J(pi) @ g / 2, rtol=0, atol=1e-14)


def test_gapped_straight_through_is_the_papers_formula(problem):
    theta, _ = problem
    g = torch.randn(K, dtype=torch.float64)
    for seed in range(10):
        leaf = theta.clone().requires_grad_()
        D = GappedStraightThrough(gap=0.8).sample(leaf, 0.6, generator=generator(seed))
        shifted = theta.clone()
        drawn = int(D.argmax())
        for k in range(K):  # the drawn class rises to the top, the others fall to the gap below it
            shifted[k] = theta.max() if k == drawn else min(theta[k], theta.max() - 0.8)
        y = (shifted / 0.6).softmax(-1)
        expected = (torch.diag(y) - torch.outer(y, y)) @ g / 0.6
        torch.testing.assert_close(torch.autograd.grad(D, leaf, g)[0], expected, rtol=0, atol=1e-14)


# Sampled gradients against enumeration and each other

DRAWS = 20_000


def sampled_gradients(estimator, f, logits, tau=1.0, draws=DRAWS):
    """One gradient a draw, (draws, N, K)."""
    leaf = logits.expand(draws, *logits.shape).clone().requires_grad_()
    return torch.autograd.grad(estimator.expectation(f, leaf, tau).sum(), leaf)[0]


def test_the_sampled_gradient_of_straight_through_has_the_enumerated_bias(problem):
    logits, A = problem
    f = lambda z: quadratic(A, z.squeeze(-2))  # noqa: E731
    gradients = sampled_gradients(StraightThrough(), f, logits.unsqueeze(0)).squeeze(1)
    predicted = expected_gradient(StraightThrough(), lambda z: quadratic(A, z), logits)
    assert mean_p_value(gradients, predicted) > FALSE_FAILURE
    assert mean_p_value(gradients, exact_gradient(lambda z: quadratic(A, z), logits)) < FALSE_FAILURE  # power


@each("tau", [0.3, 1.0])
@each("estimator", [*UNBIASED, RLOO(samples=2), REBAR(eta=0.3)])
def test_score_function_estimators_are_unbiased_in_value_and_gradient(estimator, tau):
    logits = torch.randn(2, 3, dtype=torch.float64)
    A = torch.randn(6, 6, dtype=torch.float64)
    f = lambda z: torch.einsum("...i,ij,...j->...", z.flatten(-2), A, z.flatten(-2)).sin()  # noqa: E731
    exact = gradient(Enumeration(), f, logits)
    gradients = sampled_gradients(estimator, f, logits, tau)
    assert mean_p_value(gradients, exact) > FALSE_FAILURE
    values = estimator.expectation(f, logits.expand(DRAWS, 2, 3), tau)
    assert mean_p_value(values, Enumeration().expectation(f, logits)) > FALSE_FAILURE


def test_the_test_of_unbiasedness_has_power():
    logits = torch.randn(2, 3, dtype=torch.float64)
    A = torch.randn(6, 6, dtype=torch.float64)
    f = lambda z: torch.einsum("...i,ij,...j->...", z.flatten(-2), A, z.flatten(-2)).sin()  # noqa: E731
    exact = gradient(Enumeration(), f, logits)
    for biased in (StraightThrough(), STGumbelSoftmax(), ReinMax()):
        assert mean_p_value(sampled_gradients(biased, f, logits), exact) < FALSE_FAILURE
    assert mean_p_value(sampled_gradients(RLOO(), f, logits), exact + 0.05) < FALSE_FAILURE


def test_baselines_and_control_variates_lower_the_variance():
    logits = torch.randn(2, 3, dtype=torch.float64)
    weights = torch.randn(2, 3, dtype=torch.float64)
    f = lambda z: 3 + ((z * weights).sum((-2, -1)) - 0.4).square()  # noqa: E731
    plain = sampled_gradients(REBAR(eta=1e-9), f, logits).var(0).sum()  # REINFORCE without baseline
    assert sampled_gradients(RLOO(samples=2), f, logits).var(0).sum() < plain / 4
    assert sampled_gradients(REBAR(eta=1.0), f, logits, 0.5).var(0).sum() < plain / 4


def test_gumbel_rao_with_one_draw_is_st_gumbel_softmax_in_distribution():
    logits = torch.randn(1, 4, dtype=torch.float64)
    A = torch.randn(4, 4, dtype=torch.float64)
    f = lambda z: quadratic(A, z.squeeze(-2))  # noqa: E731
    one, st = (sampled_gradients(e, f, logits, 0.7) for e in (GumbelRao(draws=1), STGumbelSoftmax()))
    for k in range(4):
        assert stats.ks_2samp(one[:, 0, k].numpy(), st[:, 0, k].numpy()).pvalue > FALSE_FAILURE
    other = sampled_gradients(STGumbelSoftmax(), f, logits, 0.8)
    assert stats.ks_2samp(one[:, 0, 0].numpy(), other[:, 0, 0].numpy()).pvalue < FALSE_FAILURE  # power


def test_gumbel_rao_keeps_the_expectation_and_lowers_the_variance_with_every_draw():
    logits = torch.randn(1, 4, dtype=torch.float64)
    A = torch.randn(4, 4, dtype=torch.float64)
    f = lambda z: quadratic(A, z.squeeze(-2))  # noqa: E731
    st = sampled_gradients(STGumbelSoftmax(), f, logits, 0.3)
    gradients = [sampled_gradients(GumbelRao(draws=n), f, logits, 0.3) for n in (1, 2, 5, 20)]
    for g in gradients:
        difference = g - st  # independent draws: the variances add
        assert mean_p_value(difference, torch.zeros(1, 4)) > FALSE_FAILURE
    variances = [g.var(0).sum().item() for g in gradients]
    assert variances == sorted(variances, reverse=True)
    assert variances[-1] < 0.8 * st.var(0).sum()


def test_what_gumbel_rao_keeps_for_backward_does_not_grow_with_its_draws():
    def saved_bytes(draws):
        sizes = {}
        logits = torch.randn(100, 10, requires_grad=True)
        keep = lambda t: sizes.setdefault(t.data_ptr(), t.nbytes) and t  # noqa: E731
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            GumbelRao(draws).sample(logits, 0.5)
        return sum(sizes.values())

    assert saved_bytes(1) == saved_bytes(50)


def test_soft_gumbel_softmax_approaches_the_exact_expectation_as_tau_falls():
    logits = torch.randn(1, 4, dtype=torch.float64)
    f = lambda z: (z.square() * torch.arange(4.0)).sum((-2, -1))  # noqa: E731
    exact = Enumeration().expectation(f, logits)
    errors = [
        (GumbelSoftmax().expectation(f, logits.expand(50_000, 1, 4), tau).mean() - exact).abs().item()
        for tau in (2.0, 0.5, 0.05)
    ]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 0.1


@once
@each(
    "build, sentence",
    [
        (lambda: DecoupledSTGumbelSoftmax(backward_tau=0.0), "backward_tau must be a positive finite number, got 0.0"),
        (lambda: GumbelRao(draws=0), "draws must be at least 1, got 0"),
        (lambda: GappedStraightThrough(gap=-1.0), r"gap must be a positive finite number, got -1.0"),
        (lambda: RLOO(samples=1), "samples must be at least 2, got 1"),
        (lambda: REBAR(eta=float("nan")), "eta must be a positive finite number, got nan"),
    ],
)
def test_bad_parameters_raise_at_construction(build, sentence):
    with pytest.raises(ValueError, match=sentence):
        build()


# The oracle itself


def test_enumeration_equals_the_loop_over_configurations_in_value_and_gradient():
    logits = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    A = torch.randn(12, 12, dtype=torch.float64)
    f = lambda z: torch.einsum("...i,ij,...j->...", z.flatten(-2), A, z.flatten(-2)).sin()  # noqa: E731
    ours = Enumeration().expectation(f, logits)
    loop = enumerated_expectation(f, logits)
    torch.testing.assert_close(ours, loop, rtol=0, atol=1e-13)
    gradients = [torch.autograd.grad(e, logits)[0] for e in (ours, loop)]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-13)
    assert torch.autograd.gradcheck(lambda x: Enumeration().expectation(f, x), (logits,))


def test_enumeration_takes_any_leading_shape():
    logits = torch.randn(2, 3, 2, 4, dtype=torch.float64)
    f = lambda z: z[..., 0, :].argmax(-1).double() * z[..., 1, 2]  # noqa: E731
    whole = Enumeration().expectation(f, logits)
    for i in range(2):
        for j in range(3):
            torch.testing.assert_close(whole[i, j], Enumeration().expectation(f, logits[i, j]))


def test_enumeration_ignores_a_masked_class_and_gives_it_no_gradient():
    logits = torch.tensor([[0.0, 1.0, -torch.inf]], requires_grad=True)
    f = torch.tensor([1.0, 2.0, torch.nan])  # not defined there
    value = Enumeration().expectation(lambda z: torch.where(z > 0, f, 0.0).sum((-2, -1)), logits)
    (g,) = torch.autograd.grad(value, logits)
    torch.testing.assert_close(value, torch.tensor([0.0, 1.0]).softmax(0) @ f[:2])
    assert g[0, 2] == 0
    assert torch.isfinite(g).all()


@once
def test_configurations_are_all_of_them_once():
    z = configurations(torch.zeros(2, 3))
    assert z.shape == (9, 2, 3)
    assert len({tuple(c.argmax(-1).tolist()) for c in z}) == 9
    assert torch.equal(z, one_hot(z.argmax(-1), z))
    assert configurations(torch.zeros(5, 0, 3)).shape == (1, 5, 0, 3)


def test_too_many_configurations_get_a_sentence():
    with pytest.raises(ValueError, match=r"20 latents of 10 classes have 10\^20 configurations"):
        Enumeration().expectation(lambda z: z.sum((-2, -1)), torch.zeros(20, 10))


@once
def test_pathwise_is_the_interface_of_those_that_give_samples():
    assert all(isinstance(e, Pathwise) for e in PATHWISE)
    assert not any(isinstance(e, Pathwise) for e in [*UNBIASED, Enumeration()])
