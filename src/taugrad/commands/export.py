"""The command `taugrad export`: a trained model as an ONNX file, a program of `torch.export`, or a circuit.

The exported function is the task's `greedy`: every sample is replaced by the most probable choice. A policy in an
environment with action masks takes a mask as its second input. The other `part` of a model that has one, its decoder,
goes from those choices back to pictures. A network of logic gates can be written as the circuit that it is: in C, BLIF
or Verilog.
"""

import io
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from lightning import LightningDataModule
from omegaconf import DictConfig
from rich.console import Console
from torch import Tensor, nn

from taugrad.circuits import (
    CompiledCircuit,
    blif,
    c_source,
    compile_source,
    input_bits,
    netlist_sums,
    simplify,
    verilog,
)
from taugrad.circuits.netlist import depths
from taugrad.compiler import BuildError
from taugrad.config import read
from taugrad.data.batches import first_images
from taugrad.errors import ConfigError, TaugradError
from taugrad.extras import extra
from taugrad.files import require_file, user_path, writing
from taugrad.models.base import Decoded, Gated
from taugrad.rl.masks import allowed
from taugrad.training.images import ImageTask
from taugrad.training.policies import PolicyTask
from taugrad.training.runs import load_run
from taugrad.training.task import Task

_CHECKED = 100  # inputs on which the file is compared with the model
_CIRCUITS = (".c", ".blif", ".v")


@dataclass(frozen=True)
class ExportConfig:
    """The keys of conf/export.yaml and their types."""

    run: str
    out: str
    part: str = "encoder"
    checkpoint: str | None = None
    trust: list[str] = field(default_factory=list)
    debug: bool = False


class Greedy(nn.Module):
    """Module whose `forward` is the `greedy` of a task."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.task = task.eval().requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        """The most probable choices for inputs (batch, ...)."""
        return self.task.greedy(x)


class Masked(nn.Module):
    """Module whose `forward` is the `greedy` of a policy in an environment with action masks."""

    def __init__(self, task: PolicyTask) -> None:
        super().__init__()
        self.task = task.eval().requires_grad_(False)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """The most probable choices for observations (batch, D), of those that the mask (batch, F, K), bool, allows."""
        return self.task.greedy(x, mask)


class Picture(nn.Module):
    """Module whose `forward` is the `picture` of a task's model."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        if not isinstance(task, ImageTask) or not isinstance(task.model, Decoded):
            what = type(task.model if isinstance(task, ImageTask) else task).__name__
            raise ConfigError(f"part must be encoder for a run of {what}, which has no decoder, got decoder")
        self.task, self.model = task.eval().requires_grad_(False), task.model

    def forward(self, x: Tensor) -> Tensor:
        """The mean pictures of choices (batch, ...)."""
        return self.model.picture(x)


def export(config: DictConfig) -> None:
    """Write the run's model to `out`; TaugradError if the file does not compute what the model does."""
    arguments = read(ExportConfig, config)
    out = user_path(arguments.out)
    if out.suffix not in (".onnx", ".pt2", *_CIRCUITS):
        raise ConfigError(f"out must end in .onnx, .pt2, .c, .blif or .v, got {out}")
    if arguments.part not in ("encoder", "decoder"):
        raise ConfigError(f"part must be encoder or decoder, got {arguments.part}")
    if out.suffix in _CIRCUITS and arguments.part != "encoder":
        raise ConfigError(f"part must be encoder for {out}, a circuit, got {arguments.part}")
    for package in ("onnxscript", "onnxruntime") if out.suffix == ".onnx" else ():
        extra(package, "onnx")
    require_file("out", out)
    task, data, _ = load_run(user_path(arguments.run), arguments.checkpoint, arguments.trust)
    if out.suffix in _CIRCUITS:
        Console().print(write_circuit(task, data, out), soft_wrap=True)
        return
    module, inputs = Greedy(task), {"x": _inputs(task, data)}
    outputs = "choices"
    if isinstance(task, PolicyTask) and task.masked:
        module, inputs["mask"] = Masked(task), _masks(task.factors)
    if arguments.part == "decoder":
        module, inputs, outputs = Picture(task), {"x": module(*inputs.values())}, "pictures"
    dim = {0: torch.export.Dim("batch")}
    few = tuple(x[:2] for x in inputs.values())
    program = torch.export.export(module, few, dynamic_shapes=(dim,) * len(inputs))
    with writing(out):
        if out.suffix == ".onnx":
            named = ({0: "batch"}, *[None] * (len(inputs) - 1))  # the program itself has a number for a name
            names = {"input_names": [*inputs], "output_names": [outputs], "dynamic_shapes": named}
            torch.onnx.export(program, (), out, **names, verbose=False)
        else:
            buffer = io.BytesIO()  # torch's own writer hides why a file cannot be written
            torch.export.save(program, buffer)
            out.write_bytes(buffer.getvalue())
    expected, found = module(*inputs.values()).numpy(), _run(out, inputs)
    if not np.allclose(found, expected, atol=1e-5):
        raise TaugradError(f"{out} differs from the model on {np.mean(found != expected):.1%} of {_CHECKED} inputs")
    *taken, given = (f"({', '.join(['batch', *map(str, x.shape[1:])])})" for x in (*inputs.values(), expected))
    if len(taken) > 1:
        taken[1] = f"mask {taken[1]}, bool,"
    same = f"the same as the model on {len(expected)} inputs"
    Console().print(f"{out}: {' and '.join(taken)} to {given}, {expected.dtype}; {same}", soft_wrap=True)


def write_circuit(task: Task, data: LightningDataModule | None, out: Path) -> str:
    """Write the circuit of a task's model, and return a sentence on its size; TaugradError if it is another function.

    What is compared with the model on all test images is the compiled program of a `.c`, and the netlist of another
    file, or where there is no compiler.
    """
    model = gated(task)
    circuit = model.circuit()
    netlist = simplify(circuit)
    texts = {".c": lambda: c_source(netlist, model.thresholds, out.name), ".blif": partial(blif, netlist)}
    text = texts.get(out.suffix, partial(verilog, netlist))()
    with writing(out):
        out.write_text(text, encoding="utf-8")
    what, classify = "netlist", lambda x: netlist_sums(netlist, input_bits(x, model.thresholds)).argmax(-1)
    if out.suffix == ".c":
        try:
            what, classify = "program", compiled(out)
        except BuildError as error:
            what = f"netlist ({error})"
    assert data is not None  # a circuit is a model of images
    data.setup("test")
    module, batches = Greedy(task), [x for x, _ in data.test_dataloader()]
    differ = torch.cat([module(x) for x in batches]) != classify(torch.cat(batches))
    if differ.any():
        raise TaugradError(f"{out} differs from the model on {differ.sum():,} of {len(differ):,} test images")
    before = sum(len(gate) for _, _, gate in circuit.layers)
    size = f"{len(netlist.gates):,} gates of {before:,} in {max(depths(netlist))} levels, {out.stat().st_size:,} bytes"
    return f"{out}: {size}; the {what} is the same as the model on {len(differ):,} test images"


def gated(task: Task) -> Gated:
    """Return the task's model if it is a circuit; ConfigError if it is not."""
    if not isinstance(task, ImageTask) or not isinstance(task.model, Gated):
        what = type(task.model if isinstance(task, ImageTask) else task).__name__
        raise ConfigError(f"run must be of model=logic_gates for a circuit, got one of {what}")
    return task.model


def compiled(source: Path) -> CompiledCircuit:
    """Compile a circuit's program in a temporary directory, and load it; BuildError if that cannot be."""
    with tempfile.TemporaryDirectory() as directory:
        compile_source(source, library := Path(directory) / "circuit.so")
        return CompiledCircuit(library)


def _inputs(task: Task, data: LightningDataModule | None) -> Tensor:
    """Test images, or random observations for a policy."""
    if data is None:
        random = torch.Generator().manual_seed(0)
        return 2 * torch.randn(_CHECKED, *task.input_size, generator=random, dtype=task.input_dtype)
    data.setup("test")
    return first_images(data.test_dataloader(), _CHECKED)[0]


def _masks(factors: Sequence[int]) -> Tensor:
    """Random masks (n, F, K) that allow at least one choice of each factor."""
    random = torch.Generator().manual_seed(0)
    score = torch.rand(_CHECKED, len(factors), max(factors), generator=random).masked_fill(~allowed(factors), -1.0)
    return (score > 0.5) | (score == score.amax(-1, keepdim=True))


def _run(path: Path, inputs: Mapping[str, Tensor]) -> np.ndarray:
    if path.suffix == ".pt2":
        return torch.export.load(path).module()(*inputs.values()).numpy()
    session = extra("onnxruntime", "onnx").InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {name: x.numpy() for name, x in inputs.items()})[0]
