"""A simplified netlist has the outputs of its circuit, and nothing that it could do without."""

import pytest
import torch
from helpers.cases import each
from helpers.circuits import all_bits, random_circuit, sums, truth_tables

from taugrad.circuits import Circuit, class_sums, input_bits, netlist_sums, simplify
from taugrad.circuits.netlist import GATES, depths

SHAPES = [(1, [1], 1), (1, [4, 4], 2), (3, [7, 9], 3), (5, [30, 20, 12], 4), (6, [40], 5), (4, [3, 3, 3, 3, 3, 3], 1)]
CASES = [(*shape, seed) for shape in SHAPES for seed in range(4)]


def circuit_of(inputs, *layers, classes=1):
    return Circuit(inputs, tuple(tuple(torch.tensor(part) for part in layer) for layer in layers), classes)


def tables_of(netlist):
    """Truth tables of the netlist's outputs, as of `helpers.circuits`."""
    rows, ones = range(2**netlist.inputs), (1 << 2**netlist.inputs) - 1
    nets = [0, *(sum((r >> i & 1) << r for r in rows) for i in range(netlist.inputs))]
    for a, b, gate in netlist.gates.tolist():
        a, b = nets[a], nets[b]
        nets.append({2: ~a & b, 4: a & ~b, 6: a ^ b, 8: a & b, 14: a | b}[gate] & ones)
    return [nets[literal >> 1] ^ (ones if literal & 1 else 0) for literal in netlist.outputs.tolist()]


@each("inputs, widths, classes, seed", CASES)
def test_every_output_stays_what_it_is_for_every_input(inputs, widths, classes, seed):
    circuit = random_circuit(inputs, widths, classes, seed)
    assert tables_of(simplify(circuit)) == truth_tables(circuit)


@each("inputs, widths, classes, seed", CASES)
def test_gates_are_different_used_and_in_order(inputs, widths, classes, seed):
    netlist = simplify(random_circuit(inputs, widths, classes, seed))
    gates = [tuple(row) for row in netlist.gates.tolist()]
    assert len(set(gates)) == len(gates)
    used = {net for a, b, _ in gates for net in (a, b)} | set((netlist.outputs >> 1).tolist())
    for own, (a, b, gate) in enumerate(gates, inputs + 1):
        assert 0 < a < b < own
        assert gate in GATES
        assert own in used
    assert max(depths(netlist)) <= len(widths)


@each("inputs, widths, classes, seed", CASES[::3])
def test_the_sums_of_circuit_and_netlist_are_those_of_the_truth_tables(inputs, widths, classes, seed):
    circuit = random_circuit(inputs, widths, classes, seed)
    bits, expected = all_bits(inputs), sums(circuit)
    assert torch.equal(class_sums(circuit, bits), expected)
    assert torch.equal(netlist_sums(simplify(circuit), bits), expected)


def test_a_large_netlist_has_the_sums_of_its_circuit_for_a_number_of_images_that_fills_no_byte():
    circuit = random_circuit(50, [300, 300, 300], 10)
    bits = torch.randint(2, (203, 50))
    netlist = simplify(circuit)
    assert torch.equal(netlist_sums(netlist, bits), class_sums(circuit, bits))
    assert len(netlist.gates) < 450  # of 900, of which six kinds in sixteen are no gates
    assert netlist_sums(netlist, bits[:0]).shape == (0, 10)


@each(
    "layers, gates, outputs",
    [
        ([([0, 1], [1, 0], [0, 15])], [], [0, 1]),  # constants
        ([([0, 1], [1, 0], [12, 12])], [], [2, 4]),  # the inputs
        ([([0, 0], [1, 1], [3, 5])], [], [3, 5]),  # their negations
        ([([0, 0], [1, 1], [3, 5]), ([0, 0], [1, 0], [8, 3])], [[1, 2, 14]], [7, 2]),  # ~a & ~b; not not a
        ([([0, 1], [1, 0], [8, 8])], [[1, 2, 8]], [6, 6]),  # commuted
        ([([0, 1], [1, 0], [4, 2])], [[1, 2, 4]], [6, 6]),  # commuted, and not symmetric
        ([([0, 0], [1, 1], [6, 9])], [[1, 2, 6]], [6, 7]),  # XOR and its negation
        ([([0, 0], [0, 0], [6, 8])], [], [0, 2]),  # of one input twice
        ([([0, 0], [0, 0], [9, 7])], [], [1, 3]),
        ([([0, 0], [1, 0], [8, 0]), ([0, 0], [1, 1], [14, 8])], [[1, 2, 8]], [6, 0]),  # with a constant
        ([([0, 1], [1, 1], [6, 8]), ([1, 1], [0, 1], [12, 3])], [], [4, 5]),  # what no output needs
    ],
)
def test_what_is_folded(layers, gates, outputs):
    netlist = simplify(circuit_of(2, *layers))
    assert netlist.gates.tolist() == gates
    assert netlist.outputs.tolist() == outputs


@each(
    "circuit, error, sentence",
    [
        (None, TypeError, "circuit must be a Circuit, got NoneType"),
        (circuit_of(0, ([0], [0], [1])), ValueError, "a circuit must have inputs, layers and classes, got 0, 1 and 1"),
        (circuit_of(1), ValueError, "a circuit must have inputs, layers and classes, got 1, 0 and 1"),
        (circuit_of(1, ([0, 0], [0], [1])), ValueError, r"layers\[0\] must be three vectors of one size, got"),
        (circuit_of(2, ([0, 2], [0, 0], [1, 1])), ValueError, r"layers\[0\] must take inputs 0 to 1, got 2"),
        (circuit_of(2, ([0], [-1], [1])), ValueError, r"layers\[0\] must take inputs 0 to 1, got -1"),
        (circuit_of(2, ([0], [1], [1]), ([0], [1], [1])), ValueError, r"layers\[1\] must take inputs 0 to 0, got 1"),
        (circuit_of(2, ([0], [1], [16])), ValueError, r"layers\[0\] must take gates 0 to 15, got 16"),
        (circuit_of(2, ([0], [1], [1]), classes=2), ValueError, "the last layer must have a multiple of 2 gates, .*1$"),
    ],
)
def test_layers_that_do_not_fit_are_refused(circuit, error, sentence):
    with pytest.raises(error, match=sentence):
        simplify(circuit)


def test_input_bits_are_pixels_or_thresholds_before_pixels():
    x = torch.rand(5, 2, 3)
    assert torch.equal(input_bits(x.round()), x.round().flatten(1).bool())
    bits = input_bits(x, thresholds=2)
    assert bits.shape == (5, 12)
    assert torch.equal(bits[:, :6], x.flatten(1) > 1 / 3)
    assert torch.equal(bits[:, 6:], x.flatten(1) > 2 / 3)
