"""Quantizers: codes of features, their losses and gradients, and wav2vec 2.0's own quantizer as an oracle."""

import copy
import math

import pytest
import torch
from helpers.backends import once
from helpers.cases import each
from helpers.estimators import PATHWISE
from torch import nn

from taugrad.errors import LogitsError
from taugrad.estimators import (
    RLOO,
    Enumeration,
    GappedStraightThrough,
    GumbelSoftmax,
    ReinMax,
    STGumbelSoftmax,
    StraightThrough,
)
from taugrad.layers import CategoricalQuantizer, ResidualQuantizer
from taugrad.ops.categorical import entropy

pytestmark = pytest.mark.usefixtures("backend")


def small(**changes):
    torch.manual_seed(1)
    arguments = {"dim": 6, "codes": 5, "estimator": STGumbelSoftmax(), "groups": 2} | changes
    return CategoricalQuantizer(**arguments).double()


@each("estimator", PATHWISE)
@each("logits", ["linear", "distance"])
def test_it_is_a_sample_times_the_codebooks_with_the_estimators_gradient(estimator, logits):
    quantizer = small(estimator=estimator, logits=logits)
    x = torch.randn(3, 4, 6, dtype=torch.float64, requires_grad=True)
    grad = torch.randn(3, 4, 6, dtype=torch.float64)
    seeded = lambda: torch.Generator().manual_seed(3)  # noqa: E731
    q = quantizer.logits(x)
    quantized, indices = quantizer.embed(q, 0.7, generator=seeded())
    found = torch.autograd.grad((quantized * grad).sum(), [x, quantizer.codebook])
    random, parts, classes = seeded(), [], []
    q = quantizer.logits(x)
    for g in range(2):
        z = estimator.sample(q[..., g, :], 0.7, generator=random)
        parts.append(z @ quantizer.entries[g])
        classes.append(z.argmax(-1))
    expected = torch.cat(parts, -1)
    torch.testing.assert_close(quantized, expected)
    assert torch.equal(indices, torch.stack(classes, -1))
    right = torch.autograd.grad((expected * grad).sum(), [x, quantizer.codebook])
    torch.testing.assert_close(found, right)


def test_logits_by_distance_are_those_of_every_pair_of_standardized_features_and_entries():
    quantizer = small(logits="distance")
    x = 3 + 2 * torch.randn(3, 4, 6, dtype=torch.float64)
    rows = x.view(-1, 6)
    standard = (rows - rows.mean(0)) / (rows.var(0, unbiased=False) + 1e-5).sqrt()
    d2 = (standard.view(12, 2, 1, 3) - quantizer.entries).square().sum(-1)
    expected = -quantizer.distances.log_precision.exp().view(2, 1) * d2
    found = quantizer.logits(x).view(12, 2, 5)
    torch.testing.assert_close(found.softmax(-1), expected.softmax(-1))  # |x|^2 is the same for all


def test_adam_moves_an_entry_by_distance_ten_learning_rates_a_step_and_an_older_state_does_not_load():
    quantizer = small(logits="distance")
    before = quantizer.entries.detach().clone()
    quantizer(torch.randn(40, 6, dtype=torch.float64)).quantized.sum().backward()
    torch.optim.Adam([quantizer.codebook], lr=1e-3).step()
    moved = (quantizer.entries - before)[quantizer.codebook.grad != 0]
    torch.testing.assert_close(moved.abs(), torch.full_like(moved, 1e-2), rtol=1e-4, atol=0)
    state = quantizer.state_dict()
    del state["gain"]  # with it the parameter was the entry
    with pytest.raises(RuntimeError, match=r"Missing key.*gain"):
        small(logits="distance").load_state_dict(state)


def test_evaluation_takes_the_most_probable_codes_by_the_running_mean_and_deviation():
    for logits in ("linear", "distance"):
        quantizer = small(logits=logits, estimator=GumbelSoftmax())
        for _ in range(60):
            quantizer(5 + 3 * torch.randn(50, 6, dtype=torch.float64))
        quantizer.eval()
        x = 5 + 3 * torch.randn(7, 8, 6, dtype=torch.float64)
        quantized, indices, _ = quantizer(x)
        assert torch.equal(indices, quantizer.encode(x))
        assert torch.equal(quantized, quantizer.decode(indices))
        assert torch.equal(quantized, quantizer(x).quantized)
        assert torch.equal(quantized[:1], quantizer(x[:1]).quantized)  # alone as in a batch
        assert len(indices.unique()) > 2


def test_channel_first_is_channel_last_moved():
    last, first = small(), small(channel_first=True)
    x = torch.randn(3, 4, 5, 6, dtype=torch.float64)
    for one, other in ((last, first), (last.eval(), first.eval())):
        a = one(x, 0.7, generator=torch.Generator().manual_seed(0))
        b = other(x.movedim(-1, 1), 0.7, generator=torch.Generator().manual_seed(0))
        assert torch.equal(a.quantized.movedim(-1, 1), b.quantized)
        assert torch.equal(a.indices, b.indices)
        assert b.indices.shape == (3, 4, 5, 2)
        assert torch.equal(one.decode(a.indices).movedim(-1, 1), other.decode(b.indices))


def test_the_losses_are_the_exact_kl_and_wav2vecs_diversity():
    logits = torch.randn(3, 4, 2, 5, dtype=torch.float64)
    mask = torch.rand(3, 4) < 0.6
    kl, diversity = small(weight=0.3), small(weight=0.3, loss="diversity")
    p = logits.softmax(-1)
    each_kl = (p * (p.log() + math.log(5))).sum((-2, -1))
    torch.testing.assert_close(kl.divergence(logits), 0.3 * each_kl.mean())
    torch.testing.assert_close(kl.divergence(logits, mask), 0.3 * each_kl[mask].mean())
    for chosen, mean in ((None, p.mean((0, 1))), (mask, p[mask].mean(0))):
        perplexity = entropy(mean.log()).exp().sum()
        torch.testing.assert_close(diversity.divergence(logits, chosen), 0.3 * (10 - perplexity) / 10)
    unknown = logits.masked_fill(~mask[..., None, None], torch.nan)  # what does not count may be anything
    for quantizer in (kl, diversity):
        torch.testing.assert_close(quantizer.divergence(unknown, mask), quantizer.divergence(logits, mask))
    even = torch.eye(5, dtype=torch.float64).mul(1e3).repeat(2, 1).view(5, 2, 5)  # all codes in use, each place sure
    torch.testing.assert_close(diversity.divergence(even), torch.zeros((), dtype=torch.float64))
    assert kl.divergence(even) > 0.9
    one = torch.zeros(4, 2, 5, dtype=torch.float64)
    one[..., 0] = 1e3
    torch.testing.assert_close(diversity.divergence(one), torch.tensor(0.3 * 0.8, dtype=torch.float64))
    assert small()(torch.randn(4, 6, dtype=torch.float64)).loss == 0


def test_unimix_bounds_the_probabilities_from_below():
    p = small(unimix=0.1).logits(100 * torch.randn(20, 6, dtype=torch.float64)).exp()
    assert p.min() >= 0.1 / 5
    torch.testing.assert_close(p.sum(-1), torch.ones(20, 2, dtype=torch.float64))


def test_usage_counts_codes_over_groups():
    quantizer = small(codes=4)
    indices = torch.tensor([[0, 3], [1, 3], [0, 3], [1, 3]])
    perplexity, share = quantizer.usage(indices)
    assert (round(perplexity.item(), 6), share.item()) == (1.5, 3 / 8)


@once
def test_straight_through_estimators_save_nothing_of_the_logits_size_but_the_logits():
    for estimator in (STGumbelSoftmax(), StraightThrough(), ReinMax(), GappedStraightThrough()):
        quantizer = CategoricalQuantizer(4, 4096, estimator, logits="distance")
        logits = quantizer.logits(torch.randn(16, 4)).detach().requires_grad_()
        saved: list[torch.Tensor] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):  # noqa: B023
            e, _ = quantizer.embed(logits)
        kept = {t.untyped_storage().data_ptr() for t in saved if t.numel() >= logits.numel()}
        assert kept <= {logits.untyped_storage().data_ptr()}
        e.sum().backward()
        assert logits.grad.isfinite().all()


@once
@pytest.mark.command
@each("logits", ["linear", "distance"])
def test_it_compiles_exports_copies_and_loads(logits):
    quantizer = CategoricalQuantizer(4, 8, STGumbelSoftmax(), logits=logits, loss="diversity", weight=0.1)
    x = torch.randn(5, 3, 4)
    twin = copy.deepcopy(quantizer)
    twin.load_state_dict(quantizer.state_dict())
    torch.compile(quantizer, backend="aot_eager", fullgraph=True)(x, 0.5).quantized.sum().backward()
    quantizer.eval()
    twin.load_state_dict(quantizer.state_dict())
    program = torch.export.export(quantizer, (x,)).module()
    assert torch.equal(program(x)[0], quantizer(x).quantized)
    assert torch.equal(twin.eval()(x).indices, quantizer(x).indices)


@once
def test_autocast_keeps_the_logits_digits():
    quantizer = CategoricalQuantizer(4, 8, STGumbelSoftmax(), logits="distance")
    with torch.autocast("cpu", torch.bfloat16):
        x = nn.Linear(3, 4)(torch.randn(9, 3))
        assert x.dtype is torch.bfloat16
        quantized, _, _ = quantizer(x)
        assert quantizer.logits(x).dtype is torch.float32
    quantized.sum().backward()
    assert quantizer.distances.log_precision.grad.isfinite().all()


def bad(**changes):
    return lambda: small(**changes)


@pytest.mark.parametrize(
    ("call", "error", "sentence"),
    [
        (bad(codes=1), ValueError, "codes must be at least 2, got 1"),
        (bad(groups=4), ValueError, "groups must divide code_dim, 6, got 4"),
        (bad(logits="dot"), ValueError, "logits must be one of linear, distance, got dot"),
        (bad(loss="entropy"), ValueError, "loss must be one of kl, diversity, got entropy"),
        (bad(weight=-1.0), ValueError, "weight must be a finite number >= 0, got -1.0"),
        (bad(logits="distance", precision=0.0), ValueError, "precision must be a positive finite number, got 0.0"),
        (bad(unimix=1.0), ValueError, r"unimix must be in \[0, 1\), got 1.0"),
        (bad(estimator=Enumeration()), TypeError, "estimator must be a pathwise estimator"),
        (bad(logits="distance", code_dim=8), ValueError, "code_dim must be dim, 6, for logits by distance, got 8"),
        (lambda: small()(torch.zeros(3, 5)), ValueError, r"x must have shape \(..., 6\), got \(3, 5\)"),
        (
            lambda: small(channel_first=True)(torch.zeros(3, 5, 6)),
            ValueError,
            r"x must have shape \(batch, 6, ...\), got \(3, 5, 6\)",
        ),
        (bad(weight="0.1"), TypeError, "weight must be a number, got '0.1'"),
        (bad(unimix=None), TypeError, "unimix must be a number, got None"),
        (lambda: small().embed(torch.zeros(3, 2, 5), estimator=RLOO()), TypeError, "estimator must be a pathwise"),
        (lambda: small().decode(torch.tensor([[-1, 5]])), ValueError, r"indices must be in \[0, 4\], got -1 to 5"),
        (
            lambda: small().decode(torch.zeros(4, 3, dtype=torch.int64)),
            ValueError,
            r"indices must have shape \(..., 2\), a code a group, got \(4, 3\)",
        ),
        (
            lambda: ResidualQuantizer(4, 8, STGumbelSoftmax(), levels=2).decode(torch.zeros(5, 3, dtype=torch.int64)),
            ValueError,
            r"indices must have shape \(..., n\) with n in \[1, 2\], got \(5, 3\)",
        ),
        (lambda: small()(torch.full((3, 6), torch.nan)), LogitsError, "x must be finite features, got NaN or an inf"),
        (lambda: small(logits="distance")(torch.zeros(1, 6)), ValueError, "x must have at least 2 positions"),
        (lambda: ResidualQuantizer(4, 8, STGumbelSoftmax(), levels=0), ValueError, "levels must be at least 1, got 0"),
        (lambda: ResidualQuantizer(-1, 8, STGumbelSoftmax(), levels=2), ValueError, "dim must be at least 1, got -1"),
        (
            lambda: ResidualQuantizer(4, 8, STGumbelSoftmax(), levels=2)(torch.zeros(1, 4, dtype=torch.int64)),
            ValueError,
            "x must have at least 2 positions, to be standardized in training, got 1",
        ),
        (lambda: small()([[0.0] * 6]), TypeError, "x must be a tensor of real features, got list"),
        (lambda: small()(torch.zeros(3, 6).cfloat()), TypeError, "x must be a tensor of real features, got torch.comp"),
        (lambda: small().eval()(torch.zeros(3, 6), 0.0), ValueError, "tau must be a positive finite number, got 0.0"),
        (lambda: small().mix(torch.zeros(3, 2, 6)), ValueError, r"z must have shape \(..., 2, 5\), got \(3, 2, 6\)"),
        (
            lambda: small().eval().embed(torch.zeros(3, 1, 5)),
            ValueError,
            r"logits must have shape \(..., 2, 5\), got \(3, 1, 5\)",
        ),
        (
            lambda: ResidualQuantizer(4, 8, STGumbelSoftmax(), levels=2)(torch.zeros(3, 5)),
            ValueError,
            r"x must have shape \(..., 4\), got \(3, 5\)",
        ),
    ],
)
@once
def test_bad_input_gets_a_sentence(call, error, sentence):
    with pytest.raises(error, match=sentence):
        call()


# Residual quantizers


def residual(**changes):
    torch.manual_seed(1)
    return ResidualQuantizer(**{"dim": 3, "codes": 16, "estimator": StraightThrough(), "levels": 3} | changes)


def test_a_residual_quantizers_codes_add_up_level_by_level():
    for channel_first in (False, True):
        quantizer = residual(channel_first=channel_first, loss="diversity", weight=0.1)
        x = 4 + 3 * torch.randn(200, 10, 3)
        moved = x.movedim(-1, 1) if channel_first else x
        for _ in range(30):
            _, indices, loss = quantizer(moved, 0.7)
        assert indices.shape == (200, 10, 3)
        assert loss > 0
        quantizer.eval()
        quantized, indices, _ = quantizer(moved)
        assert torch.equal(indices, quantizer.encode(moved))
        torch.testing.assert_close(quantizer.decode(indices), quantized)
        # By hand: each level stands for what the ones before left.
        rest = (x - quantizer.standardize.running_mean) / (quantizer.standardize.running_var + 1e-5).sqrt()
        for i, level in enumerate(quantizer.quantizers):
            assert torch.equal(level.encode(rest), indices[..., i])
            rest = rest - level.decode(indices[..., i])


@once
def test_every_level_of_a_trained_residual_quantizer_keeps_its_codes_in_use():
    """Normal features of 3 dimensions, 16 codes a level: 200 steps use nearly all of each."""
    quantizer = residual(estimator=STGumbelSoftmax())
    optimizer = torch.optim.Adam(quantizer.parameters(), lr=2e-2)
    for _ in range(200):
        x = torch.randn(256, 3)
        error = (quantizer(x, 1.0).quantized - x).square().mean()
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
    quantizer.eval()
    x = torch.randn(4096, 3)
    quantized, indices, _ = quantizer(x)
    one = quantizer.decode(indices[..., :1])
    assert (quantized - x).square().mean() < 0.5 * (one - x).square().mean()
    for i in range(3):
        assert quantizer.quantizers[i].usage(indices[..., i])[1] > 0.8


# wav2vec 2.0 (2006.11477, equation 4 and section 3.2), as Hugging Face's model computes it


class Wav2Vec2Quantizer(nn.Module):
    """Product quantization with a straight-through Gumbel-Softmax over G groups of V entries."""

    def __init__(self, features, G, V, width):
        super().__init__()
        self.weight_proj = nn.Linear(features, G * V)
        self.codevectors = nn.Parameter(torch.rand(1, G * V, width // G))
        self.G, self.V = G, V

    def forward(self, h, tau, mask, noise):
        l = self.weight_proj(h)  # noqa: E741
        rows = l.view(-1, self.G, self.V)
        y = ((rows + noise) / tau).softmax(-1)
        hard = torch.zeros_like(y).scatter(-1, y.argmax(-1, keepdim=True), 1.0)
        z = hard - y.detach() + y
        q = (z.view(-1, self.G * self.V, 1) * self.codevectors).view(len(rows), self.G, self.V, -1).sum(-2)
        p = rows.softmax(-1)[mask.flatten()].mean(0)
        perplexity = (-(p * (p + 1e-7).log()).sum(-1)).exp().sum()
        return q.view(*h.shape[:2], -1), (self.G * self.V - perplexity) / (self.G * self.V)


@once
def test_the_quantizer_of_wav2vec_gives_the_same_loss_and_gradients_for_the_same_draws(monkeypatch):
    theirs = Wav2Vec2Quantizer(7, 2, 5, 6).double()
    ours = CategoricalQuantizer(7, 5, STGumbelSoftmax(), groups=2, code_dim=6, loss="diversity", weight=1.0).double()
    with torch.no_grad():
        ours.projection.weight.copy_(theirs.weight_proj.weight)
        ours.projection.bias.copy_(theirs.weight_proj.bias)
        ours.codebook.copy_(theirs.codevectors.view(2, 5, 3))
    h = torch.randn(3, 4, 7, dtype=torch.float64, requires_grad=True)
    mask = torch.rand(3, 4) < 0.7
    # Of the same draws: noise that makes the class that ours drew theirs, and the same relaxation.
    noise = torch.randn(12, 2, 5, dtype=torch.float64)

    class Given(STGumbelSoftmax):
        def embedding(self, logits, weight, tau=1.0, *, generator=None):
            y = ((logits + given.pop(0).view(3, 4, 5)) / tau).softmax(-1)
            hard = nn.functional.one_hot(y.argmax(-1), 5).double()
            return (hard + (y - y.detach())) @ weight, y.argmax(-1)

    given = list(noise.unbind(1))
    ours.estimator = Given()
    quantized, indices, loss = ours(h, 0.8, mask=mask)
    expected, diversity = theirs(h, 0.8, mask, noise)
    torch.testing.assert_close(quantized, expected)
    torch.testing.assert_close(loss, diversity, rtol=1e-5, atol=0)  # theirs guards its logarithm by 1e-7
    assert indices.shape == (3, 4, 2)
    target = torch.randn(3, 4, 6, dtype=torch.float64)
    sums = []
    for q, d in ((quantized, loss), (expected, diversity)):
        sums.append(nn.functional.cosine_similarity(q, target, dim=-1).sum() + 0.1 * d)
    mine = torch.autograd.grad(sums[0], [h, ours.projection.weight, ours.codebook])
    right = torch.autograd.grad(sums[1], [h, theirs.weight_proj.weight, theirs.codevectors])
    for a, b in zip(mine, right, strict=True):
        torch.testing.assert_close(a.flatten(), b.flatten(), rtol=1e-4, atol=1e-8)
