"""The files for other tools, read by readers of the test's own, have the outputs of the circuit."""

import re

from helpers.cases import each
from helpers.circuits import random_circuit, truth_tables
from matplotlib.figure import Figure

from taugrad.circuits import blif, plot, simplify, verilog

CASES = [(1, [4], 2, 0), (3, [8, 8], 4, 1), (5, [30, 20, 12], 4, 2), (6, [40, 40], 2, 3)]


def inputs_of(n):
    return [sum((r >> i & 1) << r for r in range(2**n)) for i in range(n)]


@each("inputs, widths, classes, seed", CASES)
def test_blif_has_the_outputs_in_the_order_of_the_classes(inputs, widths, classes, seed):
    circuit = random_circuit(inputs, widths, classes, seed)
    text = blif(simplify(circuit))
    assert max(map(len, text.splitlines())) < 110
    lines = [line.split() for line in text.replace("\\\n", " ").splitlines()]
    assert lines[0] == [".model", "circuit"]
    assert lines[-1] == [".end"]
    ones = (1 << 2**inputs) - 1
    nets = dict(zip([f"x{i}" for i in range(inputs)], inputs_of(inputs), strict=True))
    assert lines[1] == [".inputs", *nets]
    own = None
    for line in lines[3:-1]:
        if line[0] == ".names":
            *own, name = line[1:]
            assert name not in nets
            nets[name] = 0
        else:
            row = ones
            for source, bit in zip(own, line[0] if own else "", strict=True):
                row &= {"0": ~nets[source], "1": nets[source], "-": ones}[bit]
            nets[name] |= row
            assert line[-1] == "1"
    assert lines[2][1:] == [f"y{c}_{j}" for c in range(classes) for j in range(widths[-1] // classes)]
    assert [nets[name] for name in lines[2][1:]] == truth_tables(circuit)


@each("inputs, widths, classes, seed", CASES)
def test_verilog_has_the_outputs_in_the_order_of_the_classes(inputs, widths, classes, seed):
    circuit = random_circuit(inputs, widths, classes, seed)
    text, width = verilog(simplify(circuit)), widths[-1] // classes
    head, _, body = text.partition(");\n")
    ports = [f"input [{inputs - 1}:0] x", *(f"output [{width - 1}:0] y{c}" for c in range(classes))]
    assert head == "module circuit (\n" + ",\n".join(f"  {port}" for port in ports) + "\n"
    values = {"1'b0": 0} | {f"x[{i}]": table for i, table in enumerate(inputs_of(inputs))}
    for line in body.splitlines()[:-1]:
        name, right = re.fullmatch(r"  (?:wire|assign) (\S+) = (.*);", line).groups()
        assert name not in values
        value = eval(re.sub(r"1'b0|\w+(\[\d+\])?", lambda net: str(values[net[0]]), right))
        values[name] = value & ((1 << 2**inputs) - 1)
    assert body.endswith("endmodule\n")
    found = [values[f"y{c}[{j}]"] for c in range(classes) for j in range(width)]
    assert found == truth_tables(circuit)


def test_a_picture_has_a_box_for_every_gate_input_and_output_and_a_circle_for_every_negation():
    circuit = random_circuit(8, [16, 16, 8], 2, seed=1)
    netlist = simplify(circuit)
    axes = Figure().subplots()
    plot(netlist, axes)
    texts = [text.get_text() for text in axes.texts]
    assert len(texts) == len(netlist.gates) + 8 + 8 + (0 in netlist.outputs >> 1)
    assert {f"x{i}" for i in range(8)} | {f"y{c}_{j}" for c in range(2) for j in range(4)} <= set(texts)
    negations = sum(gate in (2, 4) for gate in netlist.gates[:, 2].tolist()) + int((netlist.outputs & 1).sum())
    wires = 2 * len(netlist.gates) + 8
    assert len(axes.lines) == wires + negations
