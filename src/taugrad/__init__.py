"""Train networks through discrete choices.

The names that most programs need; the modules hold the rest, `taugrad.softmax` among them.
"""

from taugrad.estimators import Enumeration, Estimator, GumbelSoftmax, Pathwise, STGumbelSoftmax, StraightThrough
from taugrad.gumbel import gumbel_argmax, gumbel_noise, gumbel_softmax, straight_through
from taugrad.layers import OneHotSample
from taugrad.schedules import Constant, Cosine, Cyclical, Exponential, Join, Linear, Schedule

__all__ = [
    "Constant",
    "Cosine",
    "Cyclical",
    "Enumeration",
    "Estimator",
    "Exponential",
    "GumbelSoftmax",
    "Join",
    "Linear",
    "OneHotSample",
    "Pathwise",
    "STGumbelSoftmax",
    "Schedule",
    "StraightThrough",
    "gumbel_argmax",
    "gumbel_noise",
    "gumbel_softmax",
    "straight_through",
]
