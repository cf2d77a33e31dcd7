"""Modules over one estimator, as parts of your own models."""

from taugrad.layers.gate import BinaryGate, HardConcreteGate
from taugrad.layers.one_hot import OneHotSample
from taugrad.layers.quantizer import CategoricalQuantizer, Quantized
from taugrad.layers.residual import ResidualQuantizer
from taugrad.layers.router import Routed, Router
from taugrad.layers.selector import Selector

__all__ = [
    "BinaryGate",
    "CategoricalQuantizer",
    "HardConcreteGate",
    "OneHotSample",
    "Quantized",
    "ResidualQuantizer",
    "Routed",
    "Router",
    "Selector",
]
