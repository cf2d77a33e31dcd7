"""Modules over one estimator, as parts of your own models."""

from taugrad.layers.one_hot import OneHotSample
from taugrad.layers.quantizer import CategoricalQuantizer, Quantized
from taugrad.layers.residual import ResidualQuantizer

__all__ = ["CategoricalQuantizer", "OneHotSample", "Quantized", "ResidualQuantizer"]
