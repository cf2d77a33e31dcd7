r"""A classifier that is a circuit: layers of two-input logic gates, each gate's function a hard choice (2210.08277).

    y      = c_0 + c_1 a + c_2 b + c_3 a b,   c = z C,   z ~ Cat(softmax(logits))     a gate of inputs a and b
    s_k    = sum of the last layer's outputs in group k, over `scale`                 logits of the classes
    loss   = -mean log softmax(s)_label

A gate's logits are over the 16 functions of two bits. The rows of the fixed matrix C (16, 4) are those functions as
polynomials, so that a layer costs four numbers a gate and not sixteen outputs. Function g maps bits a and b to bit
2a + b of g, counted from the lowest. A pathwise estimator draws z once for each layer and step; a hard one trains the
very circuit that is evaluated, but for its noise (2506.07500). Evaluation takes each gate's most probable function.

Activations are (features, batch), as in `taugrad.ops.gates`. Hidden gate i has output i of the layer before as its
`a`: a layer of random `b` alone is as random as one with both, for gates of a layer may be renamed.
"""

import math
from collections.abc import Callable, Sequence
from typing import ClassVar, cast

import torch
from torch import Generator, Tensor, nn
from torch.nn.functional import cross_entropy, embedding_bag

from taugrad.checks import check_count, check_counts, check_image_size, check_number, check_positive
from taugrad.circuits import Circuit, input_bits
from taugrad.errors import DataError
from taugrad.estimators import Estimator, Pathwise, check_pathwise
from taugrad.models.pictures import grid
from taugrad.ops._torch import readable
from taugrad.ops.categorical import entropy
from taugrad.ops.gates import gate_polynomials, gates
from taugrad.ops.gumbel import gumbel_max
from taugrad.ops.onehot import one_hot
from taugrad.ops.softmax import softmax

Choose = Callable[[Tensor], Tensor]  # maps logits (..., K) to choices: one-hot, or weights

PASSES_A = 12  # the function whose output is a
_FUNCTIONS = 16
_CELL = 8  # pixels of a side in the picture of the gates


def evenly(inputs: int, count: int, generator: Generator | None) -> Tensor:
    """Draw `count` of the inputs, such that they are drawn equally often, or one time more."""
    rounds = [torch.randperm(inputs, generator=generator) for _ in range(-(-count // inputs))]
    return torch.cat(rounds)[:count]


def random_wiring(inputs: int, gates: int, generator: Generator | None = None) -> tuple[Tensor, Tensor]:
    """Draw two different inputs for each gate, (gates,) each, such that all are used equally often, or one time more.

    >>> a, b = random_wiring(784, 8000, Generator().manual_seed(0))
    >>> torch.stack([a, b]).flatten().bincount().unique()
    tensor([20, 21])
    """
    if inputs == gates:
        a, b = torch.arange(gates), torch.randperm(gates, generator=generator)
    else:
        a, b = evenly(inputs, 2 * gates, generator).view(2, gates)
    while (same := (a == b).nonzero().flatten()).numel():
        other = torch.randint(gates, same.shape, generator=generator)
        for i, j in zip(same.tolist(), other.tolist(), strict=True):
            b[[i, j]] = b[[j, i]]
    return a.clone(), b.clone()


def chosen_rows(z: Tensor, x: Tensor, candidates: Tensor) -> Tensor:
    """Return sum_k z_k x[candidate k], (gates, batch), of `z` and candidates (gates, K), inputs (inputs, batch).

    >>> chosen_rows(torch.tensor([[0.0, 1.0]]), torch.tensor([[3.0], [4.0], [5.0]]), torch.tensor([[0, 2]]))
    tensor([[5.]])
    """
    return embedding_bag(candidates, x.to(z.dtype), per_sample_weights=z, mode="sum")


class LogicLayer(nn.Module):
    """A layer of gates: logits (gates, 16) of their functions, and fixed or learned wiring."""

    a: Tensor
    b: Tensor
    C: Tensor
    places: Tensor

    def __init__(
        self, inputs: int, gates: int, residual: float, candidates: int | None, generator: Generator | None = None
    ) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(gates, _FUNCTIONS))
        with torch.no_grad():
            self.logits[:, PASSES_A] = residual
        self.register_buffer("C", gate_polynomials(), persistent=False)
        self.candidates = candidates
        if candidates is None:
            for name, places in zip("ab", random_wiring(inputs, gates, generator), strict=True):
                self.register_buffer(name, places)
        else:
            places = evenly(inputs, 2 * candidates * gates, generator).view(2, candidates, gates).mT.contiguous()
            self.register_buffer("places", places)
            self.wiring_logits = nn.Parameter(torch.zeros(2, gates, candidates))
            with torch.no_grad():
                self.wiring_logits[..., 0] = residual

    def forward(self, x: Tensor, choose: Choose) -> Tensor:
        """Return the outputs (gates, batch) of inputs (inputs, batch), by the choices that logits (..., K) get."""
        c = (choose(self.logits) @ self.C).to(x.dtype)  # exact for one-hots in half precision too
        if self.candidates is None:
            return gates(x, c, self.a, self.b)
        a, b = (chosen_rows(z, x, places) for z, places in zip(choose(self.wiring_logits), self.places, strict=True))
        own = torch.arange(len(c), device=x.device)
        return gates(torch.cat([a, b]), c, own, own + len(c))

    def most_probable(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return the places of the gates' inputs and the numbers of their functions, as in a `Circuit`."""
        gate = self.logits.argmax(-1)
        if self.candidates is None:
            return self.a, self.b, gate
        a, b = self.places.gather(-1, self.wiring_logits.argmax(-1, keepdim=True)).squeeze(-1)
        return a, b, gate


class LogicGates(nn.Module):
    """A classifier of images that is a circuit of two-input gates once it is trained.

    Args:
        gates: of a layer, a multiple of `classes`.
        depth: number of layers.
        classes: at least 2.
        scale: what a class's sum of outputs is divided by to give its logit; None: two thirds of the square root of its
            gates, which is 19 for 800.
        thresholds: bits of an intensity, by `circuits.input_bits`; None for images of 0 and 1.
        residual: initial logit of the function that passes the gate's `a`; the other functions' are 0.
        candidates: inputs among which each gate learns to choose each of its two, at least 2; None for fixed wiring.
        seed: of the wiring, below 2^64.
        image_size: height and width of an image, or channels, height and width.

    Raises:
        ValueError: a size is out of range, or `classes` does not divide `gates`.

    >>> model = LogicGates(gates=40, depth=2, classes=10)
    >>> model.greedy(torch.ones(3, 28, 28)).shape
    torch.Size([3])
    >>> model.circuit().layers[1][2].unique()
    tensor([12])
    """

    metrics: ClassVar[tuple[str, ...]] = tuple(
        f"{split}/{name}"
        for split in ("val", "test")
        for name in ("accuracy", "drawn_accuracy", "relaxed_accuracy", "gap", "gate_entropy", "gate_perplexity")
    )

    def __init__(
        self,
        gates: int = 8000,
        depth: int = 3,
        classes: int = 10,
        scale: float | None = None,
        thresholds: int | None = None,
        residual: float = 5.0,
        candidates: int | None = None,
        seed: int = 0,
        image_size: Sequence[int] = (28, 28),
    ) -> None:
        super().__init__()
        check_count("classes", classes, smallest=2)
        check_count("gates", gates)
        check_count("depth", depth)
        if gates % classes:
            raise ValueError(f"gates must be a multiple of classes, {classes}, got {gates}")
        scale = math.sqrt(gates / classes) / 1.5 if scale is None else scale
        check_positive("scale", scale)
        if thresholds is not None:
            check_count("thresholds", thresholds)
        check_number("residual", residual)
        if not abs(residual) <= torch.finfo(torch.float32).max:
            raise ValueError(f"residual must be a finite number in float32, got {residual}")
        if candidates is not None:
            check_count("candidates", candidates, smallest=2)
        check_count("seed", seed, smallest=0)
        if seed >= 2**64:
            raise ValueError(f"seed must be below 2^64, got {seed}")
        check_counts("image_size", image_size)
        check_image_size(image_size)
        self.image_size = tuple(image_size)
        self.classes, self.scale, self.thresholds, self.candidates = classes, scale, thresholds, candidates
        self.inputs = math.prod(image_size) * (thresholds or 1)
        if self.inputs < 2:
            raise ValueError(f"image_size must have at least 2 bits, got {self.inputs}")
        generator = Generator().manual_seed(seed)
        sizes = [self.inputs, *[gates] * (depth - 1)]
        self.layers = nn.ModuleList(LogicLayer(size, gates, residual, candidates, generator) for size in sizes)

    def check(self, estimator: Estimator, labels: Tensor | None = None) -> None:
        """Raise TypeError unless the estimator is pathwise, DataError if a label is not below `classes`."""
        check_pathwise(estimator)
        if labels is not None:
            self._check(labels)

    def bits(self, x: Tensor) -> Tensor:
        """Return the circuit's inputs (inputs, batch) of images (batch, ...): 0 and 1, thresholds before pixels."""
        if self.thresholds is None:
            if readable(x) and not ((x == 0) | (x == 1)).all():
                odd = x[(x != 0) & (x != 1)][0].item()
                raise DataError(
                    f"images must be 0 or 1 without model.thresholds, got {odd:.4g}: data.binarize=static makes them "
                    "so, model.thresholds=3 gives an intensity three bits"
                )
            return x.flatten(1).T.contiguous()
        if readable(x) and not ((x >= 0) & (x <= 1)).all():
            raise DataError(f"images must be in [0, 1], got {x.min().item():.4g} to {x.max().item():.4g}")
        return input_bits(x, self.thresholds).T.to(x.dtype, memory_format=torch.contiguous_format)

    def class_logits(self, bits: Tensor, choose: Choose) -> Tensor:
        """Return s, (batch, classes), of inputs (inputs, batch), each gate's function chosen of its logits (..., K)."""
        for layer in self.layers:
            bits = layer(bits, choose)
        return bits.unflatten(0, (self.classes, len(bits) // self.classes)).sum(1).T / self.scale

    def loss_terms(self, x: Tensor, labels: Tensor, estimator: Estimator, tau: float) -> dict[str, Tensor]:
        """Return the cross-entropy and the accuracy of a network drawn by a pathwise estimator, one for the batch."""
        self._check(labels)
        sample = cast(Pathwise, estimator).sample
        s = self.class_logits(self.bits(x), lambda logits: sample(logits, tau))
        return {"loss": cross_entropy(s, labels), "accuracy": _accuracy(s, labels)}

    def evaluation_terms(self, x: Tensor, labels: Tensor, generator: Generator) -> tuple[dict[str, Tensor], Tensor]:
        """Return the terms of the circuit, accuracies of its relatives, how sure its gates are, s (batch, 1, classes).

        `drawn_accuracy` is that of gates drawn from their softmax, `relaxed_accuracy` that of the softmax's mixtures,
        both at a tau of 1; `gap` is the latter minus `accuracy`. `gate_entropy` is the mean over the gates, in nats;
        `gate_perplexity` of the shares of the 16 functions in a layer of the circuit, the mean over the layers.
        """
        self._check(labels)
        bits = self.bits(x)
        s = self.class_logits(bits, most_probable)
        drawn = self.class_logits(bits, lambda logits: gumbel_max(logits, generator=generator))
        accuracy, relaxed = _accuracy(s, labels), _accuracy(self.class_logits(bits, softmax), labels)
        terms = {
            "loss": cross_entropy(s, labels),
            "accuracy": accuracy,
            "drawn_accuracy": _accuracy(drawn, labels),
            "relaxed_accuracy": relaxed,
            "gap": relaxed - accuracy,
            "gate_entropy": torch.stack([entropy(layer.logits).mean() for layer in self._layers()]).mean(),
            "gate_perplexity": entropy(self.shares().log()).exp().mean(),
        }
        return terms, s.unsqueeze(-2)

    def greedy(self, x: Tensor) -> Tensor:
        """Return the circuit's class (batch,) of images."""
        return self.class_logits(self.bits(x), most_probable).argmax(-1)

    def circuit(self) -> Circuit:
        """Return the network with each gate's most probable function, as plain arrays."""
        layers = tuple(layer.most_probable() for layer in self._layers())
        return Circuit(self.inputs, layers, self.classes)

    def shares(self) -> Tensor:
        """Return the shares of the 16 functions among the gates of each layer of the circuit, (depth, 16)."""
        counts = [gate.bincount(minlength=_FUNCTIONS) for _, _, gate in self.circuit().layers]
        return torch.stack(counts) / len(self._layers()[0].logits)

    @torch.no_grad()
    def pictures(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Return the functions' shares, a layer a row and function 0 to 15 a column, and how much each pixel is read.

        Shares are square roots, so that rare functions show; both are relative to the largest, of the layer and of all
        pixels.
        """
        shares, reads = self.shares(), readers(self.circuit()).view(-1, *self.image_size).sum(0)
        cells = (shares / shares.amax(1, keepdim=True)).sqrt()
        pixels = grid((reads / reads.max().clamp_min(1)).expand(1, 1, *reads.shape))
        return {"gates": cells.repeat_interleave(_CELL, 0).repeat_interleave(_CELL, 1), "pixels_read": pixels}

    def _layers(self) -> list[LogicLayer]:
        return [cast(LogicLayer, layer) for layer in self.layers]

    def _check(self, labels: Tensor) -> None:
        """Raise when a label is no class, where that can be read without waiting for a device."""
        if readable(labels) and not ((labels >= 0) & (labels < self.classes)).all():
            raise DataError(
                f"labels must be in 0 to {self.classes - 1}, got {int(labels.min())} to {int(labels.max())}: "
                "model.classes must be the data's number of classes, and every image needs a label"
            )


def most_probable(logits: Tensor) -> Tensor:
    """Return the one-hot of the largest of logits (..., K).

    >>> most_probable(torch.tensor([0.0, 2.0, 1.0]))
    tensor([0., 1., 0.])
    """
    return one_hot(logits.argmax(-1), logits)


def readers(circuit: Circuit) -> Tensor:
    """Count the gates that read each input of a circuit, (inputs,), among those that its outputs depend on.

    >>> a, b, passes_a = torch.tensor([0, 1]), torch.tensor([1, 2]), torch.tensor([12, 12])
    >>> readers(Circuit(3, ((a, b, passes_a),), 2))
    tensor([1., 1., 0.])
    """
    C = gate_polynomials()
    width = len(circuit.layers[-1][2])
    counts = torch.ones(width)
    sizes = [circuit.inputs, *(len(gate) for _, _, gate in circuit.layers[:-1])]
    for size, (a, b, gate) in zip(reversed(sizes), reversed(circuit.layers), strict=True):
        c, live = C[gate.cpu()], counts > 0
        counts = torch.zeros(size)
        for places, own in ((a, c[:, 1]), (b, c[:, 2])):
            reads = live & ((own != 0) | (c[:, 3] != 0))
            counts.index_add_(0, places.cpu(), reads.to(counts))
    return counts


def _accuracy(s: Tensor, labels: Tensor) -> Tensor:
    return (s.argmax(-1) == labels).float().mean()
