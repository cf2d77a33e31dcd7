"""Circuits of two-input gates: smaller netlists, programs in C, files for synthesis, pictures.

`model=logic_gates` trains a network that becomes one. Nothing here needs the model.
"""

from taugrad.circuits.c import CompiledCircuit, c_source, compile_circuit, compile_source
from taugrad.circuits.hardware import blif, verilog
from taugrad.circuits.netlist import Circuit, Netlist, class_sums, input_bits, netlist_sums, simplify
from taugrad.circuits.picture import plot

__all__ = [
    "Circuit",
    "CompiledCircuit",
    "Netlist",
    "blif",
    "c_source",
    "class_sums",
    "compile_circuit",
    "compile_source",
    "input_bits",
    "netlist_sums",
    "plot",
    "simplify",
    "verilog",
]
