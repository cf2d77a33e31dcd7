"""Numbers at the edges and layouts at random: finite, one-hot to the bit, and equal to the float64 oracles."""

import pytest
import torch
from helpers.cases import each
from helpers.estimators import HARD, PATHWISE, UNBIASED
from helpers.oracles import jacobian, textbook_softmax
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from taugrad import gumbel_noise, gumbel_softmax
from taugrad.ops.softmax import softmax

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
# Of a value or gradient of order 1: rounding to the dtype, and a few roundings of the calculation's own.
TOLERANCES = {torch.float64: 1e-12, torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_billion_draws_are_finite_and_within_the_documented_range(dtype, backend):
    if backend == "bound":
        pytest.skip("noise alone has no binding of its own")
    double = {"torch": (-3.63, 36.75), "native": (-3.81, 45.1)}
    low, high = (
        {"torch": (-2.86, 16.64), "native": (-3.13, 22.9)}[backend] if dtype != torch.float64 else double[backend]
    )
    like = torch.empty(10_000_000, dtype=dtype)
    for _ in range(100):
        g = gumbel_noise(like)
        assert g.min() >= low  # NaN fails both
        assert g.max() <= high


def extreme_logits(dtype):
    """Rows of every kind: far apart, equal, all large, all small, all but one or two masked."""
    logits = 1e4 * (2 * torch.rand(200, 7) - 1)
    logits[:20] *= 1e-4
    logits[20:30] = 1e4
    logits[30:40] = -1e4
    logits[40:60, :3] = -torch.inf
    logits[60:70, 1:] = -torch.inf
    logits[70:80, 2:] = -torch.inf
    return logits.to(dtype).view(100, 2, 7)


@each("dtype", DTYPES)
@each("tau", [1e-4, 1.0, 1e4])
@each("estimator", [*PATHWISE, *UNBIASED])
def test_every_estimator_is_finite_at_extreme_logits_and_temperatures(estimator, tau, dtype, backend):
    logits = extreme_logits(dtype).requires_grad_()
    weights = torch.tensor([1.0, -2.0, 3.0, 0.0, 0.5, -0.5, 1.0], dtype=dtype)
    value = estimator.expectation(lambda z: (z * weights).sum((-2, -1)), logits, tau)
    (gradient,) = torch.autograd.grad(value.sum(), logits)
    assert torch.isfinite(value).all()
    assert torch.isfinite(gradient).all()
    if estimator in HARD:
        z = estimator.sample(logits, tau)
        assert ((z == 0) | (z == 1)).all()
        assert (z.sum(-1) == 1).all()
        assert (z[logits == -torch.inf] == 0).all()


@st.composite
def layouts(draw):
    """A tensor of random shape, strides and dtype, and a dim of it to be that of the classes."""
    shape = draw(st.lists(st.integers(1, 6), min_size=1, max_size=4))
    dim = draw(st.integers(-len(shape), len(shape) - 1))
    shape[dim] = draw(st.sampled_from([1, 2, 3, 5, 8, 16, 17, 33, 100]))
    steps = [draw(st.sampled_from([1, 1, 2, 3])) for _ in shape]
    order = draw(st.permutations(range(len(shape))))
    seed = draw(st.integers(0, 2**31))
    scale = draw(st.sampled_from([0.1, 1.0, 10.0]))
    dtype = draw(st.sampled_from(DTYPES))
    whole = scale * torch.randn(
        [steps[i] * shape[i] for i in order], generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    back = [order.index(i) for i in range(len(shape))]
    x = whole.to(dtype).permute(back)[tuple(slice(None, None, step) for step in steps)]
    if draw(st.booleans()) and len(shape) > 1:  # a dim of stride 0
        other = (dim + 1) % len(shape)
        x = x.narrow(other, 0, 1).expand_as(x)
    assert list(x.shape) == shape
    return x, dim, seed


def oracle(s: Tensor, tau: float, dim: int, weights: Tensor) -> tuple[Tensor, Tensor]:
    """softmax(s / tau) and the gradient of its sum with weights, by the dense Jacobian, in float64."""
    y = textbook_softmax(s, tau, dim).movedim(dim, -1)
    w = weights.double().movedim(dim, -1)
    return y.movedim(-1, dim), (jacobian(y) / tau @ w.unsqueeze(-1)).squeeze(-1).movedim(-1, dim)


def gradient_of(call, x: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    leaf = x.detach().requires_grad_()
    y = call(leaf)
    return y.detach(), torch.autograd.grad(y, leaf, weights)[0]


@settings(max_examples=200, deadline=None, derandomize=True)
@given(layout=layouts(), tau=st.sampled_from([0.1, 0.5, 1.0, 3.0]))
def test_softmax_of_any_layout_is_the_oracles_in_value_and_gradient(layout, tau):
    x, dim, seed = layout
    weights = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed + 1)).to(x.dtype)
    found = gradient_of(lambda x: softmax(x, tau, dim), x, weights)
    for value, expected, size in zip(found, oracle(x, tau, dim, weights), (1.0, 1 / tau), strict=True):
        assert value.dtype == x.dtype
        torch.testing.assert_close(value.double(), expected, rtol=0, atol=4 * size * TOLERANCES[x.dtype])


@settings(max_examples=200, deadline=None, derandomize=True)
@given(layout=layouts(), tau=st.sampled_from([0.1, 0.5, 1.0, 3.0]), hard=st.booleans())
def test_a_sample_of_any_layout_is_the_oracles_of_the_same_noise(layout, tau, hard):
    x, dim, seed = layout
    weights = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed + 1)).to(x.dtype)
    noise = gumbel_noise(x.movedim(dim, -1), generator=torch.Generator().manual_seed(seed))  # it lies along the classes
    s = x.double() + noise.double().movedim(-1, dim)
    generator = torch.Generator().manual_seed(seed)
    z, gradient = gradient_of(lambda x: gumbel_softmax(x, tau, hard, dim=dim, generator=generator), x, weights)
    y, expected = oracle(s, tau, dim, weights)
    if hard:
        assert ((z == 0) | (z == 1)).all()
        assert (z.sum(dim) == 1).all()
        top = s.topk(2, dim).values if x.shape[dim] > 1 else None
        clear = torch.ones_like(z.argmax(dim), dtype=torch.bool)
        if top is not None:  # two that differ by less than a rounding may come out either way
            clear = (top.select(dim, 0) - top.select(dim, 1)) > 1e-4
        assert torch.equal(z.argmax(dim)[clear], s.argmax(dim)[clear])
    else:
        torch.testing.assert_close(z.double(), y, rtol=0, atol=4 / tau * TOLERANCES[x.dtype])
    torch.testing.assert_close(gradient.double(), expected, rtol=0, atol=16 / tau**2 * TOLERANCES[x.dtype])


def test_the_layouts_have_power():
    """A backward that forgot the mean of the gradient would be noticed."""
    x, weights = torch.randn(3, 5, dtype=torch.float16), torch.randn(3, 5, dtype=torch.float16)
    _, expected = oracle(x, 0.5, -1, weights)
    wrong = textbook_softmax(x, 0.5, -1) * weights / 0.5
    with pytest.raises(AssertionError):
        torch.testing.assert_close(wrong, expected, rtol=0, atol=16 / 0.5**2 * TOLERANCES[torch.float16])
