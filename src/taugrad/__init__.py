"""Train networks through discrete choices.

The names that most programs need; the modules hold the rest, `taugrad.softmax` among them.
"""

from taugrad.estimators import (
    REBAR,
    RLOO,
    DecoupledSTGumbelSoftmax,
    Enumeration,
    Estimator,
    GappedStraightThrough,
    GumbelRao,
    GumbelSoftmax,
    Pathwise,
    ReinMax,
    STGumbelSoftmax,
    StraightThrough,
)
from taugrad.gumbel import gumbel_argmax, gumbel_max, gumbel_softmax
from taugrad.layers import OneHotSample
from taugrad.noise import gumbel_noise
from taugrad.sampling import straight_through
from taugrad.schedules import Constant, Cosine, Cyclical, Exponential, Join, Linear, Schedule

__all__ = [
    "REBAR",
    "RLOO",
    "Constant",
    "Cosine",
    "Cyclical",
    "DecoupledSTGumbelSoftmax",
    "Enumeration",
    "Estimator",
    "Exponential",
    "GappedStraightThrough",
    "GumbelRao",
    "GumbelSoftmax",
    "Join",
    "Linear",
    "OneHotSample",
    "Pathwise",
    "ReinMax",
    "STGumbelSoftmax",
    "Schedule",
    "StraightThrough",
    "gumbel_argmax",
    "gumbel_max",
    "gumbel_noise",
    "gumbel_softmax",
    "straight_through",
]
