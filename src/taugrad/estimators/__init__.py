r"""Estimators of E_z f(z) over one-hot `z`, with a gradient to the logits.

    estimator.expectation(f, logits, tau) ~ E_{z ~ softmax(logits)} f(z)

The contract: logits (..., N, K) are N independent categoricals of K classes. `f` takes one-hot vectors
(*more, ..., N, K), with further leading dimensions or without, and returns one value for each, (*more, ...).
`expectation` returns (...): an estimate of E f(z) whose backward is the estimator's gradient, to the logits and to
all else that f depends on. Pathwise estimators also give the one-hot itself, with a gradient, as `sample`. tau is an
argument and never state; an estimator is a frozen dataclass of plain numbers.

All take `generator=`, any dtype from float16 to float64, masks (a class of logit -inf is never drawn and gets zero
gradient; a row with every class masked raises), any stride. Pathwise ones take `dim`, `torch.func.vmap` and
`torch.compile(fullgraph=True)`.
"""

from taugrad.estimators.base import Estimator, Pathwise, check_estimator, check_pathwise
from taugrad.estimators.control_variates import REBAR, relax
from taugrad.estimators.coupled import DisARM
from taugrad.estimators.diffusion import ReDGE, ReinDGE
from taugrad.estimators.enumeration import Enumeration, check_enumerable, configurations
from taugrad.estimators.reinmax import ReinMax, ReinMaxCV, ReinMaxRao
from taugrad.estimators.relaxed import (
    DecoupledSTGumbelSoftmax,
    GumbelRao,
    GumbelSoftmax,
    STGumbelSoftmax,
)
from taugrad.estimators.score_function import RLOO, IndeCateR
from taugrad.estimators.second_order import ZGR, MinimumVarianceStraightThrough
from taugrad.estimators.straight_through import (
    CAGE,
    DecoupledStraightThrough,
    GappedStraightThrough,
    StraightThrough,
)

__all__ = [
    "CAGE",
    "REBAR",
    "RLOO",
    "ZGR",
    "DecoupledSTGumbelSoftmax",
    "DecoupledStraightThrough",
    "DisARM",
    "Enumeration",
    "Estimator",
    "GappedStraightThrough",
    "GumbelRao",
    "GumbelSoftmax",
    "IndeCateR",
    "MinimumVarianceStraightThrough",
    "Pathwise",
    "ReDGE",
    "ReinDGE",
    "ReinMax",
    "ReinMaxCV",
    "ReinMaxRao",
    "STGumbelSoftmax",
    "StraightThrough",
    "check_enumerable",
    "check_estimator",
    "check_pathwise",
    "configurations",
    "relax",
]
