import itertools

import pytest
import torch
from helpers.cases import each
from helpers.samples import generator

from taugrad.ops.noise import gumbel_noise
from taugrad.ops.permutations import gumbel_sinkhorn, sinkhorn

pytestmark = pytest.mark.usefixtures("backend")


@each("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@each("lead", [(), (7,), (2, 3)])
def test_samples_are_permutation_matrices(lead, dtype):
    P = gumbel_sinkhorn(torch.randn(*lead, 4, 4).to(dtype))
    assert P.dtype == dtype
    assert ((P == 0) | (P == 1)).all()
    assert (P.sum(-1) == 1).all()
    assert (P.sum(-2) == 1).all()


def test_the_sample_is_the_best_of_all_permutations_of_the_perturbed_scores():
    scores = torch.randn(50, 4, 4, dtype=torch.float64)
    P = gumbel_sinkhorn(scores, generator=generator())
    x = scores + gumbel_noise(scores, generator=generator())
    every = torch.stack([torch.eye(4, dtype=torch.float64)[list(p)] for p in itertools.permutations(range(4))])
    values = torch.einsum("bij,pij->bp", x, every)
    assert torch.equal(P, every[values.argmax(-1)])


def test_sinkhorns_operator_is_doubly_stochastic_and_keeps_what_already_is():
    x = torch.randn(5, 4, 4, dtype=torch.float64)
    S = sinkhorn(x, iterations=200)
    ones = torch.ones(5, 4, dtype=torch.float64)
    torch.testing.assert_close(S.sum(-1), ones)
    torch.testing.assert_close(S.sum(-2), ones)
    torch.testing.assert_close(sinkhorn(S.log(), iterations=1), S)


def test_the_relaxation_approaches_the_sample_as_tau_falls():
    scores = torch.randn(100, 3, 3, dtype=torch.float64)
    x = scores + gumbel_noise(scores, generator=generator())
    P = gumbel_sinkhorn(scores, generator=generator())
    distances = [(sinkhorn(x / tau, 2000) - P).abs().mean().item() for tau in (1.0, 0.1, 0.01)]
    assert distances[0] > distances[1] > distances[2]
    assert distances[2] < 0.02


def test_the_gradient_is_that_of_the_relaxation_and_matches_finite_differences():
    scores = torch.randn(2, 3, 3, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(2, 3, 3, dtype=torch.float64)
    P = gumbel_sinkhorn(scores, 0.7, generator=generator())
    (ours,) = torch.autograd.grad((P * weights).sum(), scores)
    soft = sinkhorn((scores + gumbel_noise(scores, generator=generator())) / 0.7)
    (expected,) = torch.autograd.grad((soft * weights).sum(), scores)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-15)
    assert torch.autograd.gradcheck(sinkhorn, (scores,))


def test_bad_input_gets_a_sentence():
    with pytest.raises(
        ValueError, match=r"scores must be floating point of shape \(..., n, n\), got torch.float32 \(2, 3\)"
    ):
        gumbel_sinkhorn(torch.zeros(2, 3))
    with pytest.raises(ValueError, match="scores must be finite"):
        gumbel_sinkhorn(torch.full((2, 2), -torch.inf))
    with pytest.raises(ValueError, match=r"tau must be a positive finite number, got 0.0"):
        gumbel_sinkhorn(torch.zeros(2, 2), 0.0)
    with pytest.raises(ValueError, match="iterations must be at least 1, got 0"):
        gumbel_sinkhorn(torch.zeros(2, 2), iterations=0)


def test_no_matrices_give_none():
    assert gumbel_sinkhorn(torch.zeros(0, 3, 3)).shape == (0, 3, 3)
