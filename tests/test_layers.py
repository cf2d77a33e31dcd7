import pytest
import torch

from taugrad.estimators import Enumeration, GumbelSoftmax, STGumbelSoftmax
from taugrad.layers import OneHotSample

pytestmark = pytest.mark.usefixtures("backend")


def test_training_samples_by_the_estimator_with_its_gradient():
    logits = torch.randn(4, 3, requires_grad=True)
    layer = OneHotSample(STGumbelSoftmax())
    z = layer(logits, 0.5, generator=torch.Generator().manual_seed(1))
    expected = STGumbelSoftmax().sample(logits, 0.5, generator=torch.Generator().manual_seed(1))
    assert torch.equal(z, expected)
    assert z.requires_grad


def test_evaluation_is_discrete_whatever_training_relaxes():
    layer = OneHotSample(GumbelSoftmax(), dim=1).eval()
    z = layer(torch.randn(4, 3, 5, requires_grad=True), 2.0)
    assert ((z == 0) | (z == 1)).all()
    assert (z.sum(1) == 1).all()
    assert not z.requires_grad


def test_the_repr_names_the_estimator():
    assert repr(OneHotSample(STGumbelSoftmax())) == "OneHotSample(STGumbelSoftmax(), dim=-1)"


def test_an_estimator_without_samples_gets_a_sentence():
    with pytest.raises(TypeError, match="estimator must be a pathwise estimator"):
        OneHotSample(Enumeration())
