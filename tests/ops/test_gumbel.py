import math

import pytest
import torch
from helpers.backends import by_torch_alone, of_programs
from helpers.cases import each
from helpers.oracles import relaxed_gradient, textbook_softmax
from helpers.samples import FALSE_FAILURE, frequencies_p_value, generator
from scipy import stats
from torch.nn import functional as F

from taugrad.ops.gumbel import gumbel_argmax, gumbel_max, gumbel_softmax
from taugrad.ops.noise import conditional_perturbed, gumbel_noise
from taugrad.ops.onehot import one_hot, straight_through

pytestmark = pytest.mark.usefixtures("backend")

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
LOGITS = torch.tensor([0.5, -1.0, 2.0, 0.0, -torch.inf])


# Frequencies


@each("dtype", DTYPES)
@each("tau", [0.1, 1.0, 10.0])
def test_hard_samples_are_exact_samples_of_softmax_at_every_tau(dtype, tau):
    logits = LOGITS.to(dtype)
    z = gumbel_softmax(logits.expand(100_000, 5), tau, hard=True)
    assert frequencies_p_value(z.double().sum(0), logits.double().softmax(-1)) > FALSE_FAILURE


def test_gumbel_argmax_samples_softmax():
    index = gumbel_argmax(LOGITS.expand(100_000, 5))
    assert frequencies_p_value(index.bincount(minlength=5), LOGITS.softmax(-1)) > FALSE_FAILURE


def test_gumbel_max_is_gumbel_argmaxs_one_hot():
    logits = torch.randn(100, 5, 3, requires_grad=True)
    z = gumbel_max(logits, 1, generator=generator())
    assert torch.equal(z.argmax(1), gumbel_argmax(logits, 1, generator=generator()))
    assert not z.requires_grad


def test_the_frequency_test_has_power():
    index = gumbel_argmax((LOGITS + torch.tensor([0.05, 0.0, 0.0, 0.0, 0.0])).expand(100_000, 5))
    assert frequencies_p_value(index.bincount(minlength=5), LOGITS.softmax(-1)) < FALSE_FAILURE


def test_soft_samples_are_distributed_as_torchs():
    ours = gumbel_softmax(LOGITS.expand(100_000, 5), 0.7)
    theirs = F.gumbel_softmax(LOGITS.expand(100_000, 5), 0.7)
    for k in range(4):
        assert stats.ks_2samp(ours[:, k].numpy(), theirs[:, k].numpy()).pvalue > FALSE_FAILURE


def test_the_comparison_with_torch_has_power():
    ours = gumbel_softmax(LOGITS.expand(100_000, 5), 0.75)
    theirs = F.gumbel_softmax(LOGITS.expand(100_000, 5), 0.7)
    assert stats.ks_2samp(ours[:, 2].numpy(), theirs[:, 2].numpy()).pvalue < FALSE_FAILURE


def test_perturbed_logits_given_their_argmax_have_the_law_of_those_drawn_without():
    n = 200_000
    s = LOGITS.double().log_softmax(-1) + gumbel_noise(torch.empty(n, 5, dtype=torch.float64))
    index = s.argmax(-1)
    for i in range(4):
        drawn = s[index == i]
        z = one_hot(torch.full((len(drawn),), i), drawn)
        given = conditional_perturbed(LOGITS.double().expand_as(drawn), z)
        assert torch.equal(given.argmax(-1), z.argmax(-1))
        assert (given[:, 4] == -torch.inf).all()
        for k in range(4):
            assert stats.ks_2samp(given[:, k].numpy(), drawn[:, k].numpy()).pvalue > FALSE_FAILURE
    other = one_hot(torch.full((n,), 2), s)
    assert (
        stats.ks_2samp(conditional_perturbed(LOGITS.double().expand(n, 5), other)[:, 0].numpy(), s[:, 0].numpy()).pvalue
        < FALSE_FAILURE
    )  # power


# Values


@each("dtype", DTYPES)
@each("shape", [(5,), (7, 5), (2, 3, 5)])
def test_hard_samples_are_one_hot_to_the_bit_along_any_dim(shape, dtype):
    for dim in range(-len(shape), len(shape)):
        z = gumbel_softmax(torch.randn(shape).to(dtype).requires_grad_(), 0.5, hard=True, dim=dim)
        assert z.dtype == dtype
        assert z.shape == shape
        assert set(z.flatten().tolist()) <= {0.0, 1.0}
        assert (z.sum(dim) == 1).all()


@each("dtype", DTYPES)
def test_soft_samples_are_the_softmax_of_the_noise_that_the_generator_gives(dtype):
    logits = torch.randn(3, 4, 5).to(dtype)
    for dim in (0, 1, -1):
        last = logits.movedim(dim, -1)  # noise lies along the classes
        s = (last.double() + gumbel_noise(last, generator=generator()).double()).movedim(-1, dim)
        y = gumbel_softmax(logits, 0.5, dim=dim, generator=generator())
        tolerance = {torch.float16: 1e-3, torch.bfloat16: 8e-3, torch.float32: 1e-6, torch.float64: 1e-14}[dtype]
        torch.testing.assert_close(y.double(), textbook_softmax(s, 0.5, dim), rtol=0, atol=tolerance)


def test_hard_and_soft_samples_of_one_state_agree_and_so_does_gumbel_argmax():
    logits = torch.randn(100, 5)
    y = gumbel_softmax(logits, 0.5, generator=generator())
    z = gumbel_softmax(logits, 0.5, hard=True, generator=generator())
    index = gumbel_argmax(logits, generator=generator())
    assert torch.equal(z.argmax(-1), y.argmax(-1))
    assert torch.equal(z.argmax(-1), index)


def test_given_the_same_noise_the_gradient_is_torchs(monkeypatch):
    logits = torch.randn(6, 5, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(6, 5, dtype=torch.float64)
    g = gumbel_noise(logits, generator=generator())
    # torch draws its noise as -log of exponential numbers, in place.
    monkeypatch.setattr(torch.Tensor, "exponential_", lambda e: e.copy_((-g).exp()))
    for hard in (False, True):
        theirs = torch.autograd.grad((F.gumbel_softmax(logits, 0.5, hard=hard) * weights).sum(), logits)
        ours = torch.autograd.grad(
            (gumbel_softmax(logits, 0.5, hard=hard, generator=generator()) * weights).sum(), logits
        )
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


@each("hard", [False, True])
def test_the_gradient_is_the_dense_jacobians_product(hard):
    logits = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(4, 5, dtype=torch.float64)
    s = logits.detach() + gumbel_noise(logits, generator=generator())
    z = gumbel_softmax(logits, 0.5, hard, generator=generator())
    (gradient,) = torch.autograd.grad((z * weights).sum(), logits)
    torch.testing.assert_close(gradient, relaxed_gradient(s, weights, 0.5), rtol=0, atol=1e-13)


def test_straight_through_has_the_value_of_one_and_the_gradient_of_the_other():
    soft = torch.rand(100, 3, requires_grad=True)
    hard = one_hot(torch.randint(3, (100,)), soft)
    z = straight_through(hard, soft)
    weights = torch.randn(100, 3)
    assert torch.equal(z, hard)
    assert torch.equal(torch.autograd.grad((z * weights).sum(), soft)[0], weights)


def test_tau_can_be_learned():
    logits = torch.randn(4, 5, dtype=torch.float64)
    tau = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    call = lambda tau: gumbel_softmax(logits, tau, generator=generator())  # noqa: E731
    assert torch.autograd.gradcheck(call, (tau,))


def test_non_contiguous_logits_change_nothing():
    logits = torch.randn(5, 4, 3)
    a = gumbel_softmax(logits.transpose(0, 2), 0.5, hard=True, dim=1, generator=generator())
    b = gumbel_softmax(logits.transpose(0, 2).contiguous(), 0.5, hard=True, dim=1, generator=generator())
    assert torch.equal(a, b)


@each("dtype", DTYPES)
@each("tau", [1e-4, 1.0, 1e4])
def test_extreme_logits_and_temperatures_give_finite_values_and_gradients(dtype, tau):
    logits = torch.tensor([[1e4, -1e4, 0.0], [1.0, 1.0, -torch.inf]]).to(dtype).requires_grad_()
    for hard in (False, True):
        y = gumbel_softmax(logits, tau, hard)
        (gradient,) = torch.autograd.grad((y * torch.tensor([1.0, -2.0, 3.0])).sum(), logits)
        assert torch.isfinite(y).all()
        assert torch.isfinite(gradient).all()


def test_a_masked_class_is_never_drawn_and_gets_no_gradient():
    logits = torch.zeros(10_000, 3)
    logits[:, 1] = -torch.inf
    logits.requires_grad_()
    z = gumbel_softmax(logits, 0.5, hard=True)
    (gradient,) = torch.autograd.grad((z * torch.randn(3)).sum(), logits)
    assert z[:, 1].sum() == 0
    assert (gradient[:, 1] == 0).all()
    assert torch.isfinite(gradient).all()


# Bad input


@each("row", [[float("nan"), 0.0], [torch.inf, 0.0], [-torch.inf, -torch.inf]])
def test_a_row_without_a_distribution_raises_and_says_how_many(row):
    logits = torch.tensor([row, [0.0, 0.0], row])
    for call in (gumbel_argmax, gumbel_softmax, lambda x: gumbel_softmax(x, hard=True)):
        with pytest.raises(
            ValueError, match=r"logits must have a finite entry in every row .* got 2 of 3 rows without"
        ):
            call(logits)


@each("call", [gumbel_argmax, gumbel_softmax])
def test_bad_logits_and_dims_get_a_sentence(call):
    with pytest.raises(TypeError, match=r"logits must be a floating-point tensor, got torch.int64"):
        call(torch.zeros(3, dtype=torch.int64))
    with pytest.raises(IndexError, match=r"dim must be in \[-2, 1\] for logits of shape \(2, 3\), got 2"):
        call(torch.zeros(2, 3), dim=2)
    with pytest.raises(ValueError, match="logits must have at least one class"):
        call(torch.zeros(2, 0))


def test_bad_taus_get_a_sentence_about_tau():
    for tau in (0.0, -1.0, float("nan"), torch.tensor(-1.0)):
        with pytest.raises(ValueError, match="tau must be a positive finite number"):
            gumbel_softmax(torch.zeros(3), tau)


def test_eps_is_taken_as_torch_takes_it_and_warned_of():
    with pytest.warns(FutureWarning, match="eps has no effect"):
        gumbel_softmax(torch.zeros(3), eps=1e-6)
    a = gumbel_softmax(torch.zeros(3), 1, False, 1e-10, -1, generator=generator())
    assert torch.equal(a, gumbel_softmax(torch.zeros(3), generator=generator()))


def test_no_rows_give_no_samples_and_one_class_is_certain():
    assert gumbel_softmax(torch.zeros(0, 3), hard=True).shape == (0, 3)
    assert gumbel_argmax(torch.zeros(0, 3)).shape == (0,)
    assert torch.equal(gumbel_softmax(torch.randn(4, 1), hard=True), torch.ones(4, 1))


# Transforms


@pytest.mark.parametrize("hard", [False, True])
def test_vmap_draws_different_noise_for_every_row_and_bad_rows_become_nan(hard):
    logits = torch.zeros(1000, 3)
    logits[0] = -torch.inf
    call = torch.func.vmap(lambda x: gumbel_softmax(x, 0.5, hard), randomness="different")
    y = call(logits)
    assert y[0].isnan().all()
    frequencies = one_hot(y[1:].argmax(-1), y[1:]).sum(0)
    assert frequencies_p_value(frequencies, torch.full((3,), 1 / 3)) > FALSE_FAILURE


def test_grad_through_vmap_equals_the_batched_gradient():
    logits = torch.randn(6, 5, dtype=torch.float64)
    torch.manual_seed(0)
    per_row = torch.func.vmap(torch.func.grad(lambda x: gumbel_softmax(x, 0.5, hard=True)[0]), randomness="different")(
        logits
    )
    torch.manual_seed(0)
    leaf = logits.clone().requires_grad_()
    with by_torch_alone():
        (batched,) = torch.autograd.grad(gumbel_softmax(leaf, 0.5, hard=True)[:, 0].sum(), leaf)
    torch.testing.assert_close(per_row, batched)


@pytest.mark.command
@of_programs
@each("hard", [False, True])
def test_compiles_without_a_graph_break(hard):
    torch.compiler.reset()
    compiled = torch.compile(gumbel_softmax, fullgraph=True, backend="aot_eager")
    logits = torch.randn(6, 5, requires_grad=True)
    tau = torch.tensor(0.5)
    weights = torch.randn(6, 5)
    results = []
    for call in (compiled, gumbel_softmax):
        torch.manual_seed(0)
        y = call(logits, tau, hard)
        results.append((y, torch.autograd.grad((y * weights).sum(), logits)[0]))
    torch.testing.assert_close(results[0], results[1])


def test_one_hot_and_its_argmax_are_inverse_along_any_dim():
    for dim in (0, 1, 2):
        index = torch.randint(2, [n for d, n in enumerate((2, 2, 2)) if d != dim])
        assert torch.equal(one_hot(index, torch.zeros(2, 2, 2), dim).argmax(dim), index)


def test_the_documented_range_is_what_the_formula_gives():
    assert -math.log(-math.log(1 - 2.0**-24)) == pytest.approx(16.64, abs=0.01)
    assert -math.log(-math.log(2.0**-25)) == pytest.approx(-2.85, abs=0.01)
