"""Score-function estimators beyond the common contract: exact expectations, couplings, counts, variances."""

import pytest
import torch
from helpers.cases import each
from helpers.samples import FALSE_FAILURE, frequencies_p_value, generator, mean_p_value
from torch.nn.functional import logsigmoid

from taugrad.estimators import REBAR, RLOO, DisARM, Enumeration, IndeCateR, control_variates, relax

N, K = 2, 3


def problem(N=N, K=K, seed=1):
    """Logits of moderate probabilities and an f with products of the latents, in float64."""
    g = generator(seed)
    logits = torch.randn(N, K, generator=g, dtype=torch.float64)
    A = torch.randn(N * K, N * K, generator=g, dtype=torch.float64)
    return logits, lambda z: torch.einsum("...i,ij,...j->...", z.flatten(-2).to(A), A, z.flatten(-2).to(A)).sin()


def likelihood(N, K):
    """The log-likelihood of 16 pixels of -1 and 1 under a linear decoder."""
    g = generator(2)
    W = torch.randn(N * K, 16, generator=g, dtype=torch.float64)
    x = 2.0 * torch.randint(2, (16,), generator=g) - 1
    return lambda z: logsigmoid((z.flatten(-2) @ W) * x).sum(-1)


def exact_gradient(f, logits):
    leaf = logits.clone().requires_grad_()
    return torch.autograd.grad(Enumeration().expectation(f, leaf).sum(), leaf)[0]


def drawn_gradients(estimator, f, logits, draws=10_000, tau=1.0):
    """The classes of f's first samples (draws, samples, N), values and gradients (draws, N, K)."""
    calls = []

    def recorded(z):
        calls.append(z.detach())
        return f(z)

    leaf = logits.expand(draws, N, K).clone().requires_grad_()
    value = estimator.expectation(recorded, leaf, tau, generator=generator())
    classes = calls[0].argmax(-1).view(-1, draws, N).movedim(0, 1)
    return classes, value.detach(), torch.autograd.grad(value.sum(), leaf)[0]


def expected(classes, results, probability):
    """The expectation of what is determined by the classes, each weighted by its probability: nothing is sampled."""
    found = {tuple(c.flatten().tolist()): r for c, r in zip(classes, results, strict=True)}
    assert sum(map(probability, found)) == pytest.approx(1, abs=1e-12)  # all were found
    return sum(probability(c) * r for c, r in found.items())


def stick_breaking_pair(pi):
    """P(z = i, z~ = j), (K, K), by walking along the sticks of probabilities (K,) with antithetic uniform numbers."""
    order = pi.argsort(descending=True).tolist()
    joint = torch.zeros(len(pi), len(pi), dtype=torch.float64)
    both_on = 1.0
    for at, i in enumerate(order):
        later = order[at + 1 :]
        left = sum(pi[j] for j in later)
        p = pi[i] / (pi[i] + left)
        joint[i, i] = both_on * max(2 * p - 1, 0.0)
        for j in later:
            joint[i, j] = joint[j, i] = both_on * min(p, 1 - p) * pi[j] / left
        both_on = both_on * max(1 - 2 * p, 0.0)
    return joint


def test_indecaters_expectation_over_all_draws_is_the_exact_gradient():
    logits, f = problem()
    pi = logits.softmax(-1)
    classes, values, gradients = drawn_gradients(IndeCateR(), f, logits)
    probability = lambda c: (pi[0, c[0]] * pi[1, c[1]]).item()  # noqa: E731
    torch.testing.assert_close(expected(classes, gradients, probability), exact_gradient(f, logits), rtol=0, atol=1e-12)
    torch.testing.assert_close(expected(classes, values, probability), Enumeration().expectation(f, logits))


@each("samples", [1, 3])
def test_indecater_is_exact_in_every_draw_for_one_latent_and_for_a_sum_over_latents(samples):
    estimator = IndeCateR(samples)
    one, f = problem(N=1, K=5)
    several, _ = problem(N=4, K=3)
    W = torch.randn(4, 3, dtype=torch.float64)
    for logits, of in ((one, f), (several, lambda z: (z * W).sum((-2, -1)))):
        leaf = logits.expand(20, *logits.shape).clone().requires_grad_()
        (ours,) = torch.autograd.grad(estimator.expectation(of, leaf).sum(), leaf)
        torch.testing.assert_close(ours, exact_gradient(of, logits).expand_as(ours), rtol=0, atol=1e-12)


def test_the_pair_of_disarm_has_the_distribution_of_the_coupling_and_the_exact_gradient_in_expectation():
    logits, f = problem()
    pi = logits.softmax(-1)
    joint = [stick_breaking_pair(pi[n]) for n in range(N)]
    for n in range(N):
        torch.testing.assert_close(joint[n].sum(0), pi[n])
        assert joint[n].diagonal().sum() < pi[n].square().sum()  # opposed: equal less often than independent samples
    classes, values, gradients = drawn_gradients(DisARM(), f, logits)
    for n in range(N):
        pairs = classes[:, 0, n] * K + classes[:, 1, n]
        counts = pairs.bincount(minlength=K * K)
        assert frequencies_p_value(counts, joint[n].flatten()) > FALSE_FAILURE
        assert frequencies_p_value(counts, torch.outer(pi[n], pi[n]).flatten()) < FALSE_FAILURE  # power
    probability = lambda c: (joint[0][c[0], c[2]] * joint[1][c[1], c[3]]).item()  # noqa: E731
    torch.testing.assert_close(expected(classes, gradients, probability), exact_gradient(f, logits), rtol=0, atol=1e-12)
    torch.testing.assert_close(expected(classes, values, probability), Enumeration().expectation(f, logits))


def test_disarm_of_two_classes_is_the_papers_formula():
    logits, f = problem(N=1, K=2)
    calls = []
    leaf = logits.expand(50, 1, 2).clone().requires_grad_()
    value = DisARM().expectation(lambda z: calls.append(z) or f(z), leaf, generator=generator())
    (ours,) = torch.autograd.grad(value.sum(), leaf)
    b, other = calls[0][:, :, 0, 1]  # the two bits
    f_b, f_other = f(calls[0])
    phi = logits[0, 1] - logits[0, 0]
    expected = 0.5 * (f_b - f_other) * (-1) ** other * (b != other) * phi.abs().sigmoid()
    assert 0 < (b == other).sum() < 50
    torch.testing.assert_close(ours[:, 0, 1], expected, rtol=0, atol=1e-14)
    torch.testing.assert_close(ours[:, 0, 0], -expected, rtol=0, atol=1e-14)


def gradients_of_pairs_of_rows(logits, f, tau, calls):
    """Gradients of REBAR with a fitted eta in calls of two rows, by `vmap`: (calls, 2, N, K)."""
    value = lambda x: REBAR(eta=None).expectation(f, x, tau).sum()  # noqa: E731
    return torch.func.vmap(torch.func.grad(value), randomness="different")(logits.expand(calls, 2, N, K))


def test_an_eta_fitted_to_the_other_rows_leaves_rebar_unbiased_in_calls_of_two_rows(monkeypatch):
    logits, f = problem()
    exact = exact_gradient(f, logits)
    assert mean_p_value(gradients_of_pairs_of_rows(logits, f, 1.0, 8000), exact) > FALSE_FAILURE

    def fitted_to_all_rows(value, relaxed, weight):
        return (weight * value * relaxed).sum() / (weight * relaxed.square()).sum()

    monkeypatch.setattr(control_variates, "_fitted_to_other_rows", fitted_to_all_rows)
    assert mean_p_value(gradients_of_pairs_of_rows(logits, f, 1.0, 8000), exact) < FALSE_FAILURE  # power


def test_the_eta_of_a_row_is_the_least_squares_fit_to_the_others():
    value, relaxed, weight = torch.rand(3, 2, 4, dtype=torch.float64)
    ours = control_variates._fitted_to_other_rows(value, relaxed, weight)
    value, relaxed, weight = (x.flatten() for x in (value, relaxed, weight))
    for row in range(8):
        others = [i for i in range(8) if i != row]
        root = weight[others].sqrt()
        fit = torch.linalg.lstsq((root * relaxed[others])[:, None], (root * value[others])[:, None]).solution
        torch.testing.assert_close(ours.flatten()[row], fit[0, 0].clamp(0, 2))
    one = torch.ones(1)
    assert control_variates._fitted_to_other_rows(one, one, one).tolist() == [1.0]  # there is no other row


# RELAX


def learned(seed=3):
    """A small c with second derivatives."""
    torch.manual_seed(seed)
    return torch.nn.Sequential(
        torch.nn.Flatten(-2), torch.nn.Linear(N * K, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1), torch.nn.Flatten(-2)
    ).double()


def relax_gradients(f, control, logits, tau=0.7, draws=10_000, seed=0):
    """Gradients to the logits (draws, N, K) and the squares that train c, (draws,)."""
    leaf = logits.expand(draws, N, K).clone().requires_grad_()
    value, square = relax(f, control, leaf, tau, generator=generator(seed))
    return torch.autograd.grad(value.sum(), leaf)[0], square


def test_relax_is_unbiased_with_any_control_and_its_square_is_that_of_the_gradient():
    logits, f = problem()
    exact = exact_gradient(f, logits)
    control = learned()
    scaled = lambda y: 5 * control(y)  # noqa: E731
    gradients, square = relax_gradients(f, scaled, logits, draws=20_000)
    assert mean_p_value(gradients, exact) > FALSE_FAILURE
    torch.testing.assert_close(square, gradients.square().sum((-2, -1)))
    constant = relax_gradients(f, lambda y: scaled(y.detach()) + 0 * y.sum((-2, -1)), logits, draws=20_000)[0]
    assert mean_p_value(constant, exact) < FALSE_FAILURE  # power: without the pathwise part it is biased


def test_relax_with_f_as_its_control_is_rebar():
    logits, f = problem()
    ours, _ = relax_gradients(f, f, logits, draws=50)
    *_, expected = drawn_gradients(REBAR(), f, logits, draws=50, tau=0.7)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-12)


def test_the_square_of_relax_has_the_gradient_of_finite_differences_and_each_result_trains_its_own_part():
    logits, f = problem()
    control, scale = learned(), torch.tensor(1.5, dtype=torch.float64, requires_grad=True)
    parameters = list(control.parameters())
    leaf = logits.expand(30, N, K).clone().requires_grad_()
    value, square = relax(lambda z: scale * f(z), control, leaf, 0.7, generator=generator())
    assert torch.autograd.grad(value.sum(), parameters, allow_unused=True, retain_graph=True) == (None,) * 4
    assert torch.autograd.grad(square.sum(), (leaf, scale), allow_unused=True, retain_graph=True) == (None, None)
    torch.testing.assert_close(torch.autograd.grad(value.sum(), scale, retain_graph=True)[0] * scale, value.sum())
    for parameter, ours in zip(parameters, torch.autograd.grad(square.sum(), parameters), strict=True):
        direction = torch.randn_like(parameter)
        ends = []
        for step in (1e-5, -1e-5):
            with torch.no_grad():
                parameter += step * direction
            g, _ = relax_gradients(lambda z: scale.detach() * f(z), control, logits, draws=30)
            ends.append(g.square().sum())
            with torch.no_grad():
                parameter -= step * direction
        torch.testing.assert_close((ours * direction).sum(), (ends[0] - ends[1]) / 2e-5, rtol=1e-6, atol=1e-6)


def test_a_control_that_trains_by_the_square_lowers_the_variance():
    logits, f = problem()
    shifted = lambda z: 2 + f(z)  # noqa: E731
    control = learned()
    optimizer = torch.optim.Adam(control.parameters(), lr=0.02)
    before = relax_gradients(shifted, control, logits, draws=2000, seed=1)[0].var(0).sum()
    for step in range(100):
        optimizer.zero_grad()
        relax_gradients(shifted, control, logits, draws=200, seed=step + 2)[1].mean().backward()
        optimizer.step()
    after = relax_gradients(shifted, control, logits, draws=2000, seed=1)[0].var(0).sum()
    assert after < before / 5


@each("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_relax_takes_every_dtype_and_masks(dtype):
    control = learned().to(dtype)
    logits = torch.randn(2, 20, N, K).to(dtype)
    logits[..., 0, 1] = -torch.inf
    logits.requires_grad_()
    value, square = relax(lambda z: z[..., 0, 0] + z[..., 1, 1], control, logits, 0.5)
    (g,) = torch.autograd.grad(value.sum(), logits)
    assert (value.shape, value.dtype, square.shape) == ((2, 20), dtype, (2, 20))
    assert torch.isfinite(g).all()
    assert torch.isfinite(square).all()
    assert (g[..., 0, 1] == 0).all()
    assert (g[..., 0, 0] != 0).any()
    square.mean().backward()
    assert all(torch.isfinite(p.grad).all() for p in control.parameters())
    with pytest.raises(ValueError, match="logits must have a finite entry in every row"):
        relax(lambda z: z.sum((-2, -1)), control, torch.full((2, N, K), -torch.inf))


# What they cost and save


def variance(estimator, f, logits, tau=1.0, draws=4000):
    leaf = logits.expand(draws, *logits.shape).clone().requires_grad_()
    return torch.autograd.grad(estimator.expectation(f, leaf, tau).sum(), leaf)[0].var(0).sum()


def test_each_estimator_has_less_variance_than_what_it_improves():
    # The ratios are 8, 1.7 and 2.0, and differ by less than a tenth from seed to seed.
    logits, f = problem(N=3, K=6)
    assert variance(IndeCateR(samples=2), f, logits) < variance(RLOO(samples=2), f, logits) / 4
    logits, f = problem(N=5, K=2)
    assert variance(DisARM(), f, logits) < variance(RLOO(samples=2), f, logits) / 1.3
    logits, _ = problem(N=5, K=4)
    f = likelihood(5, 4)
    assert variance(REBAR(eta=None), f, logits) < variance(REBAR(eta=1.0), f, logits) / 1.4


@each(
    "estimator, evaluations",
    [
        (RLOO(samples=3), [3]),
        (REBAR(eta=None), [1, 1, 1]),
        (IndeCateR(samples=2), [2, 2 * 4 * (3 - 1)]),
        (DisARM(), [2]),
    ],
)
def test_f_is_evaluated_as_often_as_said(estimator, evaluations):
    counts, kept = [], []

    def f(z):
        counts.append(z.shape[:-2].numel())
        kept.append(torch.is_grad_enabled())
        return z.sum((-2, -1))

    estimator.expectation(f, torch.zeros(4, 3, requires_grad=True))
    assert counts == evaluations
    assert kept == ([True, False] if isinstance(estimator, IndeCateR) else [True] * len(counts))


@each("estimator", [RLOO(), IndeCateR(), DisARM(), REBAR(eta=None)])
@each("masked", [(0, 1), (2,), (0,)])
def test_f_never_sees_a_masked_class_and_one_class_alone_has_no_gradient(estimator, masked):
    logits = torch.randn(50, N, K, dtype=torch.float64)
    logits[:, 0, list(masked)] = -torch.inf
    logits.requires_grad_()

    def f(z):
        assert not z[..., 0, list(masked)].any()  # of soft samples neither
        return (z.flatten(-2) @ torch.arange(6.0, dtype=torch.float64)).square()

    (g,) = torch.autograd.grad(estimator.expectation(f, logits).sum(), logits)
    assert (g[:, 0, list(masked)] == 0).all()
    assert (g[:, 0] == 0).all() or len(masked) == 1
    assert (g[:, 1] != 0).any()
    single = torch.zeros(2, 1, requires_grad=True)
    value = estimator.expectation(lambda z: z.sum((-2, -1)), single)
    assert (value.item(), torch.autograd.grad(value, single)[0].tolist()) == (2.0, [[0.0], [0.0]])


@each("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@each("estimator", [IndeCateR(), DisARM(), REBAR(eta=None)])
def test_extreme_logits_give_finite_values_and_gradients(estimator, dtype):
    logits = torch.tensor([[1e4, -1e4, 0.0], [1.0, 1.0, -torch.inf], [-1e4, 0.0, 1e-4]]).to(dtype).expand(100, 3, 3)
    leaf = logits.clone().requires_grad_()
    value = estimator.expectation(lambda z: (z.flatten(-2) @ torch.arange(9.0).to(dtype)).square(), leaf, 0.5)
    (g,) = torch.autograd.grad(value.sum(), leaf)
    assert torch.isfinite(value).all()
    assert torch.isfinite(g).all()


@each(
    "build, sentence",
    [
        (lambda: IndeCateR(samples=0), "samples must be at least 1, got 0"),
        (lambda: REBAR(eta=0.0), "eta must be a positive finite number, got 0.0"),
    ],
)
def test_bad_parameters_raise_at_construction(build, sentence):
    with pytest.raises(ValueError, match=sentence):
        build()
