"""Tokenizers that `taugrad bench tokenizers` compares: one autoencoder, a quantizer of ours or of another library."""

import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from taugrad.data.batches import Batches
from taugrad.data.images import Split
from taugrad.errors import ConfigError
from taugrad.estimators import (
    CAGE,
    ZGR,
    DecoupledStraightThrough,
    GappedStraightThrough,
    GumbelRao,
    GumbelSoftmax,
    Pathwise,
    ReDGE,
    ReinMax,
    ReinMaxCV,
    ReinMaxRao,
    STGumbelSoftmax,
    StraightThrough,
)
from taugrad.extras import extra
from taugrad.layers import CategoricalQuantizer
from taugrad.layers.codes import usage_of
from taugrad.models.tokenizer import Tokenizer
from taugrad.schedules import Cosine, Exponential, Schedule

LEVELS = {512: [8, 8, 8], 8192: [8, 8, 8, 16]}  # levels of FSQ, for as many codes as the others have
_WARM_UP = 100  # steps of a learning rate that rises
_EVALUATED = 250  # pictures a batch
_MSE = 100.0  # weight of the mean squared error next to a quantizer's own loss


class Contestant(NamedTuple):
    """A quantizer of features (batch, positions, dim), and the schedule of its tau if it has one."""

    dim: int
    build: Callable[[], nn.Module]
    tau: Schedule | None = None


def contestants(K: int, steps: int) -> dict[str, Contestant]:
    """Return the quantizers of K codes by name.

    Those of vector-quantize-pytorch are at their defaults, the learned codebooks also with entries of 8 dimensions,
    which its pages advise for codes that are not used.
    """
    if K not in LEVELS:
        raise ConfigError(f"--codes must be of {', '.join(map(str, LEVELS))}, for which FSQ has levels, got {K}")
    theirs: Any = extra("vector_quantize_pytorch", "tokenizers")
    down = Exponential(8.0, 4.0, math.log(2.0) / steps)
    of: dict[str, tuple[Pathwise, Schedule]] = {
        "straight-through Gumbel-Softmax": (STGumbelSoftmax(), down),
        "straight-through": (StraightThrough(), down),
        "decoupled straight-through": (DecoupledStraightThrough(forward_tau=0.25), down),  # a quarter of the noise
        "ReinMax": (ReinMax(), down),
        "ReinMax-Rao": (ReinMaxRao(draws=10), down),
        "ReinMax-CV": (ReinMaxCV(draws=10), down),
        "gapped straight-through": (GappedStraightThrough(), down),
        "Gumbel-Rao": (GumbelRao(draws=10), down),
        "ZGR": (ZGR(), down),
        "CAGE": (CAGE(), down),
        "ReDGE": (ReDGE(), down),
        "Gumbel-Softmax, soft in training": (GumbelSoftmax(), Cosine(1.0, 1 / 16, steps)),
    }
    dim = 5 if K <= 1024 else 6
    found = {f"taugrad, {name}": Contestant(dim, ours(dim, K, estimator), tau) for name, (estimator, tau) in of.items()}
    for name, dim, turned in (("VQ, EMA", 64, False), ("VQ, EMA", 8, False), ("rotation trick", 8, True)):
        found[f"{name}, {dim} dimensions"] = Contestant(
            dim,
            lambda dim=dim, turned=turned: theirs.VectorQuantize(
                dim=dim, codebook_size=K, decay=0.99, rotation_trick=turned
            ),
        )
    found["FSQ"] = Contestant(64, lambda: theirs.FSQ(LEVELS[K], dim=64))
    found["LFQ"] = Contestant(64, lambda: theirs.LFQ(dim=64, codebook_size=K))
    if K == 512:
        found["residual VQ, 3 of 8 codes"] = Contestant(
            64, lambda: theirs.ResidualVQ(dim=64, codebook_size=8, num_quantizers=3)
        )
    return found


def ours(dim: int, K: int, estimator: Pathwise) -> Callable[[], nn.Module]:
    """Return what builds our quantizer."""
    options = {"logits": "distance", "loss": "diversity", "weight": 0.1, "precision": 8.0}
    return lambda: CategoricalQuantizer(dim, K, estimator, **options)


def compare(
    contestant: Contestant, K: int, train: Split, test: Split, steps: int, batch: int, lr: float, seed: int
) -> dict[str, float]:
    """Train an autoencoder around a quantizer; return milliseconds a step, and the errors and codes of the test."""
    images = train.images
    if not isinstance(images, Tensor):
        raise ConfigError("data must fit in memory here: raise data.source.in_memory")
    torch.manual_seed(seed)
    quantizer = contestant.build()
    net = Tokenizer(images.shape[1:], codes=2, dim=contestant.dim, channels=[32, 64])
    net.quantizer = quantizer  # pyright: ignore[reportAttributeAccessIssue]
    optimizer = torch.optim.Adam(net.parameters(), lr=lr)
    factor = Cosine(1.0, 0.02, steps)
    random = torch.Generator().manual_seed(seed)
    start = time.perf_counter()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = lr * factor(step) * min(1.0, (step + 1) / _WARM_UP)
        rows = torch.randint(len(images), (batch,), generator=random)
        x = images[rows].float() / 255
        tau = None if contestant.tau is None else contestant.tau(step)
        picture, _, loss = reconstruct(net, x, tau)
        loss = _MSE * (picture - x).square().mean() + loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    milliseconds = 1e3 * (time.perf_counter() - start) / steps
    net.eval()
    squares, counts = 0.0, torch.zeros(K)
    with torch.no_grad():
        for x, _ in Batches(test, min(_EVALUATED, len(test.labels))):
            picture, indices, _ = reconstruct(net, x, None if contestant.tau is None else 1.0)
            squares += (picture.clamp(0, 1) - x).square().mean((1, 2, 3)).sum().item()
            counts += whole(indices).flatten().bincount(minlength=K)
    mse = squares / len(test.labels)
    perplexity, in_use = usage_of(counts)
    return {
        "mse": mse,
        "psnr": -10 * math.log10(mse),
        "perplexity": perplexity.item(),
        "in_use": in_use.item(),
        "milliseconds": milliseconds,
    }


def reconstruct(net: Tokenizer, x: Tensor, tau: float | None) -> tuple[Tensor, Tensor, Tensor]:
    """Return pictures, indices and the quantizer's own loss; a quantizer of another library knows no tau."""
    quantizer: Any = net.quantizer
    found = quantizer(net.features(x)) if tau is None else quantizer(net.features(x), tau)
    loss = found[2].sum() if len(found) > 2 else x.new_zeros(())  # FSQ has none
    return net.decode(found[0], *x.shape[-2:]) + 0.5, found[1], loss


def whole(indices: Tensor) -> Tensor:
    """Return one index for the indices (..., levels) of a residual quantizer."""
    if indices.ndim == 2:
        return indices
    return (indices * 8 ** torch.arange(indices.shape[-1])).sum(-1)
