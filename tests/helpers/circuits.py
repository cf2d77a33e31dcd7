"""Random circuits, a model that is one, and a table of all outputs that shares no code with the library."""

import torch
from torch import nn

from taugrad.circuits import Circuit, class_sums, input_bits
from taugrad.data.datamodule import ImageData
from taugrad.data.images import Split, Splits


def random_circuit(inputs, widths, classes, seed=0):
    """Layers of gates of all sixteen kinds on any inputs."""
    generator = torch.Generator().manual_seed(seed)
    layers, width = [], inputs
    for gates in widths:
        ends = torch.randint(width, (2, gates), generator=generator)
        layers.append((*ends, torch.randint(16, (gates,), generator=generator)))
        width = gates
    return Circuit(inputs, tuple(layers), classes)


def truth_tables(circuit):
    """Each output as a number: its bit r is the output for the inputs that are the binary digits of r."""
    rows = range(2**circuit.inputs)
    tables = [sum((r >> i & 1) << r for r in rows) for i in range(circuit.inputs)]
    for a, b, gate in circuit.layers:
        tables = [
            sum((g >> (2 * (tables[i] >> r & 1) + (tables[j] >> r & 1)) & 1) << r for r in rows)
            for i, j, g in zip(a.tolist(), b.tolist(), gate.tolist(), strict=True)
        ]
    return tables


def all_bits(inputs):
    """Every input, (2 ** inputs, inputs)."""
    return torch.arange(2**inputs).unsqueeze(1) >> torch.arange(inputs) & 1


def sums(circuit):
    """The sums (2 ** inputs, classes) for every input, from the tables."""
    tables = truth_tables(circuit)
    bits = torch.tensor([[table >> r & 1 for table in tables] for r in range(2**circuit.inputs)])
    return bits.unflatten(1, (circuit.classes, -1)).sum(-1)


class Gates(nn.Module):
    """A model of pictures of 4 x 4 that is a random circuit from the start."""

    image_size = (4, 4)

    def __init__(self, thresholds=None, classes=5):
        super().__init__()
        self.thresholds = thresholds
        self.layers = random_circuit(16 * (thresholds or 1), [60, 50], classes)
        self.unused = nn.Parameter(torch.zeros(()))

    def loss_terms(self, x, labels, estimator, tau):
        return {"loss": self.unused.square()}

    def circuit(self):
        return self.layers

    def greedy(self, x):
        return class_sums(self.layers, input_bits(x, self.thresholds)).argmax(-1)


def pictures(largest=255):
    """Data of 130 random pictures a split, of intensities or, times 255, of bits."""
    drawn = torch.randint(largest + 1, (130, 4, 4), dtype=torch.uint8) * (255 // largest)
    split = Split(drawn, torch.zeros(130, dtype=torch.int64))
    return ImageData(lambda: Splits(split, split, split))
