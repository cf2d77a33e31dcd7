"""An instance of every estimator."""

from taugrad.estimators import (
    REBAR,
    RLOO,
    DecoupledSTGumbelSoftmax,
    DisARM,
    Enumeration,
    GappedStraightThrough,
    GumbelRao,
    GumbelSoftmax,
    IndeCateR,
    ReinMax,
    STGumbelSoftmax,
    StraightThrough,
)

HARD = [
    STGumbelSoftmax(),
    DecoupledSTGumbelSoftmax(backward_tau=0.7),
    GumbelRao(draws=3),
    StraightThrough(),
    GappedStraightThrough(gap=1.0),
    ReinMax(),
]


PATHWISE = [GumbelSoftmax(), *HARD]


UNBIASED = [RLOO(samples=4), REBAR(eta=1.0), IndeCateR(samples=1), DisARM()]


EVERY = [*PATHWISE, *UNBIASED, Enumeration()]
