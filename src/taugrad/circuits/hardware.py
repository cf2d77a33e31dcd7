"""Netlists as text for other tools: BLIF, which synthesis reads, and Verilog."""

import textwrap

from taugrad.circuits.netlist import GATES, Netlist

_ROWS = {2: ["01"], 4: ["10"], 6: ["01", "10"], 8: ["11"], 14: ["1-", "-1"]}  # inputs for which the gate is 1


def blif(netlist: Netlist) -> str:
    """Return the netlist in the Berkeley Logic Interchange Format.

    Input i is `x{i}`; output j of class c is `y{c}_{j}`, and the class is that with most outputs that are 1.

    >>> import torch
    >>> from taugrad.circuits import Circuit, simplify
    >>> nand = Circuit(2, ((torch.tensor([0]), torch.tensor([1]), torch.tensor([7])),), 1)
    >>> print(blif(simplify(nand)))
    .model circuit
    .inputs x0 x1
    .outputs y0_0
    .names x0 x1 n3
    11 1
    .names n3 y0_0
    0 1
    .end
    <BLANKLINE>
    """
    names, first = _names(netlist, "x{}"), netlist.inputs + 1
    outputs = [f"y{c}_{j}" for c in range(netlist.classes) for j in range(len(netlist.outputs) // netlist.classes)]
    lines = [".model circuit", _folded(".inputs", names[1:first]), _folded(".outputs", outputs)]
    for net, (a, b, gate) in enumerate(netlist.gates.tolist(), first):
        lines += [f".names {names[a]} {names[b]} {names[net]}", *(f"{row} 1" for row in _ROWS[gate])]
    for name, literal in zip(outputs, netlist.outputs.tolist(), strict=True):
        net, negated = literal >> 1, literal & 1
        if net:
            lines += [f".names {names[net]} {name}", f"{1 - negated} 1"]
        else:
            lines += [f".names {name}", *(["1"] if negated else [])]
    return "\n".join([*lines, ".end", ""])


def verilog(netlist: Netlist) -> str:
    """Return the netlist as a module of Verilog, a wire for each gate.

    Its input is `x`, and output `y{c}` holds the bits of class c, of which the class with most is the answer.

    >>> import torch
    >>> from taugrad.circuits import Circuit, simplify
    >>> nand = Circuit(2, ((torch.tensor([0]), torch.tensor([1]), torch.tensor([7])),), 1)
    >>> print(verilog(simplify(nand)))
    module circuit (
      input [1:0] x,
      output [0:0] y0
    );
      wire n3 = x[0] & x[1];
      assign y0[0] = ~n3;
    endmodule
    <BLANKLINE>
    """
    names, first = _names(netlist, "x[{}]"), netlist.inputs + 1
    names[0] = "1'b0"
    width = len(netlist.outputs) // netlist.classes
    ports = [f"input [{netlist.inputs - 1}:0] x", *(f"output [{width - 1}:0] y{c}" for c in range(netlist.classes))]
    lines = ["module circuit (", ",\n".join(f"  {port}" for port in ports), ");"]
    for net, (a, b, gate) in enumerate(netlist.gates.tolist(), first):
        written = {"a": names[a], "b": names[b], "~a": f"~{names[a]}", "~b": f"~{names[b]}"}
        lines.append(f"  wire {names[net]} = {' '.join(written.get(word, word) for word in GATES[gate].split())};")
    for i, literal in enumerate(netlist.outputs.tolist()):
        lines.append(f"  assign y{i // width}[{i % width}] = {'~' * (literal & 1)}{names[literal >> 1]};")
    return "\n".join([*lines, "endmodule", ""])


def _names(netlist: Netlist, of_input: str) -> list[str]:
    inputs = [of_input.format(i) for i in range(netlist.inputs)]
    return ["", *inputs, *(f"n{netlist.inputs + 1 + i}" for i in range(len(netlist.gates)))]


def _folded(key: str, names: list[str]) -> str:
    """Join names in lines of a length that every reader takes."""
    lines = textwrap.wrap(" ".join([key, *names]), 100, break_long_words=False, break_on_hyphens=False)
    return " \\\n".join(lines)
