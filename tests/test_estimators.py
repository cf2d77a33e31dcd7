import inspect

import pytest
import torch
from oracles import enumerated_expectation
from statistics_of_samples import FALSE_FAILURE, frequencies_p_value, mean_p_value

from taugrad import estimators
from taugrad.estimators import (
    Enumeration,
    Estimator,
    GumbelSoftmax,
    Pathwise,
    STGumbelSoftmax,
    StraightThrough,
    configurations,
)
from taugrad.gumbel import gumbel_softmax, one_hot

HARD = [STGumbelSoftmax(), StraightThrough()]
PATHWISE = [GumbelSoftmax(), *HARD]
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def gradient(estimator, f, logits, tau=1.0, **kwargs):
    leaf = logits.detach().clone().requires_grad_()
    return torch.autograd.grad(estimator.expectation(f, leaf, tau, **kwargs).sum(), leaf)[0]


def test_every_estimator_of_the_module_is_tested_here():
    classes = {c for c in vars(estimators).values() if isinstance(c, type) and issubclass(c, Estimator)}
    assert {c for c in classes if not inspect.isabstract(c)} == {type(e) for e in [*PATHWISE, Enumeration()]}


@pytest.mark.parametrize("estimator", [*PATHWISE, Enumeration()], ids=repr)
def test_every_docstring_states_its_bias(estimator):
    assert "Bias:" in (type(estimator).__doc__ or "")


# The contract, over every pathwise estimator


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(5,), (7, 5), (2, 3, 5)])
@pytest.mark.parametrize("estimator", PATHWISE, ids=repr)
def test_samples_have_the_logits_shape_and_dtype_and_sum_to_one_along_dim(estimator, shape, dtype):
    for dim in range(-len(shape), len(shape)):
        z = estimator.sample(torch.randn(shape).to(dtype), 0.7, dim)
        assert (z.shape, z.dtype) == (shape, dtype)
        torch.testing.assert_close(z.sum(dim), torch.ones_like(z.sum(dim)), rtol=0, atol=0.02)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("estimator", HARD, ids=repr)
def test_hard_samples_are_one_hot_to_the_bit_and_distributed_as_softmax(estimator, dtype):
    logits = torch.tensor([0.5, -1.0, 2.0, -torch.inf]).to(dtype)
    z = estimator.sample(logits.expand(100_000, 4), 0.3)
    assert set(z.flatten().tolist()) == {0.0, 1.0}
    assert frequencies_p_value(z.double().sum(0), logits.double().softmax(-1)) > FALSE_FAILURE


@pytest.mark.parametrize("estimator", PATHWISE, ids=repr)
def test_a_generator_determines_the_sample_and_spares_the_global_state(estimator):
    before = torch.get_rng_state()
    logits = torch.randn(100, 5, generator=generator())
    a, b = (estimator.sample(logits, 0.7, generator=generator(3)) for _ in range(2))
    assert torch.equal(a, b)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("estimator", PATHWISE, ids=repr)
def test_a_masked_class_is_never_drawn_and_gets_no_gradient(estimator, dtype):
    logits = torch.zeros(10_000, 3, dtype=dtype)
    logits[:, 1] = -torch.inf
    logits.requires_grad_()
    z = estimator.sample(logits, 0.5)
    (g,) = torch.autograd.grad((z * torch.randn(3).to(dtype)).sum(), logits)
    assert z[:, 1].sum() == 0
    assert (g[:, 1] == 0).all()
    assert torch.isfinite(g).all()


@pytest.mark.parametrize("estimator", PATHWISE, ids=repr)
def test_a_row_with_every_class_masked_raises(estimator):
    with pytest.raises(ValueError, match="logits must have a finite entry in every row"):
        estimator.sample(torch.full((2, 3), -torch.inf))


@pytest.mark.parametrize("estimator", PATHWISE, ids=repr)
def test_a_tau_that_is_not_positive_raises(estimator):
    with pytest.raises(ValueError, match="tau must be a positive finite number"):
        estimator.sample(torch.zeros(2, 3), 0.0)


@pytest.mark.parametrize("estimator", PATHWISE, ids=repr)
def test_non_contiguous_logits_change_nothing(estimator):
    logits = torch.randn(5, 4, 3)
    a = estimator.sample(logits.transpose(0, 2), 0.5, generator=generator())
    b = estimator.sample(logits.transpose(0, 2).contiguous(), 0.5, generator=generator())
    assert torch.equal(a, b)


@pytest.mark.parametrize("estimator", PATHWISE, ids=repr)
def test_vmap_equals_the_batch(estimator):
    logits = torch.randn(6, 4, 5)
    torch.manual_seed(0)
    mapped = torch.func.vmap(lambda x: estimator.sample(x, 0.5), randomness="different")(logits)
    torch.manual_seed(0)
    assert torch.equal(mapped, estimator.sample(logits, 0.5))


@pytest.mark.parametrize("estimator", PATHWISE, ids=repr)
def test_compiles_without_a_graph_break(estimator):
    torch.compiler.reset()
    compiled = torch.compile(estimator.sample, fullgraph=True, backend="aot_eager")
    logits = torch.randn(6, 5, requires_grad=True)
    weights = torch.randn(6, 5)
    results = []
    for sample in (compiled, estimator.sample):
        torch.manual_seed(0)
        z = sample(logits, 0.5)
        results.append((z, torch.autograd.grad((z * weights).sum(), logits)[0]))
    torch.testing.assert_close(results[0], results[1])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tau", [1e-4, 1.0, 1e4])
@pytest.mark.parametrize("estimator", PATHWISE, ids=repr)
def test_extreme_logits_and_temperatures_give_finite_values_and_gradients(estimator, tau, dtype):
    logits = torch.tensor([[1e4, -1e4, 0.0], [1.0, 1.0, -torch.inf]]).to(dtype).requires_grad_()
    z = estimator.sample(logits, tau)
    (g,) = torch.autograd.grad((z * torch.tensor([1.0, -2.0, 3.0])).sum(), logits)
    assert torch.isfinite(z).all()
    assert torch.isfinite(g).all()


@pytest.mark.parametrize("estimator", PATHWISE, ids=repr)
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


def test_straight_through_is_exact_on_a_linear_f_for_every_draw():
    logits = torch.randn(1, 5, dtype=torch.float64)
    weights = torch.randn(1, 5, dtype=torch.float64)
    linear = lambda z: (z * weights).sum((-2, -1))  # noqa: E731
    exact = gradient(Enumeration(), linear, logits)
    for seed in range(20):
        estimate = gradient(StraightThrough(), linear, logits, generator=generator(seed))
        torch.testing.assert_close(estimate, exact, rtol=0, atol=1e-12)


def expected_straight_through_gradient(f, logits):
    """Over all K draws of one latent, weighted by their probability."""
    K = logits.shape[-1]
    pi = logits.softmax(-1)
    z = torch.eye(K, dtype=torch.float64).requires_grad_()
    (df,) = torch.autograd.grad(f(z).sum(), z)
    jacobian = torch.diag(pi) - torch.outer(pi, pi)
    return pi @ (df @ jacobian)


def test_straight_through_is_biased_on_a_quadratic_f_and_that_much():
    logits = torch.randn(5, dtype=torch.float64)
    A = torch.randn(5, 5, dtype=torch.float64)
    quadratic = lambda z: ((z @ A) * z).sum(-1)  # noqa: E731
    exact = gradient(Enumeration(), lambda z: quadratic(z.squeeze(-2)), logits.unsqueeze(0))[0]
    predicted = expected_straight_through_gradient(quadratic, logits)
    assert (predicted - exact).abs().max() > 0.01
    draws = 20_000
    leaf = logits.expand(draws, 5).clone().requires_grad_()
    (gradients,) = torch.autograd.grad(quadratic(StraightThrough().sample(leaf)).sum(), leaf)
    assert mean_p_value(gradients, predicted) > FALSE_FAILURE
    assert mean_p_value(gradients, exact) < FALSE_FAILURE  # the test has the power to see the bias


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
    value = Enumeration().expectation(lambda z: z @ torch.tensor([1.0, 2.0, 100.0]) @ torch.ones(1), logits)
    (g,) = torch.autograd.grad(value, logits)
    assert value < 2
    assert g[0, 2] == 0
    assert torch.isfinite(g).all()


def test_configurations_are_all_of_them_once():
    z = configurations(torch.zeros(2, 3))
    assert z.shape == (9, 2, 3)
    assert len({tuple(c.argmax(-1).tolist()) for c in z}) == 9
    assert torch.equal(z, one_hot(z.argmax(-1), z))


def test_too_many_configurations_and_a_wrong_f_get_a_sentence():
    with pytest.raises(ValueError, match=r"logits of 20 x 10 have 10\^20 configurations"):
        Enumeration().expectation(lambda z: z.sum((-2, -1)), torch.zeros(20, 10))
    with pytest.raises(ValueError, match=r"f must return one value for each sample, shape \(9,\)"):
        Enumeration().expectation(lambda z: z.sum(-1), torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"logits must have shape \(..., N, K\), got \(3,\)"):
        Enumeration().expectation(lambda z: z, torch.zeros(3))


def test_pathwise_is_the_interface_of_those_that_give_samples():
    assert all(isinstance(e, Pathwise) for e in PATHWISE)
    assert not isinstance(Enumeration(), Pathwise)
