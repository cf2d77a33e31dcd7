"""Circuits as C: a table of gates that is computed on words of 512 images, compiled in a second, called by ctypes."""

import ctypes
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from taugrad.checks import check_count
from taugrad.circuits.netlist import GATES, Circuit, Netlist, depths, levels, simplify
from taugrad.compiler import BuildError, find_compiler, run_for_this_cpu
from taugrad.errors import ConfigError, DataError

_BODY = Path(__file__).parent / "circuit.c"
_FLAGS = ["-std=c11", "-O3", "-fPIC", "-shared", "-w"]
_MOST_THRESHOLDS = 254  # more would lie closer together than two intensities of 8 bits
_HEAD = """/* A classifier of images that is a circuit of {gates} gates.

   int circuit_classes(const uint8_t *images, size_t n, int32_t *classes);
   int circuit_sums(const uint8_t *images, size_t n, int32_t *sums);

   Images are (n, {pixels}) bytes, {values}; classes (n,) are 0 to {last}, and sums (n, {classes}) are the numbers of
   outputs of each class that are true. The result is 0, 1 if a byte is not allowed, -1 if there is no memory.

   cc -O3 -march=native -shared -fPIC {name} -o circuit.so

   circuit_pack turns n images into ceil(n / B) blocks of {inputs} words of B bits, B = circuit_sizes[4], from which
   circuit_classes_of_words computes the classes. */

#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
"""


def c_source(netlist: Netlist, thresholds: int | None = None, name: str = "circuit.c") -> str:
    """Return a program in C that classifies images by the circuit; its first lines say how it is called.

    Args:
        netlist: from `simplify`.
        thresholds: bits of an intensity, in the order of `input_bits`; images are then bytes of 0 to 255. None: images
            are bytes of 0 and 1, the inputs.
        name: of the file, for the comment at its beginning.

    Raises:
        ConfigError: `thresholds` is above 254, or does not divide the number of inputs.

    >>> netlist = simplify(Circuit(2, ((torch.tensor([0]), torch.tensor([1]), torch.tensor([6])),), 1))
    >>> "RUN(0, 1, a ^ b)" in c_source(netlist)
    True
    """
    cuts = _cuts(netlist.inputs, thresholds)
    table, runs, outputs, size = _placed(netlist)
    per_class = len(netlist.outputs) // netlist.classes
    groups = outputs.reshape(netlist.classes, per_class, 2)
    groups = np.stack([group[np.argsort(group[:, 1], kind="stable")] for group in groups])  # negated ones last
    numbers = {
        "PIXELS": netlist.inputs // len(cuts),
        "INPUTS": netlist.inputs,
        "CLASSES": netlist.classes,
        "OUTPUTS": per_class,
        "DIGITS": per_class.bit_length(),
        "CLASS_DIGITS": max(1, (netlist.classes - 1).bit_length()),
        "PLACES": size,
        "CUTS": len(cuts),
        "LARGEST": 1 if thresholds is None else 255,
    }
    head = _HEAD.format(
        gates=len(netlist.gates),
        pixels=numbers["PIXELS"],
        values="0 or 1" if thresholds is None else "intensities of 0 to 255",
        last=netlist.classes - 1,
        classes=netlist.classes,
        name=name,
        inputs=netlist.inputs,
    )
    return "\n".join(
        [
            head,
            *(f"#define {key} {value}" for key, value in numbers.items()),
            "#define CUT_VALUES {" + ", ".join(map(str, cuts)) + "}",
            "#define GATES " + " ".join(f"RUN({first}, {last}, {GATES[gate]})" for first, last, gate in runs),
            "",
            f"typedef uint{16 if size <= 1 << 16 else 32}_t place;",
            f"static const place gates[][3] = {_braces(table if len(table) else [[0, 0, 0]])};",
            f"static const place outputs[CLASSES * OUTPUTS] = {_braces(groups[:, :, 0].reshape(-1))};",
            f"static const size_t plain[CLASSES] = {_braces(per_class - groups[:, :, 1].sum(1))}; /* not negated */",
            _BODY.read_text(encoding="utf-8"),
        ]
    )


def _cuts(inputs: int, thresholds: int | None) -> list[int]:
    """Largest intensities of 8 bits that are not above each of the thresholds, as float32 compares them."""
    if thresholds is None:
        return [0]
    check_count("thresholds", thresholds)
    if thresholds > _MOST_THRESHOLDS or inputs % thresholds:
        raise ConfigError(
            f"thresholds must be at most {_MOST_THRESHOLDS} and divide the circuit's {inputs} inputs, got {thresholds}"
        )
    intensities = torch.arange(256) / 255
    return [int((intensities <= level).sum()) - 1 for level in levels(thresholds)]


def _placed(netlist: Netlist) -> tuple[list[list[int]], list[tuple[int, int, int]], np.ndarray, int]:
    """Order the gates by depth and kind, and give each net a place in memory, until it was used for the last time.

    Returns:
        The places of each gate's inputs and output; runs (first, last, gate) of one kind; (place, negated) of the
        outputs, (outputs, 2); and the number of places. Place 0 is false.
    """
    first = netlist.inputs + 1
    order = np.lexsort((netlist.gates[:, 2], np.array(depths(netlist)[first:], dtype=np.int64)))
    last = np.full(first + len(order), -1)
    for step, gate in enumerate(order):
        last[netlist.gates[gate, :2]] = step
    last[netlist.outputs >> 1] = len(order)
    places = np.arange(first + len(order))
    free = [net for net in range(1, first) if last[net] < 0]
    table, runs, size = [], [], first
    for step, gate in enumerate(order.tolist()):
        a, b, kind = netlist.gates[gate].tolist()
        free += [places[net] for net in (a, b) if last[net] == step]
        if not free:
            free.append(size)
            size += 1
        places[first + gate] = free.pop()
        table.append([int(places[a]), int(places[b]), int(places[first + gate])])
        if runs and runs[-1][2] == kind:
            runs[-1] = (runs[-1][0], step + 1, kind)
        else:
            runs.append((step, step + 1, kind))
    return table, runs, np.stack([places[netlist.outputs >> 1], netlist.outputs & 1], 1), size


def _braces(values: Any) -> str:
    return str(np.asarray(values).tolist()).replace("[", "{").replace("]", "}").replace(" ", "")


class CompiledCircuit:
    """A circuit's program in C, compiled; a call classifies images.

    Args:
        library: a shared library of a file from `c_source`, or from `taugrad export`.

    Raises:
        BuildError: it is none.
    """

    def __init__(self, library: str | Path) -> None:
        try:
            self._library = ctypes.CDLL(str(Path(library).absolute()))
            sizes = (ctypes.c_int32 * 5).in_dll(self._library, "circuit_sizes")
            self.pixels, self.inputs, self.classes, count, self.block = sizes
            cuts = (ctypes.c_uint8 * count).in_dll(self._library, "circuit_cuts")
        except (OSError, ValueError) as error:
            raise BuildError(f"library must be a compiled circuit, got {library}: {error}") from error
        self.thresholds = None if list(cuts) == [0] else count
        self._bytes = torch.tensor([0, *(cut + 1 for cut in cuts)], dtype=torch.uint8)  # one of each interval

    def __call__(self, images: Tensor | np.ndarray) -> Tensor:
        """Return the classes (n,), int64, of images (n, ...).

        Images of bits are 0 and 1 in any dtype; intensities are in 0 to 255 in uint8, in [0, 1] in others.

        Raises:
            ValueError: the images are of another size, or their values not allowed.
        """
        return self._run("circuit_classes", images, ())

    def sums(self, images: Tensor | np.ndarray) -> Tensor:
        """Return the sums (n, classes), int64, of the outputs of each class, as a call returns their argmax."""
        return self._run("circuit_sums", images, (self.classes,))

    def pack(self, images: Tensor | np.ndarray) -> np.ndarray:
        """Return images as `classes_of_words` takes them: (blocks, inputs, words), uint64."""
        x = self._bytes_of(images)
        words = np.empty((-(-len(x) // self.block), self.inputs, self.block // 64), dtype=np.uint64)
        self._call("circuit_pack", x.data_ptr(), len(x), words.ctypes.data)
        return words

    def classes_of_words(self, words: np.ndarray, n: int) -> Tensor:
        """Return the classes (n,), int32, of n images from `pack`.

        Raises:
            ValueError: `words` are not those of n images.
        """
        shape = -(-n // self.block), self.inputs, self.block // 64
        if n < 0 or words.shape != shape or words.dtype != np.uint64 or not words.flags.c_contiguous:
            raise ValueError(f"words must be {shape}, uint64 and contiguous, got {words.shape}, {words.dtype}")
        found = torch.empty(n, dtype=torch.int32)
        self._call("circuit_classes_of_words", words.ctypes.data, n, found.data_ptr())
        return found

    def _run(self, function: str, images: Tensor | np.ndarray, shape: tuple[int, ...]) -> Tensor:
        x = self._bytes_of(images)
        found = torch.empty(len(x), *shape, dtype=torch.int32)
        self._call(function, x.data_ptr(), len(x), found.data_ptr())
        return found.long()

    def _call(self, function: str, *arguments: int) -> None:
        source, n, to = arguments
        result = self._library[function](ctypes.c_void_p(source), ctypes.c_size_t(n), ctypes.c_void_p(to))
        if result > 0:
            raise DataError("images must be 0 or 1, got other numbers")
        if result < 0:
            raise MemoryError("there is no memory for the circuit")

    def _bytes_of(self, images: Tensor | np.ndarray) -> Tensor:
        x = torch.as_tensor(images, device="cpu")
        x = x.flatten(1) if x.ndim > 1 else x
        if x.ndim != 2 or x.shape[1] != self.pixels:
            raise ValueError(
                f"images must be (n, {self.pixels}), or more dimensions of that size, got {tuple(x.shape)}"
            )
        if x.dtype is torch.uint8:
            return x.contiguous()
        if self.thresholds is None:
            if not ((x == 0) | (x == 1)).all():
                raise DataError("images must be 0 or 1, got other numbers")
            return x.to(torch.uint8).contiguous()
        x = x.float() if x.dtype is torch.bool else x
        if not x.is_floating_point() or not ((x >= 0) & (x <= 1)).all():
            raise DataError(f"images must be uint8, or numbers in [0, 1], got {x.dtype}")
        ends = levels(self.thresholds).to(x.dtype)  # rounded as the pictures are
        return self._bytes[torch.bucketize(x.double(), ends.double())].contiguous()


def compile_source(source: Path, library: Path) -> None:
    """Compile a file from `c_source`, by `$CXX` or `c++`.

    Raises:
        BuildError: there is no compiler, or it fails.
    """
    run_for_this_cpu([*find_compiler("circuits"), *_FLAGS, "-x", "c", str(source), "-o", str(library)])


def compile_circuit(circuit: Circuit, thresholds: int | None = None) -> CompiledCircuit:
    """Simplify a circuit, compile it in a temporary directory and load it.

    Args:
        circuit: of any size.
        thresholds: as of `c_source`.

    Raises:
        BuildError: there is no compiler, or it fails.
        ValueError: the layers do not fit each other, or `thresholds` do not fit the inputs.

    >>> xor = Circuit(2, ((torch.tensor([0, 0]), torch.tensor([1, 1]), torch.tensor([9, 6])),), 2)
    >>> compile_circuit(xor)(torch.tensor([[0, 0], [0, 1], [1, 1]]))
    tensor([0, 1, 0])
    """
    with tempfile.TemporaryDirectory() as directory:
        source, library = Path(directory) / "circuit.c", Path(directory) / "circuit.so"
        source.write_text(c_source(simplify(circuit), thresholds), encoding="utf-8")
        compile_source(source, library)
        return CompiledCircuit(library)
