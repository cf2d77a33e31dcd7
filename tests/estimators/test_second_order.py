"""ZGR and the straight-through of least variance: exact on quadratic f, and least among all that are."""

import itertools

import pytest
import torch
from helpers.cases import each
from helpers.oracles import jacobian

from taugrad.estimators import ZGR, MinimumVarianceStraightThrough, ReinMax, ReinMaxRao
from taugrad.ops.onehot import one_hot

K = 4


def families(logits, estimator):
    """J_D of every class D, (K, K, K), as its gradient is linear: logits x entries of g."""
    K = len(logits)
    leaf = logits.expand(400, K, K).clone().requires_grad_()
    z = estimator.sample(leaf, generator=torch.Generator().manual_seed(0))
    (columns,) = torch.autograd.grad(z, leaf, torch.eye(K, dtype=logits.dtype).expand(400, K, K))
    drawn = z.argmax(-1)
    return torch.stack([torch.stack([columns[drawn[:, j] == D, j][0] for j in range(K)], -1) for D in range(K)])


def spread(J, pi):
    return (pi * J.square().sum((1, 2))).sum()


@pytest.fixture
def logits():
    return torch.randn(K, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def test_zgr_is_reinmax_at_tau_one_and_the_mean_of_straight_through_and_darn(logits):
    pi, D = logits.softmax(-1), torch.eye(K, dtype=torch.float64)
    J = families(logits, ZGR())
    torch.testing.assert_close(J, families(logits, ReinMax()), rtol=0, atol=1e-15)
    darn = (D - pi).unsqueeze(-1) * (D - pi).unsqueeze(-2)
    torch.testing.assert_close(J, (jacobian(pi) + darn) / 2, rtol=0, atol=1e-15)


@each("alpha", [0.0, 0.3, 1.0])
@each("family", [ZGR, MinimumVarianceStraightThrough])
def test_the_expected_gradient_is_exact_on_quadratic_f_but_for_a_share_of_straight_throughs_bias(family, alpha):
    logits = torch.randn(K, dtype=torch.float64)
    pi, A, b = logits.softmax(-1), torch.randn(K, K, dtype=torch.float64), torch.randn(K, dtype=torch.float64)
    A = A + A.T
    J, exact = families(logits, family(alpha)), jacobian(pi) @ (b + A.diagonal() / 2)
    expected = torch.einsum("d,dij,dj->i", pi, J, b + A)
    straight_through = jacobian(pi) @ (b + A @ pi)
    torch.testing.assert_close(expected - exact, (1 - alpha) * (straight_through - exact), rtol=0, atol=1e-13)
    cube = torch.einsum("d,dij,dj->i", pi, J, 3 * b.expand(K, K) * b.square().unsqueeze(-1))  # of <b, z>^3
    assert (cube - jacobian(pi) @ b.pow(3)).abs().max() > 0.01


def test_no_family_that_is_exact_on_quadratic_f_has_less_variance(logits):
    """The least-squares solution of all K^3 unknowns under one equation for every basis function and logit."""
    pi, unit = logits.softmax(-1), torch.eye(K, dtype=torch.float64)
    rows, targets = [], []
    functions = [(unit[j], torch.zeros(K, K)) for j in range(K)]
    for j, k in itertools.combinations_with_replacement(range(K), 2):
        functions.append((torch.zeros(K), torch.outer(unit[j], unit[k]) + torch.outer(unit[k], unit[j])))
    for b, A in functions:
        exact = jacobian(pi) @ (b + A.diagonal() / 2)
        for i in range(K):
            rows.append(torch.einsum("d,i,dj->dij", pi, unit[i], b + A).flatten())
            targets.append(exact[i])
    weight = pi.sqrt().repeat_interleave(K * K)
    least = torch.linalg.pinv(torch.stack(rows) / weight, rtol=1e-10) @ torch.stack(targets) / weight
    ours = families(logits, MinimumVarianceStraightThrough())
    torch.testing.assert_close(ours, least.view(K, K, K), rtol=0, atol=1e-12)
    assert spread(ours, pi) < 0.99 * spread(families(logits, ZGR()), pi)


@each("dtype, bound", [(torch.float32, 3e-5), (torch.float64, 1e-12)])
@each("exponent", [0.5, 2.0, 4.0])
def test_the_iteration_solves_the_network_of_many_classes_to_rounding(exponent, dtype, bound):
    K = 150  # three blocks
    pi = torch.arange(1, K + 1, dtype=torch.float64).pow(-exponent)
    pi[7] = 0.0
    pi = pi / pi.sum()
    logits = pi.log().to(dtype).requires_grad_()
    for seed in range(3):
        z = MinimumVarianceStraightThrough().sample(logits, generator=torch.Generator().manual_seed(seed))
        g = torch.randn(K, dtype=torch.float64)
        (ours,) = torch.autograd.grad(z, logits, g.to(dtype))
        W = (torch.outer(pi, pi) / (pi.unsqueeze(-1) + pi)).nan_to_num(0.0).fill_diagonal_(0.0)
        D = int(z.argmax())
        a = W[D] / pi[D] * (g - g[D])
        a[D] = -a.sum()
        psi = torch.linalg.lstsq(torch.diag(W.sum(-1)) - W, a.unsqueeze(-1), driver="gelsd").solution.squeeze(-1)
        expected = jacobian(pi) @ psi / 2
        assert (ours - expected).abs().max() <= bound * expected.abs().max()
        assert ours[7] == 0


@each("estimator", [ZGR(), MinimumVarianceStraightThrough(), ReinMaxRao(draws=50)])
def test_what_is_saved_is_a_few_numbers_a_logit(estimator):
    sizes = {}
    logits = torch.randn(3, 500, requires_grad=True)
    keep = lambda t: sizes.setdefault(t.data_ptr(), t.nbytes) and t  # noqa: E731
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        estimator.sample(logits, 0.5)
    assert sum(sizes.values()) <= 4 * logits.nbytes


def test_one_class_alone_has_no_gradient():
    for estimator in (ZGR(), MinimumVarianceStraightThrough()):
        logits = torch.tensor([[3.0, -torch.inf], [-torch.inf, 0.0]], requires_grad=True)
        z = estimator.sample(logits)
        assert torch.equal(z, one_hot(torch.tensor([0, 1]), z))
        assert torch.equal(torch.autograd.grad(z, logits, torch.randn(2, 2))[0], torch.zeros(2, 2))
