import pytest
import torch

from taugrad import STGumbelSoftmax
from taugrad.layers import CategoricalQuantizer


def quantizer(**options):
    return CategoricalQuantizer(4, 64, STGumbelSoftmax(), weight=1.0, **options).double()


@pytest.mark.parametrize("loss", ["kl", "diversity"])
def test_the_loss_of_features_so_large_that_probabilities_round_to_zero_has_a_finite_gradient(loss):
    layer = quantizer(loss=loss, groups=2)
    x = (1000 * torch.randn(8, 4, dtype=torch.float64)).requires_grad_()
    assert (layer.logits(x).softmax(-1).mean(0) == 0).any()
    layer(x).loss.backward()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("loss", ["kl", "diversity"])
def test_a_mask_leaves_what_the_selected_positions_give_alone(loss):
    layer = quantizer(loss=loss, groups=2)
    x = torch.randn(3, 5, 4, dtype=torch.float64)
    mask = torch.rand(3, 5) < 0.5
    logits = layer.logits(x)
    torch.testing.assert_close(layer.divergence(logits, mask), layer.divergence(logits[mask]))


def test_a_mask_that_does_not_fit_gets_a_sentence():
    layer, x = quantizer(), torch.zeros(3, 5, 4, dtype=torch.float64)
    for mask in (torch.ones(3, 4, dtype=torch.bool), torch.ones(3, 5)):
        with pytest.raises(ValueError, match=r"mask must be boolean, of shape \(3, 5\), got"):
            layer(x, mask=mask)
    with pytest.raises(ValueError, match="mask must select a position, got none"):
        layer(x, mask=torch.zeros(3, 5, dtype=torch.bool))
