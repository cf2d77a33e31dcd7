r"""Schedules, tau(step), as frozen dataclasses.

    tau_t = schedule(t)

The contract: `schedule(step)` takes a step >= 0 and returns a positive, finite float; a schedule is immutable,
hashable, picklable, and has no state, so that a resumed run needs only its step. Bad parameters raise at
construction. Past its last step a schedule stays at its end. `Join` and `Cyclical` compose any of them; each child
sees the steps since its own boundary. The learning rate uses the same schedules, as factors.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from taugrad.checks import check_count, check_positive


class Schedule(Protocol):
    """Callable from a step to a temperature."""

    def __call__(self, step: int, /) -> float:
        """Return the value at `step`."""
        ...


@dataclass(frozen=True)
class Constant:
    r"""$\tau_t = \mathrm{value}$.

    >>> Constant(0.5)(1000)
    0.5
    """

    value: float = 1.0

    def __post_init__(self) -> None:
        check_positive("value", self.value)

    def __call__(self, step: int) -> float:
        """Return the value, at any step."""
        return self.value


@dataclass(frozen=True)
class Linear:
    r"""$\tau_t = \mathrm{start} + (\mathrm{end} - \mathrm{start}) \min(1, t / \mathrm{steps})$.

    >>> [Linear(1.0, 0.5, steps=10)(t) for t in (0, 5, 10, 11)]
    [1.0, 0.75, 0.5, 0.5]
    """

    start: float = 1.0
    end: float = 0.5
    steps: int = 10_000

    def __post_init__(self) -> None:
        check_positive("start", self.start)
        check_positive("end", self.end)
        check_count("steps", self.steps)

    def __call__(self, step: int) -> float:
        """Return the value at `step`."""
        return self.start + (self.end - self.start) * min(1.0, step / self.steps)


@dataclass(frozen=True)
class Exponential:
    r"""$\tau_t = \max(\mathrm{end}, \mathrm{start}\, e^{-\mathrm{rate}\, N \lfloor t/N \rfloor})$, N = `every`.

    With start 1 the annealing of 1611.01144: $\max(0.5, e^{-rt})$, updated every N steps.

    >>> jang = Exponential(start=1.0, end=0.5, rate=1e-4, every=1000)
    >>> [round(jang(t), 4) for t in (0, 999, 1000, 1999, 100_000)]
    [1.0, 1.0, 0.9048, 0.9048, 0.5]
    """

    start: float = 1.0
    end: float = 0.5
    rate: float = 1e-4
    every: int = 1

    def __post_init__(self) -> None:
        check_positive("start", self.start)
        check_positive("end", self.end)
        check_count("every", self.every)
        if self.end > self.start:
            raise ValueError(f"end must be at most start = {self.start}, got {self.end}")
        if not 0 <= self.rate < math.inf:
            raise ValueError(f"rate must be a finite number >= 0, got {self.rate}")

    def __call__(self, step: int) -> float:
        """Return the value at `step`."""
        return max(self.end, self.start * math.exp(-self.rate * (step - step % self.every)))


@dataclass(frozen=True)
class Cosine:
    r"""$\tau_t = \mathrm{end} + (\mathrm{start} - \mathrm{end}) (1 + \cos(\pi \min(1, t / \mathrm{steps}))) / 2$.

    >>> [round(Cosine(1.0, 0.5, steps=10)(t), 4) for t in (0, 5, 10, 11)]
    [1.0, 0.75, 0.5, 0.5]
    """

    start: float = 1.0
    end: float = 0.5
    steps: int = 10_000

    def __post_init__(self) -> None:
        check_positive("start", self.start)
        check_positive("end", self.end)
        check_count("steps", self.steps)

    def __call__(self, step: int) -> float:
        """Return the value at `step`."""
        return self.end + (self.start - self.end) * (1 + math.cos(math.pi * min(1.0, step / self.steps))) / 2


@dataclass(frozen=True)
class Rectified:
    r"""RAdam's warm-up as a factor of Adam's learning rate: the variance of $1/\sqrt{v_t}$ at its end over that at t.

    $r_t = \sqrt{\frac{(\rho_t - 4)(\rho_t - 2)\rho_\infty}{(\rho_\infty - 4)(\rho_\infty - 2)\rho_t}}$,
    $\rho_\infty = 2/(1-\beta_2) - 1$, $\rho_t = \rho_\infty - 2 t \beta_2^t / (1 - \beta_2^t)$, t = step + 1.

    With it `torch.optim.Adam`, which has a fused kernel, makes the steps of `torch.optim.RAdam`, which has none.
    Two things differ: in the first steps, where $\rho_t \le 5$, RAdam follows the momentum, unscaled, and here the
    factor is that of the first step after them; and eps is added where Adam adds it. Source: 1908.03265.

    >>> [round(Rectified()(step), 3) for step in (0, 5, 100, 1000, 10_000)]
    [0.026, 0.026, 0.216, 0.646, 1.0]
    """

    beta2: float = 0.999

    def __post_init__(self) -> None:
        if not 0.75 <= self.beta2 < 1:
            raise ValueError(f"beta2 must be a number from 0.75 up to 1, without 1, got {self.beta2}")

    def __call__(self, step: int) -> float:
        """Return the factor at `step`."""
        end = 2 / (1 - self.beta2) - 1
        t = step + 1
        while (rho := end - 2 * t * self.beta2**t / (1 - self.beta2**t)) <= 5:
            t += 1
        return math.sqrt((rho - 4) * (rho - 2) * end / ((end - 4) * (end - 2) * rho))


@dataclass(frozen=True)
class Join:
    """Schedules one after another: `schedules[i]` runs from `boundaries[i-1]` on, and counts its steps from there.

    >>> warm = Join([Constant(1.0), Linear(1.0, 0.5, steps=100)], boundaries=[1000])
    >>> [warm(t) for t in (999, 1000, 1050, 5000)]
    [1.0, 1.0, 0.75, 0.5]
    """

    schedules: Sequence[Schedule]
    boundaries: Sequence[int]

    def __post_init__(self) -> None:
        # Tuples keep a schedule hashable when a config gives lists.
        object.__setattr__(self, "schedules", tuple(self.schedules))
        object.__setattr__(self, "boundaries", tuple(self.boundaries))
        if not self.schedules:
            raise ValueError("schedules must hold at least one schedule, got none")
        _schedules("schedules", *self.schedules)
        if len(self.boundaries) != len(self.schedules) - 1:
            raise ValueError(
                f"boundaries must hold one step fewer than the {len(self.schedules)} schedules, "
                f"got {len(self.boundaries)}"
            )
        for boundary in self.boundaries:
            check_count("boundaries", boundary)
        if any(b <= a for a, b in zip(self.boundaries, self.boundaries[1:], strict=False)):
            raise ValueError(f"boundaries must increase, got {list(self.boundaries)}")

    def __call__(self, step: int) -> float:
        """Return the value at `step`, of the schedule that runs there."""
        started = [b for b in self.boundaries if b <= step]
        return self.schedules[len(started)](step - (started[-1] if started else 0))


@dataclass(frozen=True)
class Cyclical:
    """Schedule that starts again every `period` steps.

    >>> saw = Cyclical(Linear(1.0, 0.5, steps=100), period=100)
    >>> [saw(t) for t in (0, 50, 100, 150)]
    [1.0, 0.75, 1.0, 0.75]
    """

    schedule: Schedule
    period: int

    def __post_init__(self) -> None:
        _schedules("schedule", self.schedule)
        check_count("period", self.period)

    def __call__(self, step: int) -> float:
        """Return the value at `step`, counted from the start of its cycle."""
        return self.schedule(step % self.period)


def check_schedule(name: str, value: object) -> None:
    """Raise unless `value` is a schedule; a class of schedules is none.

    >>> check_schedule("tau", 0.5)
    Traceback (most recent call last):
    TypeError: tau must be a schedule, a function from a step to a number, such as Constant(1.0), got 0.5
    """
    if not callable(value) or isinstance(value, type):
        raise TypeError(
            f"{name} must be a schedule, a function from a step to a number, such as Constant(1.0), got {value!r}"
        )


def _schedules(name: str, *schedules: Schedule) -> None:
    for schedule in schedules:
        if not callable(schedule):
            raise TypeError(f"{name} must be schedules, tau(step), got {schedule!r}")
