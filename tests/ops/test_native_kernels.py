import ctypes
import functools
import math
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers.backends import by_torch_alone
from helpers.cases import each
from helpers.oracles import textbook_softmax
from helpers.samples import generator
from helpers.words import double_words, float_words, gumbel_of
from torch import Tensor
from torch._dynamo.testing import CompileCounter
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint

from taugrad.estimators import GumbelRao, ReinMax
from taugrad.ops._fused import draw_seed
from taugrad.ops._sampling import sample
from taugrad.ops.categorical import bernoulli_log_prob, entropy, log_prob
from taugrad.ops.gumbel import gumbel_argmax, gumbel_max, gumbel_softmax
from taugrad.ops.native import kernels
from taugrad.ops.noise import gumbel_noise
from taugrad.ops.onehot import Relaxation
from taugrad.ops.softmax import softmax, softmax_backward

CLASSES = [1, 2, 3, 5, 8, 10, 15, 16, 17, 31, 32, 33, 64, 100, 513, 5000]
ROWS = [1, 3, 17, 100]
TOLERANCES = {torch.float32: 2e-6, torch.float64: 1e-13}
RELAXATIONS = [Relaxation.PERTURBED, Relaxation.PLAIN, Relaxation.GAPPED, Relaxation.MARKED]
GAP = 0.7


def bound_and_not(test):
    """Runs a test with the kernels bound to torch's autograd in C++, and in Python."""
    return pytest.mark.usefixtures("backend")(
        pytest.mark.parametrize("backend", ["bound", "native"], indirect=True)(test)
    )


over_sizes = each("K", CLASSES)
over_dtypes = each("dtype", TOLERANCES)


@pytest.fixture(autouse=True)
def _with_kernels(binding) -> None:
    assert kernels.available()


def cases(K: int, dtype: torch.dtype):
    """Logits (rows, K) and a tau: ordinary ones, masked ones, huge ones, and tau from tiny to large."""
    for rows in ROWS if K < 1000 else ROWS[:3]:
        x = torch.randn(rows, K, dtype=dtype)
        for tau in (1e-3, 0.7, 1.0, 1e3):
            yield x, tau
        yield 1e4 * x, 0.7
        yield x.where(torch.rand(rows, K).argsort(-1) <= K // 2, -torch.inf), 0.7


def assert_near(actual: Tensor, expected: Tensor, dtype: torch.dtype, magnitude: float | Tensor = 1.0) -> None:
    """Assert the dtype's tolerance to an oracle in float64, relative to `magnitude`."""
    assert actual.dtype == dtype
    error = ((actual.double() - expected) / magnitude).abs()
    assert error.max() <= TOLERANCES[dtype]


def roundings(K: int) -> float:
    """Factor of the rounding of a sum of so many numbers, by any softmax, torch's too."""
    return max(1.0, K / 1000)


def dense_backward(grad: Tensor, y: Tensor, tau: float) -> Tensor:
    """J g with the Jacobian written out, in float64, some rows at a time."""
    grad, y = grad.double(), y.double()
    rows = []
    for g, p in zip(grad.unbind(), y.unbind(), strict=True):
        rows.append((torch.diag(p) - torch.outer(p, p)) @ g / tau if len(p) < 500 else (p * g - p * (p @ g)) / tau)
    return torch.stack(rows)


# Each kernel against its oracle


@over_dtypes
@over_sizes
def test_softmax(K, dtype):
    for x, tau in cases(K, dtype):
        assert_near(kernels.softmax(x, tau), textbook_softmax(x, tau, -1), dtype, roundings(K))


@over_dtypes
@over_sizes
def test_softmax_backward(K, dtype):
    for x, tau in cases(K, dtype):
        y = kernels.softmax(x, tau)
        grad = torch.randn_like(y)
        dx = kernels.softmax_backward(grad, y, tau)
        assert_near(dx, dense_backward(grad, y, tau), dtype, grad.abs().max() / tau)


@over_dtypes
@over_sizes
def test_reinmax_backward(K, dtype):
    for x, tau in cases(K, dtype):
        if tau < 1:
            continue  # y^tau is not pi to a relative rounding where y underflows
        z = torch.nn.functional.one_hot(x.argmin(-1) if tau == 1 else x.argmax(-1), K).to(dtype)
        y = kernels.softmax(x, tau)
        grad = torch.randn_like(y)
        dx = kernels.reinmax_backward(grad, torch.where(z > 0, -y, y), tau)
        pi, pi_d = textbook_softmax(x, 1.0, -1), (y.double() + z) / 2
        expected = 2 * dense_backward(grad, pi_d, 1.0) - dense_backward(grad, pi, 1.0) / 2
        assert_near(dx, expected, dtype, 3 * tau * grad.abs().max())  # a rounding of y is raised to the power of tau


@each("tau", [0.01, 0.5, 1.0, 1.5])
@over_dtypes
@over_sizes
def test_reinmaxs_gradient_of_a_masked_class_is_zero(K, dtype, tau):
    x = torch.randn(17, K, dtype=dtype)
    x[:, 1:] = x[:, 1:].where(torch.rand(17, K - 1) < 0.5, -torch.inf)
    _, marked, _ = kernels.sample(x, torch.tensor(3), Relaxation.MARKED, tau)
    dx = kernels.reinmax_backward(torch.randn_like(x), marked, tau)
    assert torch.isfinite(dx).all()
    assert (dx[x == -torch.inf] == 0).all()


def textbook_entropy(x: Tensor) -> tuple[Tensor, Tensor]:
    """H and dH/dx in float64, by torch's autograd of -sum p log p over the classes that are possible."""
    x = x.double().requires_grad_()
    p = textbook_softmax(x, 1.0, -1)
    H = -torch.where(p > 0, p * torch.where(p > 0, p, 1).log(), 0).sum(-1)
    return H.detach(), torch.autograd.grad(H.sum(), x)[0]


@over_dtypes
@over_sizes
def test_entropy_and_its_backward(K, dtype):
    for x, tau in cases(K, dtype):
        if tau != 0.7:
            continue
        expected, gradient = textbook_entropy(x)
        H = kernels.entropy(x)
        assert_near(H, expected, dtype, max(1.0, math.log(K)))
        weights = torch.randn(len(x), dtype=dtype)
        dx = kernels.entropy_backward(weights, x, H)
        assert_near(dx, weights[:, None].double() * gradient.nan_to_num(), dtype, max(1.0, math.log(K)) * 2)
        assert (dx[x == -torch.inf] == 0).all()


@over_dtypes
@over_sizes
def test_log_prob_of_one_and_of_several_z_a_row(K, dtype):
    for x, tau in cases(K, dtype):
        if tau != 0.7:
            continue
        log_p = (x.double() - x.double().amax(-1, keepdim=True)).log_softmax(-1)
        index = torch.randint(K, (3, len(x)))
        index[0] = x.argmax(-1)
        z = torch.nn.functional.one_hot(index, K).to(dtype)
        expected = log_p.expand(3, -1, -1).gather(-1, index[..., None])[..., 0]
        for value, oracle in ((kernels.log_prob(x, z), expected), (kernels.log_prob(x, z[0]), expected[0])):
            assert value.shape == oracle.shape
            possible = torch.isfinite(oracle)
            assert (value[~possible] == -torch.inf).all()
            scale = oracle[possible].abs().clamp_min(max(1.0, math.log(K)))
            assert_near(value[possible], oracle[possible], dtype, scale)


@over_dtypes
@over_sizes
def test_bernoullis_log_prob_and_its_backward_of_one_and_of_several_logits_a_row(K, dtype):
    for rows in ROWS[:3]:
        for scale in (1.0, 30.0, 1e4):
            logits = scale * torch.randn(3, rows, K, dtype=dtype)
            x = torch.rand(rows, K, dtype=dtype).where(torch.rand(rows, K) < 0.2, (torch.rand(rows, K) < 0.5).to(dtype))
            a, weights = logits.double(), torch.randn(3, rows, dtype=dtype)
            terms = x * a - a.clamp_min(0) - (-a.abs()).exp().log1p()
            for i in (slice(None), 1):
                value = kernels.bernoulli(logits[i].contiguous(), x)
                assert value.shape == logits[i].shape[:-1]
                assert_near(value, terms[i].sum(-1), dtype, terms[i].abs().sum(-1).clamp_min(1))
                dx = kernels.bernoulli_backward(weights[i].contiguous(), logits[i].contiguous(), x)
                assert_near(dx, weights[i, ..., None] * (x - a[i].sigmoid()), dtype, weights.abs().max())


@over_dtypes
@over_sizes
def test_gumbel_rao_is_the_mean_of_the_dense_backwards_over_the_noise_that_fits_the_class(K, dtype):
    draws, tau, seed = 3, 0.7, 0x123456789ABCDEF
    for x, of in cases(K, dtype):
        if of != tau or x.max() > 1000:
            continue
        n = x.numel()
        if dtype == torch.float32:
            noise = [gumbel_of(float_words(seed, 0, n // 64 + 1, stream=i)[:n]) for i in range(draws + 1)]
        else:
            noise = [gumbel_of(double_words(seed, n // 32 + 1, stream=i)[:n]) for i in range(draws + 1)]
        first, *rest = [torch.from_numpy(g).view_as(x) for g in noise]
        drawn = torch.nn.functional.one_hot((x + first).argmax(-1), K)
        grad = torch.randn_like(x)
        expected = torch.zeros(x.shape, dtype=torch.float64)
        for g in rest:
            top = (g * drawn).sum(-1, keepdim=True)
            s = torch.where(drawn > 0, top, -torch.logaddexp(-(x.double().log_softmax(-1) + g), -top))
            expected += dense_backward(grad, textbook_softmax(s, tau, -1), tau) / draws
        dx = kernels.gumbel_rao(grad, x, torch.tensor(seed), draws, tau)
        assert_near(dx, expected, dtype, 3 * grad.abs().max() / tau)


def oracle_of_relaxation(x: Tensor, s: Tensor, tau: float, relaxation: Relaxation) -> Tensor:
    x, drawn = x.double(), torch.nn.functional.one_hot(s.argmax(-1), x.shape[-1]) > 0
    if relaxation is Relaxation.PERTURBED:
        return textbook_softmax(s, tau, -1)
    if relaxation is Relaxation.GAPPED:  # the drawn class is lifted to the top, the others kept a gap below
        top = x.amax(-1, keepdim=True)
        return textbook_softmax(torch.where(drawn, top, x.minimum(top - GAP)), tau, -1)
    y = textbook_softmax(x, tau, -1)
    return torch.where(drawn, -y, y) if relaxation is Relaxation.MARKED else y


@pytest.mark.parametrize("relaxation", [Relaxation.NONE, *RELAXATIONS])
@over_dtypes
@over_sizes
def test_a_sample_is_the_argmax_of_the_logits_and_the_noise_of_its_seed_and_y_its_relaxation(K, dtype, relaxation):
    for i, (x, tau) in enumerate(cases(K, dtype)):
        seed = torch.tensor(i)
        s = x + kernels.noise(torch.empty_like(x), seed)
        z, y, failures = kernels.sample(x, seed, relaxation, tau, GAP)
        index, none = kernels.argmax(x, seed)
        assert failures == none == 0
        assert torch.equal(index, s.argmax(-1))
        assert torch.equal(z, torch.nn.functional.one_hot(index, K).to(dtype))
        if relaxation:
            assert_near(y, oracle_of_relaxation(x, s, tau, relaxation), dtype, roundings(K))
            alone = kernels.sample(x, seed, relaxation, tau, GAP, hard=False)
            assert alone[0].numel() == 0
            assert torch.equal(alone[1], y)
        else:
            assert y.numel() == 0


@over_dtypes
@over_sizes
def test_the_drawn_class_is_marked_also_where_its_share_is_zero(K, dtype):
    x = torch.zeros(17, K, dtype=dtype)
    x[:, -1] = 10.0
    for seed in range(50):
        z, y, _ = kernels.sample(x, torch.tensor(seed), Relaxation.MARKED, 1e-3)  # y of the others underflows
        assert torch.equal(y.signbit(), z > 0)


@each("top", [1e-30, 1.0, 1e6, 1e10, 1e20, 1e30])
@over_dtypes
@each("K", [3, 100])
def test_softmax_knows_no_logits_too_large(K, dtype, top):
    x = torch.randn(17, K, dtype=dtype).abs().neg() * top
    for logits in (x, -x, x + top):
        assert_near(kernels.softmax(logits, 1.0), textbook_softmax(logits, 1.0, -1), dtype)


@over_dtypes
@each("K", [8, 100, 5000])
def test_no_share_and_no_gradient_is_below_the_least_normal_number(K, dtype):
    # Arithmetic with such numbers is a hundred times as slow, and a softmax at a low tau is full of them.
    least = torch.finfo(dtype).tiny
    x = torch.linspace(0, math.log(least) - 5, K, dtype=dtype).expand(3, K).contiguous()
    y, there = softmax(x), x.softmax(-1)
    dx = softmax_backward(torch.randn(3, K, dtype=dtype), y)
    assert ((there > 0) & (there < least)).any()
    for found in (y, dx):
        assert ((found == 0) | (found.abs() >= least)).all()
    torch.testing.assert_close(y, there, rtol=2e-5, atol=2 * least)
    assert torch.tensor(least / 4, dtype=dtype) * 2 == least / 2 > 0  # outside it is as it was


@over_dtypes
@each("K", [3, 100])
def test_no_temperature_is_too_small_for_a_sample(K, dtype):
    x = 1000 * torch.randn(17, K, dtype=dtype)
    for tau in (1e-5, 1e-7, 1e-12, 1e-30):
        for relaxation in RELAXATIONS:
            z, y, failures = kernels.sample(x, torch.tensor(0), relaxation, tau, GAP)
            assert failures == 0
            torch.testing.assert_close(y.abs().sum(-1), torch.ones(17, dtype=dtype))
            assert torch.equal(z.sum(-1), torch.ones(17, dtype=dtype))


# Rows without a sample

BAD_ROWS = {
    "NaN": lambda row: row.index_fill(0, torch.tensor(len(row) // 2), float("nan")),
    "all NaN": lambda row: torch.full_like(row, float("nan")),
    "+inf": lambda row: row.index_fill(0, torch.tensor(len(row) - 1), torch.inf),
    "all +inf": lambda row: torch.full_like(row, torch.inf),
    "all masked": lambda row: torch.full_like(row, -torch.inf),
    "NaN and masked": lambda row: torch.full_like(row, -torch.inf).index_fill(0, torch.tensor(0), float("nan")),
}


@each("kind", BAD_ROWS)
@pytest.mark.parametrize("relaxation", [Relaxation.NONE, *RELAXATIONS])
@over_dtypes
@each("K", [1, 2, 5, 10, 31, 33, 100])
def test_a_row_without_a_sample_is_counted_and_nan_and_leaves_the_others_alone(K, dtype, relaxation, kind):
    good = torch.randn(50, K, dtype=dtype)
    x = good.clone()
    bad = torch.zeros(50, dtype=torch.bool)
    bad[[0, 7, 8, 30, 49]] = True
    for r in bad.nonzero().flatten().tolist():
        x[r] = BAD_ROWS[kind](x[r])
    seed = torch.tensor(5)
    z, y, failures = kernels.sample(x, seed, relaxation, 0.7, GAP)
    z_good, y_good, _ = kernels.sample(good, seed, relaxation, 0.7, GAP)
    assert failures == 5
    assert z[bad].isnan().all()
    assert torch.equal(z[~bad], z_good[~bad])
    if relaxation:
        assert y[bad].isnan().all()
        assert torch.equal(y[~bad], y_good[~bad])
        assert kernels.sample(x, seed, relaxation, 0.7, GAP, hard=False)[2] == 5
    index, none = kernels.argmax(x, seed)
    assert none == 5
    assert ((index >= 0) & (index < K)).all()
    assert torch.equal(index[~bad], z_good.argmax(-1)[~bad])


@bound_and_not
def test_a_row_without_a_sample_gets_one_sentence():
    x = torch.tensor([[0.0, 1.0], [torch.nan, 0.0], [0.0, 1.0]], requires_grad=True)
    calls = [gumbel_argmax, gumbel_max, gumbel_softmax, lambda x: gumbel_softmax(x, hard=True), GumbelRao().sample]
    for call in calls:
        with pytest.raises(ValueError, match="logits") as error:
            call(x)
        assert str(error.value) == (
            "logits must have a finite entry in every row and no NaN or +inf, got 1 of 3 rows without"
        )


@over_dtypes
@each("kind", [kind for kind in BAD_ROWS if kind != "all +inf"])
@each("K", [2, 5, 31, 100])
def test_softmax_entropy_and_log_prob_of_a_row_without_a_distribution_are_nan_or_torchs(K, kind, dtype):
    x = torch.randn(20, K, dtype=dtype)
    x[3] = BAD_ROWS[kind](x[3])
    z = torch.nn.functional.one_hot(torch.zeros(20, dtype=torch.int64), K).to(dtype)
    others = torch.arange(20) != 3
    for value in (kernels.softmax(x, 0.7), kernels.entropy(x)[:, None], kernels.log_prob(x, z)[:, None]):
        assert value[3].isnan().all()
        assert torch.isfinite(value[others]).all()


# Threads


@pytest.fixture
def threads():
    yield torch.set_num_threads
    torch.set_num_threads(1)


def everything(x: Tensor, tau: float = 0.8) -> list[Tensor]:
    """Results of every kernel on x."""
    seed, grad = torch.tensor(11), x.flip(-1).contiguous()
    results = [kernels.noise(torch.empty_like(x), seed), kernels.softmax(x, tau), kernels.argmax(x, seed)[0]]
    for relaxation in (Relaxation.NONE, *RELAXATIONS):
        results += kernels.sample(x, seed, relaxation, tau, GAP)[:2]
    y, marked = results[1], results[-1]
    H = kernels.entropy(x)
    results += [kernels.softmax_backward(grad, y, tau), kernels.reinmax_backward(grad, marked, tau), H]
    several = torch.stack([x, grad])
    results += [kernels.entropy_backward(H, x, H), kernels.log_prob(x, y), kernels.log_prob(x, several)]
    results += [kernels.bernoulli(x, y), kernels.bernoulli(several, y), kernels.bernoulli_backward(H, x, y)]
    return [*results, kernels.gumbel_rao(grad, x, seed, 2, tau)]


@over_dtypes
@pytest.mark.parametrize("shape", [(5000, 10), (64, 4096), (3, 50000), (7, 3000)])
def test_results_do_not_depend_on_the_number_of_threads(shape, dtype, threads):
    x = torch.randn(shape, dtype=dtype)
    alone = everything(x)
    for n in (2, 3, 4):
        threads(n)
        assert all(torch.equal(a, b) for a, b in zip(alone, everything(x), strict=True))


def test_failures_of_all_threads_are_counted(threads):
    x = torch.zeros(5000, 10)
    x[::7] = torch.nan
    threads(4)
    for relaxation in (Relaxation.NONE, *RELAXATIONS):
        assert kernels.sample(x, torch.tensor(0), relaxation, 1.0, GAP)[2] == len(x[::7])


@pytest.mark.parametrize("workers", [1, 3, 7])
def test_the_work_is_shared_out_among_the_threads_of_the_pool_that_come(workers, threads, monkeypatch):
    x = torch.randn(5000, 10)
    alone = everything(x)
    asked = []

    @ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
    def parallel(f, data, n, flags):
        asked.append(n)
        for _ in range(workers):  # fewer than were asked for, or more
            ctypes.CFUNCTYPE(None, ctypes.c_void_p)(f)(data)

    monkeypatch.setattr(kernels, "_parallel", lambda: ctypes.cast(parallel, ctypes.c_void_p).value)
    threads(3)
    assert all(torch.equal(a, b) for a, b in zip(alone, everything(x), strict=True))
    assert set(asked) <= {2, 3}
    assert asked.count(3) > 10  # of 17 calls, some of them cheaper
    asked.clear()
    everything(x[:2].contiguous())
    assert asked == []  # not worth waking a thread


def test_without_a_pool_there_is_one_thread(threads, monkeypatch):
    x = torch.randn(5000, 10)
    alone = everything(x)
    monkeypatch.setattr(kernels, "_parallel", lambda: None)
    threads(4)
    assert all(torch.equal(a, b) for a, b in zip(alone, everything(x), strict=True))


def test_the_pool_is_torchs_own():
    assert kernels._parallel() is not None


# Random state


@bound_and_not
@each(
    "draw",
    [gumbel_argmax, gumbel_max, gumbel_softmax, gumbel_noise, lambda x, **rest: gumbel_softmax(x, hard=True, **rest)],
)
def test_samples_follow_torchs_generators(draw):
    x = torch.randn(50, 10)
    assert torch.equal(draw(x, generator=generator(3)), draw(x, generator=generator(3)))
    assert not torch.equal(draw(x, generator=generator(3)), draw(x, generator=generator(4)))
    torch.manual_seed(5)
    first, second = draw(x), draw(x)
    state = torch.get_rng_state()
    third = draw(x)
    assert not torch.equal(first, second)
    torch.set_rng_state(state)
    assert torch.equal(draw(x), third)
    torch.manual_seed(5)
    assert torch.equal(draw(x), first)
    own = generator(3)
    assert not torch.equal(draw(x, generator=own), draw(x, generator=own))


@bound_and_not
def test_a_default_device_elsewhere_does_not_matter_to_a_tensor_on_the_cpu():
    x = torch.randn(50, 10)
    torch.manual_seed(5)
    expected = [gumbel_softmax(x, hard=True), gumbel_argmax(x), gumbel_noise(x)]
    torch.manual_seed(5)
    with torch.device("meta"):
        assert draw_seed(None, x.device).device.type == "cpu"  # the kernel reads its memory
        torch.manual_seed(5)
        actual = [gumbel_softmax(x, hard=True), gumbel_argmax(x), gumbel_noise(x)]
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


# The operator


def operator(x, seed, tau, relaxation=1, gap=GAP):
    return torch.ops.taugrad.sample(x, seed, tau, relaxation, gap)


# opcheck looks at the gradients of what it has made of the inputs (from torch 2.14).
@pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor that is not:UserWarning:torch._subclasses.meta_utils"
)
@each("relaxation, dtype", [*((r, torch.float64) for r in RELAXATIONS), (Relaxation.PERTURBED, torch.float32)])
def test_the_operator_keeps_torchs_rules_of_operators(relaxation, dtype):
    x = torch.randn(4, 5, dtype=dtype, requires_grad=True)
    learned = relaxation is not Relaxation.MARKED
    tau = torch.tensor(0.7, dtype=torch.float64, requires_grad=learned)
    inputs = (x, torch.tensor(3), tau, int(relaxation), GAP)
    rounding = 1e-5 if dtype == torch.float32 else 1e-13  # a softmax's gradient of a sum is zero
    torch.library.opcheck(torch.ops.taugrad.sample.default, inputs, atol=rounding, rtol=rounding)


@each("relaxation", RELAXATIONS)
def test_the_operator_is_the_kernel(relaxation):
    x = torch.randn(2, 3, 5)
    z, y = operator(x, torch.tensor(3), torch.tensor(0.7), int(relaxation))
    expected = kernels.sample(x, torch.tensor(3), relaxation, torch.tensor(0.7).item(), GAP)
    assert torch.equal(z, expected[0])
    assert torch.equal(y, expected[1])
    for odd in (x.transpose(0, 2), torch._neg_view(x), x[:, :0], x.to(torch.bfloat16)):
        z, y = operator(odd, torch.tensor(3), torch.tensor(0.7), int(relaxation))
        plain = operator(odd.contiguous().resolve_neg().clone().float(), torch.tensor(3), torch.tensor(0.7), relaxation)
        assert torch.equal(z, plain[0].to(odd.dtype))
        assert torch.equal(y, plain[1].to(odd.dtype))


@each("relaxation", RELAXATIONS)
def test_vmap_of_the_operator_over_anything_is_the_loop(relaxation):
    xs, seeds = torch.randn(6, 4, 5, dtype=torch.float64), torch.arange(6)
    taus = torch.linspace(0.5, 2, 6, dtype=torch.float64)
    call = lambda x, seed, tau: operator(x, seed, tau, int(relaxation))  # noqa: E731
    for dims in [(0, 0, 0), (0, None, None), (None, 0, None), (None, None, 0), (1, 0, None)]:
        inputs = [t if d is not None else t[0] for t, d in zip((xs, seeds, taus), dims, strict=True)]
        size = next(t.shape[d] for t, d in zip(inputs, dims, strict=True) if d is not None)
        if dims[1] == 0:
            inputs[1] = torch.arange(size)
        z, y = torch.func.vmap(call, in_dims=dims)(*inputs)
        for i in range(size):
            alone = call(*(t if d is None else t.select(d, i) for t, d in zip(inputs, dims, strict=True)))
            assert torch.equal(z[i], alone[0])
            assert torch.equal(y[i], alone[1])


# Compiled programs


class Recorder:
    """A backend of torch.compile that keeps the graphs."""

    def __init__(self):
        self.graphs = []

    def __call__(self, module, inputs):
        self.graphs.append(module)
        return module.forward

    def operators(self) -> set[str]:
        return {str(node.target) for graph in self.graphs for node in graph.graph.nodes if node.op == "call_function"}


@pytest.fixture
def compiler():
    torch.compiler.reset()
    yield torch.compile
    torch.compiler.reset()


def both(call, *inputs, seed: int = 0):
    """A value, and its gradient to every input that takes one."""
    torch.manual_seed(seed)
    y = call(*inputs)
    weights = torch.arange(1.0, y.numel() + 1, dtype=y.dtype).view_as(y)
    wanted = [t for t in inputs if isinstance(t, Tensor) and t.requires_grad]
    return y.detach(), *torch.autograd.grad((y * weights).sum(), wanted)


@pytest.mark.command
@pytest.mark.parametrize("tau", [0.5, torch.tensor(0.5)], ids=["number", "tensor"])
def test_compiled_programs_have_the_operator(tau, compiler):
    recorder = Recorder()
    x = torch.randn(6, 5, requires_grad=True)
    hard = lambda x, tau: gumbel_softmax(x, tau, hard=True)  # noqa: E731
    compiled = compiler(hard, fullgraph=True, backend=recorder)
    torch.testing.assert_close(both(compiled, x, tau), both(hard, x, tau))
    assert any("taugrad.sample" in name for name in recorder.operators())
    with by_torch_alone():
        torch.compiler.reset()
        plain = Recorder()
        both(compiler(hard, fullgraph=True, backend=plain), x, tau)
    assert not any("taugrad.sample" in name for name in plain.operators())


@pytest.mark.command
@pytest.mark.parametrize("call", [gumbel_softmax, lambda x, tau: sample(x, tau, 0), lambda x, tau: x * sample(x, tau)])
def test_compiled_samples_and_gradients_are_those_of_eager_mode(call, compiler):
    x = torch.randn(6, 5, requires_grad=True)
    tau = torch.tensor(0.5, requires_grad=True)
    compiled = compiler(call, fullgraph=True, backend="aot_eager")
    for seed in (0, 1):
        torch.testing.assert_close(both(compiled, x, tau, seed=seed), both(call, x, tau, seed=seed))


@pytest.mark.command
@pytest.mark.parametrize("relaxation", RELAXATIONS)
def test_every_relaxation_compiles(relaxation, compiler):
    x = torch.randn(6, 5, requires_grad=True)
    call = lambda x: sample(x, 1.3, relaxation=relaxation, gap=GAP)  # noqa: E731
    torch.testing.assert_close(both(compiler(call, fullgraph=True, backend="aot_eager"), x), both(call, x))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.command
def test_inductor_compiles_a_sample_as_well(compiler):
    with torch._inductor.config.patch(fallback_random=True):  # else its own random numbers
        x = torch.randn(6, 5, requires_grad=True)
        call = lambda x: gumbel_softmax(x * 2, 0.5, hard=True) * x  # noqa: E731
        torch.testing.assert_close(both(compiler(call, fullgraph=True), x), both(call, x))


@pytest.mark.command
def test_another_value_of_a_tensor_tau_compiles_nothing_anew(compiler):
    counter = CompileCounter()
    compiled = compiler(lambda x, tau: gumbel_softmax(x, tau, hard=True), fullgraph=True, backend=counter)
    for tau in (0.5, 0.7, 1.3):
        compiled(torch.randn(6, 5), torch.tensor(tau))
    assert counter.frame_count == 1
    for tau in (0.5, 0.7):
        compiled(torch.randn(6, 5), tau)
    assert counter.frame_count > 1  # a number is a constant: that is what the counter counts


@pytest.mark.command
def test_a_compiled_sample_of_a_row_without_one_is_nan(compiler):
    x = torch.randn(3, 5)
    x[1] = -torch.inf
    z = compiler(lambda x: gumbel_softmax(x, hard=True), fullgraph=True, backend="aot_eager")(x)
    assert z[1].isnan().all()
    assert torch.equal(z[[0, 2]].sum(-1), torch.ones(2))


# Gradients


@bound_and_not
@each("hard", [False, True])
def test_the_gradient_to_tau_is_that_of_the_relaxation_by_finite_differences(hard):
    x = torch.randn(4, 5, dtype=torch.float64)
    weights = torch.randn(4, 5, dtype=torch.float64)
    loss = lambda tau, hard: (gumbel_softmax(x, tau, hard, generator=generator()) * weights).sum()  # noqa: E731
    tau = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(loss(tau, hard), tau)
    step = 1e-6
    difference = (loss(tau.detach() + step, False) - loss(tau.detach() - step, False)) / (2 * step)
    torch.testing.assert_close(gradient, difference, rtol=1e-7, atol=1e-8)


def soft_and_hard(x: Tensor, tau: float | Tensor) -> tuple[Tensor, Tensor]:
    return tuple(gumbel_softmax(x, tau, hard, generator=generator()) for hard in (False, True))


@bound_and_not
def test_the_second_derivative_of_a_soft_sample_is_that_of_finite_differences():
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    tau = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    call = lambda x, tau: gumbel_softmax(x, tau, generator=generator())  # noqa: E731
    assert torch.autograd.gradcheck(call, (x, tau))
    assert torch.autograd.gradgradcheck(call, (x, tau))
    assert torch.autograd.gradgradcheck(lambda x: call(x, 0.7), (x,))


@bound_and_not
def test_the_second_derivative_of_a_hard_sample_is_that_of_its_soft_one():
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    weights, directions = torch.randn(2, 3, 4, dtype=torch.float64).unbind()
    seconds = []
    for y in soft_and_hard(x, 0.7):
        (first,) = torch.autograd.grad((y * weights).sum(), x, create_graph=True)
        seconds.append(torch.autograd.grad((first * directions).sum(), x)[0])
    assert seconds[0].abs().max() > 0.01
    torch.testing.assert_close(*seconds, rtol=0, atol=1e-13)
    (by_grad,) = torch.autograd.grad((soft_and_hard(x, 0.7)[1] * weights).sum(), x, create_graph=True)
    assert by_grad.requires_grad


def test_the_second_derivatives_of_softmax_and_entropy_are_those_of_finite_differences():
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x: softmax(x, 0.7), (x,))
    assert torch.autograd.gradcheck(entropy, (x,))
    assert torch.autograd.gradgradcheck(entropy, (x,))


# What the kernels cannot take


@pytest.fixture
def calls(monkeypatch) -> list[str]:
    """The names of the kernels that are called."""
    called = []
    names = ["bound_sample", "sample", "argmax", "softmax", "softmax_backward", "reinmax_backward", "gumbel_rao"]
    for name in [*names, "entropy", "log_prob", "bernoulli", "noise"]:
        kernel = getattr(kernels, name)

        def record(*args, _name=name, _kernel=kernel, **kwargs):
            called.append(_name)
            return _kernel(*args, **kwargs)

        monkeypatch.setattr(kernels, name, record)
    return called


def torchs_and_ours(call, *inputs):
    """Results of the torch code and of the default backend."""
    with by_torch_alone():
        torch.manual_seed(0)
        expected = call(*inputs)
    torch.manual_seed(0)
    return expected, call(*inputs)


def test_plain_tensors_go_to_the_kernels(calls):
    x = torch.randn(3, 4, requires_grad=True)
    uses = {
        "bound_sample": lambda: gumbel_softmax(x, hard=True),
        "sample": lambda: gumbel_softmax(x, torch.tensor(1.0), hard=True),
        "argmax": lambda: gumbel_argmax(x),
        "softmax": lambda: softmax(x),
        "softmax_backward": lambda: softmax(x).sum().backward(),
        "reinmax_backward": lambda: ReinMax().sample(x, torch.tensor(1.0)).sum().backward(),
        "gumbel_rao": lambda: GumbelRao().sample(x).sum().backward(),
        "entropy": lambda: entropy(x),
        "log_prob": lambda: log_prob(x.detach(), torch.eye(4)[:3]),
        "bernoulli": lambda: bernoulli_log_prob(x, torch.eye(4)[:3]),
        "noise": lambda: gumbel_noise(x),
    }
    for name, use in uses.items():
        calls.clear()
        use()
        assert name in calls


@bound_and_not
@each("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_a_rounding_of_the_float32_sample(dtype):
    x = torch.randn(20, 5).to(dtype)
    weights = torch.randn(20, 5).to(dtype)
    step = torch.finfo(dtype).eps
    for call in (
        lambda x: gumbel_softmax(x, 0.7, generator=generator()),
        lambda x: gumbel_softmax(x, 0.7, hard=True, generator=generator()),
        lambda x: ReinMax().sample(x, 1.3, generator=generator()),
        lambda x: GumbelRao(3).sample(x, 0.7, generator=generator()),
    ):
        results = []
        for leaf in (x.clone().requires_grad_(), x.float().requires_grad_()):
            y = call(leaf)
            results.append((y, torch.autograd.grad((y * weights.to(y.dtype)).sum(), leaf)[0]))
        (y, dx), (y32, dx32) = results
        assert y.dtype == dx.dtype == dtype
        assert torch.equal(y, y32.to(dtype))
        torch.testing.assert_close(dx.float(), dx32, rtol=0, atol=8 * step)


class Subclass(torch.Tensor):
    pass


def test_subclasses_stay_subclasses_with_the_values_of_plain_tensors():
    x = torch.randn(3, 4).as_subclass(Subclass)
    for call in (
        lambda x: gumbel_softmax(x, hard=True),
        gumbel_softmax,
        gumbel_argmax,
        gumbel_max,
        softmax,
        entropy,
        lambda x: log_prob(x, torch.eye(4)[:3]),
    ):
        assert kernels.available()
        torch.manual_seed(0)
        y = call(x)
        assert isinstance(y, Subclass)
        torch.manual_seed(0)
        torch.testing.assert_close(y.as_subclass(Tensor), call(x.as_subclass(Tensor)))


def test_a_zero_tensor_goes_by_torch():
    zero = torch._efficientzerotensor((3, 4))  # what forward mode gives for a tangent; it has no memory
    assert not kernels.holds(zero)
    y = gumbel_softmax(zero, generator=generator())
    assert torch.equal(y, gumbel_softmax(torch.zeros(3, 4), generator=generator()))


@each("layout", ["to_sparse", "to_mkldnn"])
def test_other_layouts_are_not_for_the_kernels(layout):
    assert not kernels.holds(getattr(torch.zeros(3, 4), layout)())
    assert kernels.holds(torch.zeros(3, 4))


@each("call", [gumbel_softmax, gumbel_max, softmax, entropy, gumbel_noise])
def test_a_fake_tensor_has_a_shape(call, calls):
    shape = call(torch.zeros(3, 4)).shape
    calls.clear()
    with FakeTensorMode():
        assert call(torch.zeros(3, 4)).shape == shape
    assert calls == []


def test_a_dispatch_mode_sees_operators_of_torch(calls):
    seen = []

    class Mode(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            seen.append(str(function))
            return function(*args, **(kwargs or {}))

    with Mode():
        z = gumbel_softmax(torch.zeros(3, 4), hard=True)
    assert any("softmax" in name for name in seen)
    assert calls == []
    assert torch.equal(z.sum(-1), torch.ones(3))


def test_transforms_of_torch_func_go_by_torch_and_give_the_torch_codes_values(calls):
    x, direction = torch.randn(2, 6, 5, dtype=torch.float64).unbind()
    soft = lambda x: gumbel_softmax(x, 0.5)  # noqa: E731
    hard = lambda x: gumbel_softmax(x, 0.5, hard=True)[..., 0].sum()  # noqa: E731
    transforms = [
        torch.func.vmap(soft, randomness="different"),
        torch.func.grad(hard),
        torch.func.vmap(torch.func.grad(hard), randomness="different"),
        lambda x: torch.func.jvp(soft, (x,), (direction,)),
        lambda x: torch.func.vjp(soft, x)[1](direction),
        torch.func.jacrev(soft),
    ]
    for transform in transforms:
        expected, actual = torchs_and_ours(transform, x)
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-15)
        assert not {"sample", "bound_sample", "noise"} & set(
            calls
        )  # a softmax below the transforms may take its kernel


def test_forward_mode_goes_by_torch(calls):
    x, direction = torch.randn(2, 6, 5, dtype=torch.float64).unbind()

    def tangent(x):
        with torch.autograd.forward_ad.dual_level():
            dual = torch.autograd.forward_ad.make_dual(x, direction)
            return torch.autograd.forward_ad.unpack_dual(gumbel_softmax(dual, 0.5)).tangent

    expected, actual = torchs_and_ours(tangent, x)
    assert torch.equal(actual, expected)
    assert calls == []


@pytest.mark.filterwarnings("ignore:`torch.jit.trace` is::torch.jit._trace")
@pytest.mark.parametrize("hard", [False, True])
def test_a_traced_sample_is_drawn_anew_at_every_run(hard, calls):
    x = torch.randn(100, 5)
    traced = torch.jit.trace(lambda x: gumbel_softmax(x, 0.5, hard), x, check_trace=False)
    assert calls == []
    first, second = traced(x), traced(x)
    assert not torch.equal(first, second)
    assert torch.equal(traced(torch.tensor([[0.0, -torch.inf]] * 100))[:, 0], torch.ones(100))


@bound_and_not
@each(
    "call",
    [
        lambda x: gumbel_softmax(x, hard=True),
        gumbel_softmax,
        lambda x: ReinMax().sample(x, 1.2),
        lambda x: GumbelRao(5).sample(x, 0.7),
        softmax,
        entropy,
        lambda x: bernoulli_log_prob(x, torch.eye(4, dtype=x.dtype)[:3]),
    ],
)
def test_a_batch_of_gradients_is_the_loop(call):
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    y = call(x)
    grads = torch.randn(6, *y.shape, dtype=torch.float64)
    (batched,) = torch.autograd.grad(y, x, grads, retain_graph=True, is_grads_batched=True)
    loop = [torch.autograd.grad(y, x, grad, retain_graph=True)[0] for grad in grads]
    torch.testing.assert_close(batched, torch.stack(loop))


@bound_and_not
def test_a_view_with_a_negative_bit_has_its_own_values():
    x = torch.randn(3, 4)
    views = [torch._neg_view(x), torch.complex(torch.zeros(3, 4), x).conj().imag]
    for view in views:
        assert view.is_neg()
        assert not kernels.holds(view)
        for call in (softmax, entropy, lambda x: log_prob(x, torch.eye(4)[:3])):
            torch.testing.assert_close(call(view), call(-x))
        big = torch._neg_view(torch.tensor([[-50.0, 50.0]]).expand(20, 2))
        assert torch.equal(gumbel_argmax(big), torch.zeros(20, dtype=torch.int64))
        assert torch.equal(gumbel_softmax(big, hard=True)[:, 0], torch.ones(20))
        y = torch.rand(3, 4)
        torch.testing.assert_close(softmax_backward(view, y), softmax_backward(-x, y))
    leaf = torch.randn(3, 4, requires_grad=True)
    grads = [
        torch.autograd.grad(gumbel_softmax(leaf, hard=True, generator=generator()), leaf, grad)[0]
        for grad in (views[0], -x)
    ]
    torch.testing.assert_close(*grads)


@bound_and_not
def test_empty_batches_pass_through_with_their_gradients():
    for shape in [(0, 3), (2, 0, 3)]:
        x = torch.zeros(shape, requires_grad=True)
        for y in (gumbel_softmax(x), gumbel_softmax(x, hard=True), softmax(x), ReinMax().sample(x), entropy(x)):
            assert torch.autograd.grad(y.sum(), x)[0].shape == shape
        assert gumbel_argmax(x).shape == shape[:-1]
        assert gumbel_max(x).shape == shape
        with torch.no_grad():
            assert log_prob(x, torch.zeros(shape)).shape == shape[:-1]
    assert gumbel_noise(torch.empty(0)).shape == (0,)
    assert gumbel_noise(torch.empty(())).isfinite()


@bound_and_not
@each("dim", [0, 1, 2, -1])
def test_strides_and_dims_change_nothing_but_the_order(dim):
    x = torch.randn(5, 6, 4).transpose(0, 2)
    expanded = torch.randn(4, 1, 5).expand(4, 6, 5)
    for odd in (x, expanded, torch.randn(8, 12, 10)[::2, ::2, ::2]):
        last = odd.movedim(dim, -1).contiguous()
        for hard in (False, True):
            results = []
            for logits, d in ((odd, dim), (last, -1)):
                leaf = logits.detach().requires_grad_()
                y = gumbel_softmax(leaf, 0.5, hard, dim=d, generator=generator())
                weights = torch.arange(float(last.numel())).view_as(last).movedim(-1, d)
                dx = torch.autograd.grad((y * weights).sum(), leaf)[0]
                results.append((y.movedim(d, -1), dx.movedim(d, -1)))
            torch.testing.assert_close(*results, rtol=1e-6, atol=1e-6)
        assert torch.equal(gumbel_argmax(odd, dim, generator=generator()), gumbel_argmax(last, generator=generator()))


def test_a_gradient_to_be_broadcast_is_not_read_beyond_its_end():
    grad, y = torch.randn(5, dtype=torch.float64), torch.rand(4000, 5, dtype=torch.float64)
    torch.testing.assert_close(softmax_backward(grad, y), softmax_backward(grad.expand(4000, 5), y))


@bound_and_not
def test_inference_mode_draws_too():
    with torch.inference_mode():
        z = gumbel_softmax(torch.randn(3, 4), hard=True)
    assert torch.equal(z.sum(-1), torch.ones(3))


# The gradient in the place of y, by the binding


def draw_again(relaxation, x) -> Tensor:
    """A hard sample of x, with the same noise every time."""
    torch.manual_seed(5)
    return sample(x, 1.3, relaxation=relaxation)


@pytest.fixture(params=["softmax", "reinmax", "bound softmax", "bound reinmax"])
def drawn(request, monkeypatch):
    """Draws by any of those that keep y."""
    if "bound" not in request.param:
        monkeypatch.setattr(kernels, "_binding", lambda: None)
    return functools.partial(draw_again, Relaxation.MARKED if "reinmax" in request.param else Relaxation.PERTURBED)


@pytest.fixture
def leaf():
    return torch.randn(40, 10, requires_grad=True)


@pytest.fixture
def weights():
    return torch.randn(40, 10)


def separate(drawn, leaf, weights) -> Tensor:
    """The gradient without reuse: a second backward is still possible."""
    return torch.autograd.grad(drawn(leaf), leaf, weights, retain_graph=True)[0]


@each("relaxation", RELAXATIONS)
@over_dtypes
@over_sizes
def test_the_gradient_in_the_place_of_y_is_the_one_in_new_memory_and_the_one_by_python(K, dtype, relaxation):
    for rows in ROWS[:3]:
        leaf, weights = torch.randn(2, rows, K, dtype=dtype).unbind()
        draw = functools.partial(draw_again, relaxation)
        expected = separate(draw, leaf.requires_grad_(), weights)
        assert torch.equal(torch.autograd.grad(draw(leaf), leaf, weights)[0], expected)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(kernels, "_binding", lambda: None)
            assert torch.equal(torch.autograd.grad(draw(leaf), leaf, weights)[0], expected)


def test_the_accumulated_gradient_is_the_same_and_the_next_sample_takes_other_memory(drawn, leaf, weights):
    expected = separate(drawn, leaf, weights)
    drawn(leaf).backward(weights)
    first = leaf.grad
    assert torch.equal(first, expected)
    z = drawn(leaf)
    assert torch.equal(first, expected)
    z.backward(weights)
    assert torch.equal(leaf.grad, 2 * expected)


def test_a_second_backward_gives_the_same_gradient(drawn, leaf, weights):
    z = drawn(leaf)
    first, second = (torch.autograd.grad(z, leaf, weights, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(torch.autograd.grad(z, leaf, weights)[0], first)


@pytest.mark.parametrize("relaxation", [Relaxation.PERTURBED, Relaxation.MARKED])
def test_saved_tensors_that_are_held_keep_their_values(relaxation, leaf, weights, monkeypatch):
    monkeypatch.setattr(kernels, "_binding", lambda: None)  # a node of C++ does not give its tensors away
    draw = functools.partial(draw_again, relaxation)
    expected = separate(draw, leaf, weights)
    z, packed = draw(leaf), []
    held = z.grad_fn.saved_tensors[0]
    view, before = held[3:], held.clone()
    z.grad_fn._raw_saved_tensors[0].register_hooks(lambda t: packed.append(t) or 0, lambda i: packed[i])
    assert torch.equal(torch.autograd.grad(z, leaf, weights)[0], expected)
    assert torch.equal(held, before)
    assert torch.equal(view, before[3:])
    assert torch.equal(packed[0], before)


def test_what_the_hooks_of_saved_tensors_hold_is_left_alone(drawn, leaf, weights):
    expected = separate(drawn, leaf, weights)
    packed = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: packed.append(t) or len(packed) - 1, packed.__getitem__):
        z = drawn(leaf)
    before = [t.clone() for t in packed]
    assert torch.equal(torch.autograd.grad(z, leaf, weights)[0], expected)
    assert all(torch.equal(a, b) for a, b in zip(packed, before, strict=True))


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoints_give_the_same_gradient(drawn, leaf, weights, reentrant):
    expected = separate(drawn, leaf, weights)
    z = checkpoint(lambda x: drawn(x * 1.0), leaf, use_reentrant=reentrant)
    z.backward(weights)
    assert torch.equal(leaf.grad, expected)


def test_saving_on_the_cpu_and_anomaly_mode_give_the_same_gradient(drawn, leaf, weights):
    expected = separate(drawn, leaf, weights)
    with torch.autograd.graph.save_on_cpu():
        z = drawn(leaf)
    assert torch.equal(torch.autograd.grad(z, leaf, weights)[0], expected)
    with torch.autograd.set_detect_anomaly(True, check_nan=True):
        assert torch.equal(torch.autograd.grad(drawn(leaf), leaf, weights)[0], expected)


def test_a_sample_used_twice_adds_its_gradients(drawn, leaf, weights):
    expected = separate(drawn, leaf, weights)
    z = drawn(leaf)
    (dx,) = torch.autograd.grad((z * weights).sum() + (z * 2 * weights).sum(), leaf)
    torch.testing.assert_close(dx, 3 * expected)


def test_an_expanded_gradient_is_one_of_all_elements(drawn, leaf, weights):
    expected = separate(drawn, leaf, torch.ones(40, 10))
    assert torch.equal(torch.autograd.grad(drawn(leaf).sum(), leaf)[0], expected)
    transposed = torch.autograd.grad(drawn(leaf).t(), leaf, weights.t())[0]
    assert torch.equal(transposed, separate(drawn, leaf, weights))


def test_a_gradient_with_a_graph_has_its_own_derivative(drawn, leaf, weights):
    expected = separate(drawn, leaf, weights)
    weights.requires_grad_()
    (dx,) = torch.autograd.grad(drawn(leaf), leaf, weights, create_graph=True)
    torch.testing.assert_close(dx.detach(), expected)
    (by_weights,) = torch.autograd.grad((dx * weights.detach().exp()).sum(), weights)  # its Jacobian, transposed
    torch.testing.assert_close(by_weights, separate(drawn, leaf, weights.detach().exp()))


@each("size", [(40, 10), (3000, 60)])
def test_a_soft_sample_that_is_held_is_left_alone_by_the_binding(size):
    x = torch.randn(size, requires_grad=True)
    y = sample(x, 1.3, hard=False)
    before, held = y.detach().clone(), y.detach()[1:]
    loss = (y * y).sum()
    del y
    expected = softmax_backward(2 * before, before, 1.3)
    torch.testing.assert_close(torch.autograd.grad(loss, x)[0], expected)
    assert torch.equal(held, before[1:])


def test_a_gradient_that_is_the_soft_sample_itself_is_read_before_it_is_overwritten():
    x = torch.randn(40, 10, requires_grad=True)
    y = sample(x, 1.3, hard=False)
    before = y.detach().clone()
    torch.testing.assert_close(torch.autograd.grad(y, x, y.detach())[0], softmax_backward(before, before, 1.3))
    assert torch.equal(y, before)


@each("shape", [(7,), (40, 10), (3000, 60)])
@each("relaxation", RELAXATIONS)
def test_the_binding_draws_the_seed_that_torch_draws(shape, relaxation, monkeypatch):
    x = torch.randn(shape)
    bound = [draw_again(relaxation, x), torch.rand(3)]
    with monkeypatch.context() as patch:
        patch.setattr(kernels, "_binding", lambda: None)
        by_torch = [draw_again(relaxation, x), torch.rand(3)]
    assert all(torch.equal(a, b) for a, b in zip(bound, by_torch, strict=True))


# Other vectors


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="the flags are those of x86")
@pytest.mark.parametrize("flags", ["-mno-avx512f", "-mno-avx512f -mno-avx2", "-mno-avx512f -mno-avx2 -mno-fma"])
def test_narrower_vectors_pass_the_tests_of_the_kernels_and_of_the_noise(flags, tmp_path):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    environment |= {"CXX": f"{os.environ.get('CXX') or 'c++'} {flags}", "XDG_CACHE_HOME": str(tmp_path)}
    files = [__file__, str(Path(__file__).with_name("test_noise.py"))]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "not inductor", *files]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:]
