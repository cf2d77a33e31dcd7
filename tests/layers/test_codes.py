"""Features and codes of quantizers: their losses, masks, indices, and what is refused."""

import copy

import pytest
import torch

from taugrad import STGumbelSoftmax, StraightThrough
from taugrad.errors import LogitsError
from taugrad.layers import CategoricalQuantizer, ResidualQuantizer


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
    for mask in (torch.ones(3, 4, dtype=torch.bool), torch.ones(3, 5), [[True] * 5] * 3):
        with pytest.raises(ValueError, match=r"mask must be boolean, of shape \(3, 5\), got"):
            layer(x, mask=mask)
    with pytest.raises(ValueError, match="mask must select a position, got none"):
        layer(x, mask=torch.zeros(3, 5, dtype=torch.bool))


@pytest.mark.parametrize("make", [CategoricalQuantizer, ResidualQuantizer])
@pytest.mark.parametrize("ruin", [torch.nan, torch.inf, 1e200])
def test_a_batch_that_is_refused_leaves_no_trace(make, ruin):
    options = {"logits": "distance"} if make is CategoricalQuantizer else {"levels": 2}
    layer = make(4, 8, STGumbelSoftmax(), **options).double()
    layer(torch.randn(9, 4))
    before = copy.deepcopy(layer.state_dict())
    with pytest.raises(LogitsError, match="x must be f"):
        layer(ruin * torch.randn(3, 4, dtype=torch.float64))
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())


@pytest.mark.parametrize("options", [{}, {"loss": "diversity"}, {"groups": 2}])
def test_no_positions_have_no_loss(options):
    loss = CategoricalQuantizer(4, 8, STGumbelSoftmax(), weight=0.1, **options)(torch.randn(0, 4)).loss
    loss.backward()
    assert loss.item() == 0


@pytest.mark.parametrize("momentum", [0.1, None])
def test_what_a_mask_leaves_out_does_not_move_what_standardizes(momentum):
    layer = quantizer(logits="distance", loss="diversity", groups=2)
    layer.distances.standardize.momentum = momentum
    twin = copy.deepcopy(layer)
    x, mask = torch.randn(3, 5, 4, dtype=torch.float64), torch.rand(3, 5) < 0.5
    padded = torch.where(mask.unsqueeze(-1), x, 1e160).requires_grad_()
    loss = layer(padded, mask=mask).loss
    torch.testing.assert_close(loss, twin(x[mask]).loss)
    torch.testing.assert_close(layer.state_dict(), twin.state_dict())
    loss.backward()
    assert not padded.grad[~mask].any()


def test_a_mask_moves_frozen_statistics_no_more_than_none_and_those_of_halves_as_little():
    x, every = 2 * torch.randn(70_000, 4), torch.ones(70_000, dtype=torch.bool)
    layer = CategoricalQuantizer(4, 2, STGumbelSoftmax(), logits="distance").half()
    twin = copy.deepcopy(layer)
    layer(x.half(), mask=every)
    twin(x.half())
    torch.testing.assert_close(layer.state_dict(), twin.state_dict(), rtol=2e-3, atol=1e-3)
    before = copy.deepcopy(layer.state_dict())
    layer.distances.standardize.eval()
    layer(x.half(), mask=every)
    torch.testing.assert_close(layer.state_dict(), before, rtol=0, atol=0)
    alone = torch.arange(70_000) == 3
    with pytest.raises(ValueError, match=r"mask must select at least 2 positions, .*, got 1"):
        twin(x.half(), mask=alone)
    synced = torch.nn.SyncBatchNorm.convert_sync_batchnorm(twin)
    with pytest.raises(ValueError, match="mask cannot be used where batch norms gather"):
        synced(x.half(), mask=every)


@pytest.mark.command
@pytest.mark.parametrize("logits", ["linear", "distance"])
@pytest.mark.parametrize("training", [True, False])
def test_batches_of_any_size_are_exported_and_masks_compiled(logits, training):
    layer = CategoricalQuantizer(4, 8, StraightThrough(), logits=logits, weight=0.1, loss="diversity").train(training)
    x, mask = torch.randn(3, 10, 4), torch.rand(3, 10) < 0.5
    sizes = {"x": {0: torch.export.Dim("batch")}}
    program = torch.export.export(layer, (x,), dynamic_shapes=sizes).module()
    if not training:
        for rows in (x, torch.randn(5, 10, 4)):
            torch.testing.assert_close(program(rows)[0], layer(rows).quantized)
    program = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(program(x, mask=mask).loss, layer(x, mask=mask).loss)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32])
def test_indices_of_any_whole_numbers_are_decoded(dtype):
    for codes in (8, 256):
        layer = CategoricalQuantizer(4, codes, STGumbelSoftmax())
        indices = torch.tensor([0, 7, 3, 3])
        assert torch.equal(layer.decode(indices.to(dtype)), layer.decode(indices))
        assert layer.usage(indices.to(dtype)) == layer.usage(indices)


@pytest.mark.parametrize("levels", [0, 2])
def test_indices_that_are_none_get_a_sentence(levels):
    options = {"levels": levels} if levels else {}
    layer = (ResidualQuantizer if levels else CategoricalQuantizer)(4, 8, STGumbelSoftmax(), **options)
    for indices in (torch.zeros(8, 2, dtype=torch.bool), torch.zeros(8, 2), torch.zeros(2, 2).cfloat(), [[0, 1]]):
        with pytest.raises(TypeError, match="indices must be a tensor of whole numbers, got"):
            layer.decode(indices)
    with pytest.raises(ValueError, match=r"indices must be in \[0, 7\], got 0 to 8"):
        layer.decode(torch.tensor([[0, 8]]))
    if levels:
        with pytest.raises(ValueError, match=r"indices must have shape \(..., n\) with n in \[1, 2\], got \(\)"):
            layer.decode(torch.tensor(3))
    else:
        for indices, sentence in (([20], r"be in \[0, 7\], got 20 to 20"), ([], "hold a code, got none")):
            with pytest.raises(ValueError, match=f"indices must {sentence}"):
                layer.usage(torch.tensor(indices, dtype=torch.int64))
