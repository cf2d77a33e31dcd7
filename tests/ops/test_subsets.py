import itertools

import pytest
import torch
from helpers.cases import each
from helpers.samples import FALSE_FAILURE, frequencies_p_value, generator

from taugrad.ops.gumbel import gumbel_softmax
from taugrad.ops.noise import gumbel_noise
from taugrad.ops.subsets import gumbel_k_hot, gumbel_top_k

pytestmark = pytest.mark.usefixtures("backend")

LOGITS = torch.tensor([0.5, -1.0, 1.5, 0.0, -torch.inf])
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def ordered_probabilities(k):
    """Probability of every ordered choice of k classes, one draw after another, by enumeration."""
    pi = LOGITS.double().softmax(-1)
    table = {}
    for choice in itertools.permutations(range(5), k):
        p, left = 1.0, 1.0
        for i in choice:
            p *= (pi[i] / left).item() if left > 1e-12 else 0.0
            left -= pi[i].item()
        table[choice] = p
    return table


@each("k", [1, 2, 3])
def test_top_k_draws_without_replacement_in_order(k):
    index = gumbel_top_k(LOGITS.expand(100_000, 5), k)
    table = ordered_probabilities(k)
    place = {choice: i for i, choice in enumerate(table)}
    drawn = torch.tensor([place[tuple(row)] for row in index.tolist()])
    counts = drawn.bincount(minlength=len(table))
    probabilities = torch.tensor(list(table.values()))
    assert frequencies_p_value(counts, probabilities) > FALSE_FAILURE
    shifted = torch.tensor(list(table.values())) * torch.linspace(0.9, 1.1, len(table))
    assert frequencies_p_value(counts, shifted) < FALSE_FAILURE  # power


@each("dtype", DTYPES)
@each("shape", [(5,), (7, 5), (2, 3, 5)])
def test_k_hot_has_k_ones_where_top_k_points(shape, dtype):
    logits = torch.randn(shape).to(dtype)
    for dim, size in enumerate(shape):
        k = min(2, size)
        z = gumbel_k_hot(logits, k, 0.5, dim, generator=generator())
        index = gumbel_top_k(logits, k, dim, generator=generator())
        assert (z.shape, z.dtype) == (shape, dtype)
        assert torch.equal(z, torch.zeros_like(logits).scatter(dim, index, 1.0))


def test_the_gradient_is_that_of_the_textbook_relaxation():
    logits = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(4, 5, dtype=torch.float64)
    z = gumbel_k_hot(logits, 3, 0.7, generator=generator())
    (ours,) = torch.autograd.grad((z * weights).sum(), logits)
    a = logits + gumbel_noise(logits, generator=generator())
    total = 0.0
    for _ in range(3):
        y = torch.softmax(a / 0.7, -1)
        total = total + y
        a = a + (1 - y).log()
    (expected,) = torch.autograd.grad((total * weights).sum(), logits)
    torch.testing.assert_close(total.sum(-1), torch.full((4,), 3.0, dtype=torch.float64))
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-12)


def test_a_certain_class_leaves_the_gradient_finite():
    logits = torch.tensor([200.0, 100.0, 0.0, -100.0], requires_grad=True)
    z = gumbel_k_hot(logits, 3, 0.01)
    (g,) = torch.autograd.grad((z * torch.randn(4)).sum(), logits)
    assert z.tolist() == [1.0, 1.0, 1.0, 0.0]
    assert torch.isfinite(g).all()


def test_with_k_one_it_is_straight_through_gumbel_softmax():
    logits = torch.randn(10, 5, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(10, 5, dtype=torch.float64)
    results = [
        gumbel_k_hot(logits, 1, 0.5, generator=generator()),
        gumbel_softmax(logits, 0.5, hard=True, generator=generator()),
    ]
    assert torch.equal(*results)
    torch.testing.assert_close(*(torch.autograd.grad((z * weights).sum(), logits)[0] for z in results))


def test_masked_classes_are_never_drawn_and_get_no_gradient():
    logits = LOGITS.expand(10_000, 5).clone().requires_grad_()
    z = gumbel_k_hot(logits, 4, 0.5)
    (g,) = torch.autograd.grad((z * torch.randn(5)).sum(), logits)
    assert z[:, 4].sum() == 0
    assert (g[:, 4] == 0).all()
    assert torch.isfinite(g).all()


@each("call", [gumbel_top_k, gumbel_k_hot])
def test_bad_input_gets_a_sentence(call):
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        call(torch.zeros(3), 0)
    with pytest.raises(ValueError, match="k must be at most 3, the number of classes, got 4"):
        call(torch.zeros(3), 4)
    with pytest.raises(ValueError, match="logits must have 5 finite entries in every row"):
        call(LOGITS, 5)
    with pytest.raises(TypeError, match=r"logits must be a floating-point tensor, got torch.int64"):
        call(torch.zeros(3, dtype=torch.int64), 2)
