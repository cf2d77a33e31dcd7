"""Train networks through discrete choices.

The names that most programs need; the modules hold the rest, `taugrad.ops.softmax` among them. Either is imported when
it is first used: torch takes seconds, which `taugrad --help` need not wait for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from taugrad.estimators import (
        CAGE,
        REBAR,
        RLOO,
        ZGR,
        DecoupledSTGumbelSoftmax,
        DecoupledStraightThrough,
        DisARM,
        Enumeration,
        Estimator,
        GappedStraightThrough,
        GumbelRao,
        GumbelSoftmax,
        IndeCateR,
        MinimumVarianceStraightThrough,
        Pathwise,
        ReDGE,
        ReinDGE,
        ReinMax,
        ReinMaxCV,
        ReinMaxRao,
        STGumbelSoftmax,
        StraightThrough,
    )
    from taugrad.layers import OneHotSample
    from taugrad.ops.gumbel import gumbel_argmax, gumbel_max, gumbel_softmax
    from taugrad.ops.noise import gumbel_noise
    from taugrad.ops.onehot import straight_through
    from taugrad.schedules import Constant, Cosine, Cyclical, Exponential, Join, Linear, Rectified, Schedule

__version__ = "0.1.0"  # the only place, but for CITATION.cff

__all__ = [
    "CAGE",
    "REBAR",
    "RLOO",
    "ZGR",
    "Constant",
    "Cosine",
    "Cyclical",
    "DecoupledSTGumbelSoftmax",
    "DecoupledStraightThrough",
    "DisARM",
    "Enumeration",
    "Estimator",
    "Exponential",
    "GappedStraightThrough",
    "GumbelRao",
    "GumbelSoftmax",
    "IndeCateR",
    "Join",
    "Linear",
    "MinimumVarianceStraightThrough",
    "OneHotSample",
    "Pathwise",
    "ReDGE",
    "Rectified",
    "ReinDGE",
    "ReinMax",
    "ReinMaxCV",
    "ReinMaxRao",
    "STGumbelSoftmax",
    "Schedule",
    "StraightThrough",
    "gumbel_argmax",
    "gumbel_max",
    "gumbel_noise",
    "gumbel_softmax",
    "straight_through",
]

_ELSEWHERE = {  # the modules of the names that are not in taugrad.estimators
    **dict.fromkeys(("gumbel_argmax", "gumbel_max", "gumbel_softmax"), "ops.gumbel"),
    **dict.fromkeys(
        ("Constant", "Cosine", "Cyclical", "Exponential", "Join", "Linear", "Rectified", "Schedule"), "schedules"
    ),
    "OneHotSample": "layers",
    "gumbel_noise": "ops.noise",
    "straight_through": "ops.onehot",
}
_MODULES = ("bounds", "distributions", "errors", "estimators", "layers", "nets", "ops", "probe", "schedules")


def __getattr__(name: str) -> Any:
    if name in __all__:
        value = getattr(import_module(f"taugrad.{_ELSEWHERE.get(name, 'estimators')}"), name)
        globals()[name] = value  # found at once from now on
        return value
    if name in _MODULES:
        return import_module(f"taugrad.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_MODULES})
