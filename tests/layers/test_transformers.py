"""Comparison with Hugging Face's own quantizer, where `transformers` is installed; it is no dependency of the tests."""

import pytest
import torch
from torch import nn

from taugrad import Pathwise
from taugrad.layers import CategoricalQuantizer
from taugrad.ops.onehot import straight_through

pytestmark = pytest.mark.system


def relaxed(logits, tau, noise):
    y = ((logits + noise) / tau).softmax(-1)
    return straight_through(nn.functional.one_hot(y.argmax(-1), y.shape[-1]).to(y), y)


@pytest.mark.filterwarnings("ignore")
def test_it_stands_in_for_the_quantizer_of_transformers_wav2vec2(monkeypatch):
    transformers = pytest.importorskip("transformers")
    from transformers.models.wav2vec2.modeling_wav2vec2 import Wav2Vec2GumbelVectorQuantizer

    G, K = 2, 5
    config = transformers.Wav2Vec2Config(
        conv_dim=[7], conv_kernel=[3], conv_stride=[1], codevector_dim=6, num_codevectors_per_group=K
    )
    theirs = Wav2Vec2GumbelVectorQuantizer(config)
    nn.init.uniform_(theirs.codevectors)
    noise = torch.randn(12, G, K)
    given = list(noise.unbind(1))

    class Given(Pathwise):
        def sample(self, logits, tau, *, generator):
            return relaxed(logits, tau, given.pop(0).view(logits.shape))

    monkeypatch.setattr(nn.functional, "gumbel_softmax", lambda x, tau, hard: relaxed(x, tau, noise.view(x.shape)))
    ours = CategoricalQuantizer(7, K, Given(), groups=G, code_dim=6, loss="diversity", weight=1.0)
    with torch.no_grad():
        ours.projection.weight.copy_(theirs.weight_proj.weight)
        ours.projection.bias.copy_(theirs.weight_proj.bias)
        ours.codebook.copy_(theirs.codevectors.view(G, K, -1))
    h, mask = torch.randn(3, 4, 7), torch.rand(3, 4) < 0.7
    quantized, _, loss = ours(h, 2.0, mask=mask)
    expected, perplexity = theirs(h, mask)
    torch.testing.assert_close(quantized, expected)
    torch.testing.assert_close(loss, 1 - perplexity / (G * K))
    target = torch.randn_like(quantized)
    ((quantized * target).sum() + loss).backward()
    ((expected * target).sum() + 1 - perplexity / (G * K)).backward()
    torch.testing.assert_close(ours.projection.weight.grad, theirs.weight_proj.weight.grad, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours.codebook.grad.flatten(), theirs.codevectors.grad.flatten())
    torch.testing.assert_close(ours.eval()(h).quantized, theirs.eval()(h)[0])
