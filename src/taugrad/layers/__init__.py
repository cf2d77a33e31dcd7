"""Modules over one estimator, as parts of your own models."""

from taugrad.layers.one_hot import OneHotSample

__all__ = ["OneHotSample"]
