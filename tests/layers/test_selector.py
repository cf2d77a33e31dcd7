"""Selection of features against enumeration of what can be selected."""

import copy
import itertools

import pytest
import torch
from helpers.cases import each
from helpers.estimators import PATHWISE
from helpers.samples import FALSE_FAILURE, frequencies_p_value

from taugrad.estimators import RLOO, GumbelSoftmax, STGumbelSoftmax, StraightThrough
from taugrad.layers import Selector


def selector(repetition, estimator=None, k=2, d=4):
    layer = Selector(d, k, estimator or StraightThrough(), repetition=repetition)
    torch.nn.init.normal_(layer.logits)
    return layer


def test_selections_have_the_probabilities_of_their_enumeration():
    n = 1000
    for repetition in (True, False):
        layer = selector(repetition)
        p, features = layer.logits.detach().double().exp(), torch.arange(4.0)
        drawn = [tuple(layer(features).int().tolist()) for _ in range(n)]
        pairs = [(i, j) for i, j in itertools.product(range(4), repeat=2) if repetition or i != j]
        probability = []
        for i, j in pairs:
            left = p[1].sum() - (0 if repetition else p[1, i])
            probability.append(p[0, i] / p[0].sum() * p[1, j] / left)
        assert set(drawn) <= set(pairs)
        counts = torch.tensor([drawn.count(pair) for pair in pairs])
        assert frequencies_p_value(counts, torch.stack(probability)) > FALSE_FAILURE
        assert frequencies_p_value(counts, torch.ones(len(pairs)) / len(pairs)) < FALSE_FAILURE


@each("estimator", PATHWISE)
def test_training_is_a_product_with_the_estimators_samples_and_evaluation_is_indexing(estimator):
    x = torch.randn(3, 5, 4)
    layer = selector(True, estimator)
    u = layer(x, 0.5, generator=torch.Generator().manual_seed(1))
    z = estimator.sample(layer.logits, 0.5, generator=torch.Generator().manual_seed(1))
    assert torch.equal(u, x @ z.T)
    w = torch.randn_like(u)
    ours, theirs = (torch.autograd.grad((v * w).sum(), layer.logits)[0] for v in (u, x @ z.T))
    assert torch.equal(ours, theirs)
    assert ours.abs().sum() > 0
    for repetition in (True, False):
        layer = selector(repetition, estimator).eval()
        assert torch.equal(layer(x), x[..., layer.indices()])


def test_a_temperature_a_row_is_that_of_each_selection():
    tau, x = torch.tensor([[0.1], [5.0]]), torch.randn(6, 4)
    for repetition in (True, False):
        layer = selector(repetition, GumbelSoftmax())
        seeded = lambda: torch.Generator().manual_seed(3)  # noqa: E731
        both = layer(x, tau, generator=seeded())
        torch.testing.assert_close(both[:, 0], layer(x, 0.1, generator=seeded())[:, 0])
        if repetition:
            torch.testing.assert_close(both[:, 1], layer(x, 5.0, generator=seeded())[:, 1])
        assert not torch.allclose(both[:, 1], layer(x, 0.1, generator=seeded())[:, 1])


def test_without_repetition_no_feature_is_taken_twice_and_a_taken_one_gets_no_gradient():
    layer = selector(False, STGumbelSoftmax(), k=4)
    with torch.no_grad():
        layer.logits[:, 2] = 20.0
    x = torch.arange(4.0)
    u = layer(x)
    assert u.sort().values.tolist() == [0, 1, 2, 3]
    assert layer.eval().indices().sort().values.tolist() == [0, 1, 2, 3]
    assert layer.indices()[0] == 2
    (g,) = torch.autograd.grad((u * torch.randn(4)).sum(), layer.logits)
    assert torch.isfinite(g).all()
    assert all(g[j, u[i].int()] == 0 for i in range(4) for j in range(i + 1, 4))


@each("repetition", [True, False])
def test_a_selector_works_in_every_dtype_under_autocast_compiled_and_exported(repetition):
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        layer = copy.deepcopy(selector(repetition)).to(dtype)
        for mode in (True, False):
            assert layer.train(mode)(torch.randn(3, 4, dtype=dtype)).dtype == dtype
    x = torch.randn(3, 4)
    layer = selector(repetition, STGumbelSoftmax())
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).shape == (3, 2)
    for mode in (True, False):
        layer.train(mode)
        u = torch.compile(layer, fullgraph=True, backend="eager")(x)
        assert all(value in x for value in u.flatten())
    assert torch.equal(torch.export.export(layer, (x,)).module()(x), layer(x))


def test_what_a_selector_cannot_take_gets_a_sentence():
    with pytest.raises(ValueError, match="k must be at most features = 3 without repetition, got 4"):
        Selector(3, 4, GumbelSoftmax(), repetition=False)
    assert Selector(3, 4, GumbelSoftmax())(torch.zeros(3)).shape == (4,)
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        Selector(3, 0, GumbelSoftmax())
    with pytest.raises(TypeError, match="estimator must be a pathwise estimator"):
        Selector(3, 2, RLOO(2))
    with pytest.raises(ValueError, match=r"x must have features = 3 in its last dimension, got shape \(5, 4\)"):
        Selector(3, 2, GumbelSoftmax())(torch.zeros(5, 4))
    for x in (torch.arange(3), [0.0] * 3):
        with pytest.raises(TypeError, match="x must be a floating-point tensor, got"):
            Selector(3, 2, GumbelSoftmax())(x)
    for mode in (True, False):
        layer = Selector(3, 2, GumbelSoftmax()).train(mode)
        with pytest.raises(ValueError, match=r"tau must be a positive finite number, got 0\.0"):
            layer(torch.zeros(3), 0.0)
        torch.nn.init.constant_(layer.logits, torch.nan)
        with pytest.raises(ValueError, match="logits must have a finite entry in every row and no NaN"):
            layer(torch.zeros(3))
    assert repr(Selector(3, 2, GumbelSoftmax())) == "Selector(features=3, k=2, GumbelSoftmax(), repetition=True)"
