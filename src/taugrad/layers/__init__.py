"""Modules over one estimator, to put into models of one's own."""

from taugrad.layers.one_hot import OneHotSample

__all__ = ["OneHotSample"]
