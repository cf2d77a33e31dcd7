"""A picture of a small netlist."""

from typing import Any

from taugrad.circuits.netlist import Netlist, depths

_NAMES = {2: "AND", 4: "AND", 6: "XOR", 8: "AND", 14: "OR"}
_COLOURS = ("#bbccee", "#ffcccc", "#ccddaa", "#eeeebb", "#cceeff")  # one for each class
_NEGATED = {2: (True, False), 4: (False, True)}  # inputs of a gate


def plot(netlist: Netlist, axes: Any) -> None:
    """Plot a netlist into matplotlib's axes: inputs, then a column for each depth of gates, then the outputs.

    An output's colour is that of its class. A circle at the end of a line negates.

    >>> import torch
    >>> from matplotlib.figure import Figure
    >>> from taugrad.circuits import Circuit, simplify
    >>> nand = Circuit(2, ((torch.tensor([0]), torch.tensor([1]), torch.tensor([7])),), 1)
    >>> axes = Figure().subplots()
    >>> plot(simplify(nand), axes)
    >>> sorted(text.get_text() for text in axes.texts)
    ['AND', 'x0', 'x1', 'y0_0']
    """
    first, per_class = netlist.inputs + 1, len(netlist.outputs) // netlist.classes
    depth = depths(netlist)
    columns: dict[int, list[int]] = {}
    for net in sorted({1, *range(1, first + len(netlist.gates)), *(netlist.outputs >> 1).tolist()}):
        columns.setdefault(depth[net], []).append(net)
    height = max(len(netlist.outputs), *map(len, columns.values()))
    at = {net: (x, _place(i, len(nets), height)) for x, nets in columns.items() for i, net in enumerate(nets)}
    end = max(columns) + 1
    wires = []
    for net, (a, b, gate) in enumerate(netlist.gates.tolist(), first):
        x, y = at[net]
        above = sorted((a, b), key=lambda source: at[source][1], reverse=True)
        negated = dict(zip((a, b), _NEGATED.get(gate, (False, False)), strict=True))
        wires += [(source, x, y + dy, negated[source]) for source, dy in zip(above, (0.15, -0.15), strict=True)]
        _box(axes, x, y, _NAMES[gate], "white")
    for i, literal in enumerate(netlist.outputs.tolist()):
        y = _place(i, len(netlist.outputs), height)
        wires.append((literal >> 1, end, y, bool(literal & 1)))
        _box(axes, end, y, f"y{i // per_class}_{i % per_class}", _COLOURS[i // per_class % len(_COLOURS)])
    for net in (net for net in at if net < first):
        _box(axes, *at[net], f"x{net - 1}" if net else "false", "#eeeeee")
    for source, x, y, negated in wires:
        left, level = at[source]
        axes.plot([left, left + 0.2, x - 0.2, x], [level, level, y, y], color="#888888", lw=0.8, zorder=1)
        if negated:
            axes.plot([x - 0.2], [y], "o", ms=4, mfc="white", mec="#222222", mew=0.8, zorder=3)
    axes.set(xlim=(-0.5, end + 0.5), ylim=(-1, height))
    axes.axis("off")


def _place(i: int, n: int, height: int) -> float:
    """Height of item i of a column of n, from the top of a picture of `height` items."""
    return height - 0.5 - (i + 0.5) * height / n


def _box(axes: Any, x: float, y: float, text: str, colour: str) -> None:
    style = {"boxstyle": "round,pad=0.25", "facecolor": colour, "edgecolor": "#222222", "linewidth": 0.8}
    axes.text(x, y, text, ha="center", va="center", fontsize=7, bbox=style, zorder=2)
