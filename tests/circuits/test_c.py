"""A compiled circuit computes what its layers do, for every number of images and every dtype."""

import shutil
import subprocess

import numpy as np
import pytest
import torch
from helpers.cases import each
from helpers.circuits import all_bits, random_circuit, sums

from taugrad.circuits import CompiledCircuit, c_source, class_sums, compile_circuit, input_bits, simplify
from taugrad.circuits.c import _cuts
from taugrad.compiler import BuildError
from taugrad.errors import DataError

pytestmark = pytest.mark.command  # most compile C

EDGES = [0, 1, 7, 8, 63, 64, 65, 511, 512, 513, 1030]  # of bytes, of words, of blocks


@pytest.fixture(scope="module")
def circuit():
    return random_circuit(40, [90, 90, 85], 5)  # 17 outputs a class: odd, and more than 16


@pytest.fixture(scope="module")
def compiled(circuit, users_compiler):
    return compile_circuit(circuit)


@pytest.fixture(scope="module")
def of_intensities(users_compiler):
    circuit = random_circuit(3 * 20, [64, 64], 2)
    return circuit, compile_circuit(circuit, thresholds=3)


@each("n", EDGES)
def test_sums_and_classes_are_those_of_the_layers(circuit, compiled, n):
    bits = torch.randint(2, (n, 40), dtype=torch.uint8)
    expected = class_sums(circuit, bits)
    assert torch.equal(compiled.sums(bits), expected)
    assert torch.equal(compiled(bits), expected.argmax(1))
    assert torch.equal(compiled.classes_of_words(compiled.pack(bits), n).long(), expected.argmax(1))


@pytest.mark.usefixtures("users_compiler")
def test_every_input_of_circuits_without_gates_or_with_one_class_gets_its_sums():
    for inputs, widths, classes in ((3, [8], 8), (8, [40, 7], 1)):
        circuit = random_circuit(inputs, widths, classes)
        assert torch.equal(compile_circuit(circuit).sums(all_bits(inputs)), sums(circuit))


def test_of_equal_sums_the_first_class_wins(circuit, compiled):
    found = class_sums(circuit, bits := torch.randint(2, (2000, 40)))
    best = found == found.amax(1, keepdim=True)
    assert (best.sum(1) > 1).sum() > 100  # so that there are such
    assert torch.equal(compiled(bits), best.long().argmax(1))


def test_every_dtype_and_shape_of_the_same_bits_is_the_same_image(compiled):
    bits = torch.randint(2, (70, 40))
    expected = compiled.sums(bits)
    for dtype in (torch.bool, torch.uint8, torch.float32, torch.float16):
        assert torch.equal(compiled.sums(bits.to(dtype).view(70, 5, 8)), expected)
    assert torch.equal(compiled.sums(bits.numpy().astype(bool)), expected)
    assert torch.equal(compiled.sums(np.asfortranarray(bits.numpy().astype(np.uint8))), expected)


def test_intensities_are_compared_as_numbers_in_0_to_1_are(of_intensities):
    circuit, compiled = of_intensities
    pictures = torch.randint(256, (600, 4, 5), dtype=torch.uint8)
    x = pictures.float() / 255
    expected = class_sums(circuit, input_bits(x, 3))
    assert torch.equal(compiled.sums(pictures), expected)
    assert torch.equal(compiled.sums(x), expected)
    x = torch.rand(600, 20)
    x[:, :3] = torch.tensor([0.25, 0.5, 0.75])  # are not above themselves
    assert torch.equal(compiled.sums(x), class_sums(circuit, input_bits(x, 3)))


@each("dtype", [torch.bool, torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_intensities_of_every_dtype_are_those_of_the_network(users_compiler, dtype):
    circuit = random_circuit(4 * 20, [64, 64], 2)
    x = torch.rand(600, 20).round() if dtype is torch.bool else torch.rand(600, 20)
    x[:, :4] = torch.arange(1, 5) / 5  # rounded to another dtype, 0.6 lies above 0.6
    x = x.to(dtype)
    assert torch.equal(compile_circuit(circuit, 4).sums(x), class_sums(circuit, bits := input_bits(x, 4)))
    assert dtype is not torch.bool or torch.equal(bits, input_bits(x.float(), 4))


@each("thresholds", [1, 2, 3, 7, 100, 253, 254])
def test_every_intensity_of_8_bits_is_above_the_thresholds_that_it_is_above_as_a_number(thresholds):
    cuts = _cuts(thresholds, thresholds)
    bits = input_bits(torch.arange(256).unsqueeze(1) / 255, thresholds)
    assert torch.equal(bits, torch.arange(256).unsqueeze(1) > torch.tensor(cuts))
    assert len(set(cuts)) == thresholds


@each(
    "images, error, sentence",
    [
        (torch.zeros(3, 39), ValueError, r"images must be \(n, 40\), or more dimensions of that size, got \(3, 39\)"),
        (torch.zeros(40), ValueError, r"images must be \(n, 40\), .*, got \(40,\)"),
        (torch.full((1000, 40), 2, dtype=torch.uint8), DataError, "images must be 0 or 1, got other numbers"),
        (torch.full((3, 40), 0.5), DataError, "images must be 0 or 1, got other numbers"),
        (torch.full((3, 40), torch.nan), DataError, "images must be 0 or 1, got other numbers"),
    ],
)
def test_other_images_are_refused(compiled, images, error, sentence):
    with pytest.raises(error, match=sentence):
        compiled(images)


def test_other_words_are_refused(compiled):
    words = compiled.pack(torch.ones(600, 40))
    for other, n in ((words, 1025), (words, 512), (words.view(np.int64), 600), (words[:, ::-1], 600), (words, -1)):
        with pytest.raises(ValueError, match=r"words must be \(.*, 40, 8\), uint64 and contiguous, got \(2, 40, 8\)"):
            compiled.classes_of_words(other, n)


def test_one_byte_that_is_no_bit_is_found_anywhere(compiled):
    for i in (0, 511, 512, 999):
        images = torch.zeros(1000, 40, dtype=torch.uint8)
        images[i, i % 40] = 2
        with pytest.raises(DataError, match="images must be 0 or 1"):
            compiled(images)


def test_other_intensities_and_thresholds_are_refused(of_intensities):
    for images in (torch.full((2, 20), 1.5), torch.full((2, 20), torch.nan), torch.zeros(2, 20, dtype=torch.int64)):
        with pytest.raises(DataError, match=r"images must be uint8, or numbers in \[0, 1\], got torch"):
            of_intensities[1](images)
    netlist = simplify(random_circuit(510, [10], 1))
    for thresholds in (255, 4):
        with pytest.raises(ValueError, match=f"at most 254 and divide the circuit's 510 inputs, got {thresholds}"):
            c_source(netlist, thresholds)
    with pytest.raises(ValueError, match="thresholds must be at least 1, got 0"):
        c_source(netlist, 0)


def test_without_a_compiler_or_a_library_there_is_a_sentence(circuit, monkeypatch, tmp_path):
    with pytest.raises(BuildError, match=r"library must be a compiled circuit, got .*nothing\.so"):
        CompiledCircuit(tmp_path / "nothing.so")
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(BuildError, match=r"there is no C\+\+ compiler: no-such-compiler is not on the PATH"):
        compile_circuit(circuit)


@pytest.mark.skipif(shutil.which("cc") is None, reason="no cc")
def test_the_file_is_plain_c_too_without_warnings(circuit, tmp_path):
    (tmp_path / "a.c").write_text(c_source(simplify(circuit), name="a.c"))
    assert "-fPIC a.c -o" in (tmp_path / "a.c").read_text()
    command = "cc -std=c11 -pedantic -Wall -Wextra -Werror -DPLAIN_WORDS -O1 -fPIC -shared a.c -o a.so"
    subprocess.run(command.split(), cwd=tmp_path, check=True)
    plain = CompiledCircuit(tmp_path / "a.so")
    assert plain.block == 64
    for n in (1, 64, 200):
        bits = torch.randint(2, (n, 40))
        assert torch.equal(plain.sums(bits), expected := class_sums(circuit, bits))
        assert torch.equal(plain(bits), expected.argmax(1))
