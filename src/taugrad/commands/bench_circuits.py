"""Contestants of `taugrad bench circuit`: functions that classify one array of images."""

import tempfile
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from taugrad.circuits import Circuit, c_source, class_sums, compile_source, input_bits, simplify
from taugrad.circuits.c import CompiledCircuit
from taugrad.commands.export import Greedy, gated
from taugrad.data.batches import first_images
from taugrad.extras import extra
from taugrad.models.logic_gates import evenly
from taugrad.training.runs import load_run

_TWO_INPUTS = (1, 2, 4, 6, 7, 8, 9, 11, 13, 14)  # gates that depend on both of their inputs


class Contestants(NamedTuple):
    """Contestants of one shape by name: functions without arguments, and the bytes of each function's file."""

    shape: str
    images: int
    calls: dict[str, Callable[[], Any]]
    bytes: dict[str, int]


def random_circuit(inputs: int, gates: int, depth: int, classes: int, generator: torch.Generator) -> Circuit:
    """Draw layers of gates that depend on both inputs, with all outputs of a layer used about equally often.

    It is the worst case: hardly a gate of it can be left out.
    """
    layers, width = [], inputs
    for _ in range(depth):
        ends = evenly(width, 2 * gates, generator)
        ends = ends[torch.randperm(2 * gates, generator=generator)]
        kinds = torch.tensor(_TWO_INPUTS)[torch.randint(len(_TWO_INPUTS), (gates,), generator=generator)]
        layers.append((ends[:gates], ends[gates:], kinds))
        width = gates
    return Circuit(inputs, tuple(layers), classes)


def contestants(run: Path | None, gates: int, depth: int, hidden: list[int], images: int) -> Contestants:
    """Return the circuit of a run, or a random one of 784 inputs and ten classes, and its rivals on so many images.

    The circuit is called with bytes, and with bits that were packed before. Its rivals are its network in torch, and a
    perceptron with `hidden` units, of random weights, by onnxruntime on as many threads as torch has.
    """
    generator = torch.Generator().manual_seed(0)
    if run is None:
        thresholds, circuit = None, random_circuit(784, gates, depth, 10, generator)
        x = torch.randint(2, (images, 784), generator=generator).float()
        network = partial(_by_sums, circuit, x)
    else:
        task, data, _ = load_run(run)
        model = gated(task)
        thresholds, circuit = model.thresholds, model.circuit()
        assert data is not None  # a circuit is a model of images
        data.setup("test")
        x, _ = first_images(data.test_dataloader(), images)
        network = partial(Greedy(task), x)
    netlist = simplify(circuit)
    with tempfile.TemporaryDirectory() as directory:
        source, library = Path(directory) / "circuit.c", Path(directory) / "circuit.so"
        source.write_text(c_source(netlist, thresholds), encoding="utf-8")
        compile_source(source, library)
        compiled = CompiledCircuit(library)
        sizes = {"circuit": library.stat().st_size}
        session = _perceptron([x[0].numel(), *hidden, circuit.classes], Path(directory) / "mlp.onnx")
        name = f"perceptron {'-'.join(map(str, [x[0].numel(), *hidden, circuit.classes]))}, onnxruntime"
        sizes[name] = (Path(directory) / "mlp.onnx").stat().st_size
    pictures = (x * 255 if thresholds else x).round().to(torch.uint8)
    packed, flat = compiled.pack(pictures), x.flatten(1).numpy()
    calls = {
        "circuit": lambda: compiled(pictures),
        "circuit, packed before": lambda: compiled.classes_of_words(packed, len(x)),
        "its network in torch": network,
        name: lambda: session.run(None, {"x": flat}),
    }
    assert torch.equal(compiled(pictures), network())
    shape = f"{len(netlist.gates):,} gates of {sum(len(gate) for _, _, gate in circuit.layers):,}"
    return Contestants(shape, len(x), calls, sizes)


def _by_sums(circuit: Circuit, x: Tensor) -> Tensor:
    return class_sums(circuit, input_bits(x)).argmax(-1)


def _perceptron(sizes: list[int], path: Path) -> Any:
    """Write a perceptron of random weights as an ONNX file, and return its session."""
    onnx, onnxruntime = extra("onnx", "onnx"), extra("onnxruntime", "onnx")
    nodes, weights, name = [], [], "x"
    for i, (width, units) in enumerate(pairwise(sizes)):
        weights += [(f"w{i}", torch.randn(width, units) / width**0.5), (f"b{i}", torch.zeros(units))]
        nodes.append(onnx.helper.make_node("Gemm", [name, f"w{i}", f"b{i}"], [f"h{i}"]))
        nodes.append(onnx.helper.make_node("Relu", [f"h{i}"], [name := f"y{i}"]))
    nodes[-1] = onnx.helper.make_node("ArgMax", [f"h{len(sizes) - 2}"], [name], axis=1, keepdims=0)
    x = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["batch", sizes[0]])
    y = onnx.helper.make_tensor_value_info(name, onnx.TensorProto.INT64, ["batch"])
    kept = [onnx.numpy_helper.from_array(value.numpy(), key) for key, value in weights]
    opset = [onnx.helper.make_opsetid("", 17)]  # older than onnxruntime
    model = onnx.helper.make_model(
        onnx.helper.make_graph(nodes, "mlp", [x], [y], kept), opset_imports=opset, ir_version=8
    )
    path.write_bytes(model.SerializeToString())
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
