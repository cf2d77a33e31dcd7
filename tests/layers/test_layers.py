import pytest
import torch
from helpers.images import cat_vae, semi_supervised, structured
from helpers.policies import POLICY, improving, task

from taugrad.estimators import Enumeration, Estimator, GumbelSoftmax, Pathwise, STGumbelSoftmax, StraightThrough
from taugrad.layers import OneHotSample
from taugrad.ops.categorical import unimix
from taugrad.ops.gumbel import gumbel_max
from taugrad.ops.onehot import straight_through
from taugrad.probe import probe, reference

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


def test_an_estimator_without_samples_and_a_dim_that_is_none_get_a_sentence():
    with pytest.raises(TypeError, match="estimator must be a pathwise estimator"):
        OneHotSample(Enumeration())
    with pytest.raises(TypeError, match="dim must be a whole number, got '1'"):
        OneHotSample(STGumbelSoftmax(), dim="1")
    with pytest.raises(IndexError, match=r"dim must be in \[-2, 1\] for logits of shape \(2, 3\), got 2"):
        OneHotSample(STGumbelSoftmax(), dim=2)(torch.zeros(2, 3))


# An estimator of one's own, as docs/extending.md says


class Documented(Pathwise):
    """Estimator with the signature that is asked for and nothing more."""

    def sample(self, logits, tau, *, generator):
        assert logits.ndim >= 2
        return straight_through(gumbel_max(logits, generator=generator), (logits / tau).softmax(-1))


class DocumentedExpectation(Estimator):
    def expectation(self, f, logits, tau, *, generator):
        return StraightThrough().expectation(f, logits, tau, generator=generator)


def test_an_estimator_with_the_documented_signature_samples_along_any_dim_of_the_layer():
    logits = torch.randn(4, 3, 5, requires_grad=True)
    for dim in (0, 1, 2, -1, -2):
        layer = OneHotSample(Documented(), dim=dim)
        for tau in (0.5, torch.full((1,) * 3, 0.5)):
            z = layer(logits, tau)
            assert torch.equal(z.sum(dim), torch.ones_like(z.sum(dim)))
            assert z.view(-1).shape == (60,)
            (g,) = torch.autograd.grad((z * torch.randn(4, 3, 5)).sum(), logits)
            torch.testing.assert_close(g.sum(dim), torch.zeros_like(g.sum(dim)), atol=1e-5, rtol=0)
        assert torch.equal(layer.eval()(logits).sum(dim), torch.ones_like(z.sum(dim)))


@pytest.mark.parametrize("own", [Documented, DocumentedExpectation])
def test_an_estimator_with_the_documented_signature_works_wherever_one_is_taken(own):
    f = lambda z: (z * torch.tensor([1.0, 2.0, 4.0])).sum((-2, -1)).square()  # noqa: E731
    logits = torch.randn(2, 2, 3)
    exact, _ = reference(f, logits)
    assert probe(own(), f, logits, exact, draws=20).variance > 0
    x, labels = (torch.rand(6, 4, 4) < 0.5).float(), torch.full((6,), -1)
    for images in (cat_vae(estimator=own()), structured(estimator=own()), semi_supervised(estimator=own())):
        images.model.loss_terms(x, labels, images.estimator, 1.0)["loss"].backward()
    policy, improve = improving(task(*POLICY, f"estimator._target_={__name__}.{own.__name__}"))
    assert isinstance(policy.agent.hp.estimator, own)
    improve()


def test_a_share_of_the_uniform_is_mixed_in_training_and_in_evaluation_and_none_is_as_before():
    logits = torch.randn(2, 5, 3, requires_grad=True)
    draw = lambda: torch.Generator().manual_seed(3)  # noqa: E731
    for mode in (True, False):
        none, mixed = (OneHotSample(STGumbelSoftmax(), 1, unimix=share).train(mode) for share in (0.0, 0.2))
        plain = OneHotSample(STGumbelSoftmax(), 1).train(mode)
        assert torch.equal(none(logits, 0.5, generator=draw()), plain(logits, 0.5, generator=draw()))
        expected = plain(unimix(logits, 0.2, 1), 0.5, generator=draw())
        z = mixed(logits, 0.5, generator=draw())
        assert torch.equal(z, expected)
        if mode:
            ours, other = (torch.autograd.grad((s * s.detach().cumsum(0)).sum(), logits)[0] for s in (z, expected))
            assert torch.equal(ours, other)
    assert repr(mixed) == "OneHotSample(STGumbelSoftmax(), dim=1, unimix=0.2)"
    with pytest.raises(ValueError, match=r"unimix must be in \[0, 1\), got 1\.0"):
        OneHotSample(STGumbelSoftmax(), unimix=1.0)
