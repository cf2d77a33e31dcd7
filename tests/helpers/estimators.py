"""An instance of every estimator."""

from taugrad.estimators import (
    CAGE,
    REBAR,
    RLOO,
    ZGR,
    DecoupledSTGumbelSoftmax,
    DecoupledStraightThrough,
    DisARM,
    Enumeration,
    GappedStraightThrough,
    GumbelRao,
    GumbelSoftmax,
    IndeCateR,
    MinimumVarianceStraightThrough,
    ReDGE,
    ReinDGE,
    ReinMax,
    ReinMaxCV,
    ReinMaxRao,
    STGumbelSoftmax,
    StraightThrough,
)

PRODUCTS = [ReinMaxRao(draws=3), ReinMaxCV(draws=3), ZGR(), MinimumVarianceStraightThrough()]


HARD = [
    STGumbelSoftmax(),
    DecoupledSTGumbelSoftmax(backward_tau=0.7),
    GumbelRao(draws=3),
    StraightThrough(),
    DecoupledStraightThrough(),
    CAGE(),
    GappedStraightThrough(gap=1.0),
    ReinMax(),
    *PRODUCTS,
]


DIFFUSED = [ReDGE(steps=4), ReinDGE(steps=4)]  # hard, but only in the limit softmax(logits) in distribution


PATHWISE = [GumbelSoftmax(), *HARD, *DIFFUSED]


UNBIASED = [RLOO(samples=4), REBAR(eta=1.0), IndeCateR(samples=1), DisARM()]


EVERY = [*PATHWISE, *UNBIASED, Enumeration()]


BY_TORCH = [GumbelRao(draws=3), CAGE(), *PRODUCTS, *DIFFUSED, *UNBIASED]  # compiled programs have no operator for them
