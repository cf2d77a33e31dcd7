import math

import pytest
import torch
from helpers.backends import once
from helpers.cases import each
from scipy import stats
from torch.distributions import Categorical, kl_divergence

from taugrad.ops.categorical import bernoulli_log_prob, entropy, kl, kl_to_uniform, log_prob, unimix

pytestmark = pytest.mark.usefixtures("backend")

SHAPES = [(5,), (7, 5), (2, 3, 5)]


@each("shape", SHAPES)
def test_values_are_those_of_torch_distributions(shape):
    p, q = torch.randn(2, *shape, dtype=torch.float64).unbind()
    index = torch.randint(5, shape[:-1])
    z = torch.nn.functional.one_hot(index, 5).double()
    torch.testing.assert_close(log_prob(p, z), Categorical(logits=p).log_prob(index))
    torch.testing.assert_close(entropy(p), Categorical(logits=p).entropy())
    torch.testing.assert_close(kl(p, q), kl_divergence(Categorical(logits=p), Categorical(logits=q)))
    torch.testing.assert_close(kl_to_uniform(p), kl(p, torch.zeros_like(p)))


def test_the_classes_may_stand_in_any_dim():
    p, q = torch.randn(2, 3, 4, 5).unbind()
    for dim in (0, 1, -1):
        moved = [t.movedim(dim, -1) for t in (p, q)]
        torch.testing.assert_close(entropy(p, dim), entropy(moved[0]))
        torch.testing.assert_close(kl(p, q, dim), kl(*moved))
        torch.testing.assert_close(kl_to_uniform(p, dim), kl_to_uniform(moved[0]))
        z = torch.rand(3, 4, 5)
        torch.testing.assert_close(log_prob(p, z, dim), log_prob(moved[0], z.movedim(dim, -1)))


@each(
    "call",
    [
        entropy,
        kl_to_uniform,
        lambda x: kl(x, x.flip(0)),
        lambda x: log_prob(x, torch.eye(3, dtype=torch.float64)),
        lambda x: unimix(x, 0.3),
        lambda x: kl(unimix(x, 0.01), unimix(x.flip(0), 0.01)),
        lambda x: bernoulli_log_prob(x, torch.tensor([0.0, 0.3, 1.0], dtype=torch.float64).expand(3, 3)),
    ],
)
def test_gradients_match_finite_differences(call):
    x = torch.randn(3, 3, dtype=torch.float64, requires_grad=True)
    for strided in (lambda x: call(x), lambda x: call(x.t())):
        assert torch.autograd.gradcheck(strided, (x,))
        assert torch.autograd.gradgradcheck(strided, (x,))


def test_a_masked_class_counts_nothing_in_value_and_gradient():
    full = torch.randn(4, 3, dtype=torch.float64)
    masked = torch.cat([full, torch.full((4, 1), -torch.inf, dtype=torch.float64)], -1).requires_grad_()
    full.requires_grad_()
    other = torch.randn(4, 4, dtype=torch.float64)
    pairs = [
        (entropy(masked), entropy(full)),
        (kl_to_uniform(masked), kl_to_uniform(full) + math.log(4 / 3)),
        (kl(masked, masked.detach()), kl(full, full.detach())),
        (log_prob(masked, torch.eye(4)[:1].double()), log_prob(full, torch.eye(3)[:1].double())),
    ]
    for with_mask, without in pairs:
        torch.testing.assert_close(with_mask, without)
        (gradient,) = torch.autograd.grad(with_mask.sum(), masked, retain_graph=True)
        (expected,) = torch.autograd.grad(without.sum(), full, retain_graph=True)
        assert (gradient[:, 3] == 0).all()
        torch.testing.assert_close(gradient[:, :3], expected)
    (gradient,) = torch.autograd.grad(kl(masked, other).sum(), masked)
    assert torch.isfinite(gradient).all()


def test_kl_is_infinite_where_q_masks_what_p_allows():
    q = torch.tensor([0.0, -torch.inf])
    assert kl(torch.zeros(2), q) == math.inf
    assert kl(q, torch.zeros(2)) == pytest.approx(math.log(2))
    assert log_prob(q, torch.tensor([0.0, 1.0])) == -math.inf


@each("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_extreme_logits_stay_finite_in_every_dtype(dtype):
    x = torch.tensor([1e4, -1e4, 0.0]).to(dtype).requires_grad_()
    for value in (entropy(x), kl_to_uniform(x)):
        (gradient,) = torch.autograd.grad(value, x, retain_graph=True)
        assert torch.isfinite(value)
        assert torch.isfinite(gradient).all()


def test_entropy_is_scipys_and_lies_between_zero_and_log_k():
    x = 3 * torch.randn(100, 6, dtype=torch.float64)
    torch.testing.assert_close(entropy(x), torch.from_numpy(stats.entropy(x.softmax(-1).numpy(), axis=-1)))
    assert (entropy(x) >= 0).all()
    assert (kl_to_uniform(x) >= 0).all()


def test_a_row_without_a_distribution_is_nan():
    for row in ([-torch.inf, -torch.inf], [float("nan"), 0.0]):
        assert entropy(torch.tensor(row)).isnan()
        assert kl_to_uniform(torch.tensor(row)).isnan()


@once
@each(
    "call",
    [
        entropy,
        kl_to_uniform,
        lambda x: kl(torch.zeros(2), x),
        lambda x: kl(x, torch.zeros(2)),
        lambda x: log_prob(x, torch.zeros(2)),
    ],
)
def test_integer_logits_get_a_sentence(call):
    with pytest.raises(TypeError, match=r"logits\w* must be a floating-point tensor, got torch.int64"):
        call(torch.zeros(2, dtype=torch.int64))


def test_bernoulli_log_prob_is_torch_distributions_and_broadcasts_over_samples():
    logits = torch.randn(6, 3, 4, dtype=torch.float64)
    x = torch.randint(2, (3, 4)).double()
    expected = torch.distributions.Bernoulli(logits=logits).log_prob(x.expand_as(logits)).sum(-1)
    torch.testing.assert_close(bernoulli_log_prob(logits, x), expected)


@each("dtype", [torch.float64, torch.float32, torch.float16])
def test_unimix_is_the_mixture_of_the_categorical_and_the_uniform_one(dtype):
    logits = (30 * torch.randn(7, 5, dtype=torch.float64)).to(dtype)
    logits[0, 1] = -torch.inf
    p = logits.double().softmax(-1)
    expected = 0.99 * p + 0.01 * torch.full((5,), 0.2, dtype=torch.float64)
    expected[0] = 0.99 * p[0] + 0.01 * torch.tensor([0.25, 0.0, 0.25, 0.25, 0.25], dtype=torch.float64)
    mixed = unimix(logits, 0.01)
    assert mixed.dtype == dtype
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-6, torch.float16: 5e-3}[dtype]
    torch.testing.assert_close(mixed.double().exp(), expected, rtol=tolerance, atol=0)
    if dtype == torch.float64:
        torch.testing.assert_close(entropy(mixed), -torch.special.xlogy(expected, expected).sum(-1))
    torch.testing.assert_close(unimix(logits.t(), 0.01, dim=0), mixed.t())
    torch.testing.assert_close(
        unimix(logits, 0).double(), torch.log_softmax(logits.double(), -1), rtol=tolerance, atol=tolerance
    )


def test_unimix_keeps_the_gradient_of_masked_and_improbable_classes_finite():
    x = torch.tensor([[0.0, -torch.inf, -1e4, 80.0]], requires_grad=True)
    unimix(x, 0.01)[x > -torch.inf].sum().backward()
    assert x.grad.isfinite().all()
    assert x.grad[0, 1] == 0


@each("share", [-0.1, 1.0, 1, True, "0.1", float("nan")])
def test_a_share_out_of_range_is_named(share):
    number = isinstance(share, (int, float)) and share is not True
    sentence = r"share must be in \[0, 1\), got" if number else "share must be a number, got"
    with pytest.raises(ValueError if number else TypeError, match=sentence):
        unimix(torch.zeros(3), share)
