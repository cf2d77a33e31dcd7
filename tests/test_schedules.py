import math
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from taugrad import schedules
from taugrad.schedules import Constant, Cosine, Cyclical, Exponential, Join, Linear, Rectified

EVERY = [
    Constant(0.7),
    Linear(2.0, 0.5, steps=100),
    Exponential(start=1.0, end=0.5, rate=1e-2, every=10),
    Cosine(1.0, 0.1, steps=100),
    Join([Constant(1.0), Linear(1.0, 0.5, steps=50), Cosine(0.5, 0.1, steps=50)], boundaries=[10, 60]),
    Cyclical(Linear(1.0, 0.5, steps=20), period=25),
    Rectified(beta2=0.99),
]


def test_every_schedule_of_the_module_is_tested_here():
    classes = {c for c in vars(schedules).values() if isinstance(c, type) and c.__module__ == schedules.__name__}
    assert classes - {schedules.Schedule} == {type(s) for s in EVERY}


@pytest.mark.parametrize("schedule", EVERY, ids=repr)
def test_values_are_positive_finite_floats_at_every_step(schedule):
    for step in [*range(200), 10**9]:
        value = schedule(step)
        assert isinstance(value, float)
        assert 0 < value < math.inf


@pytest.mark.parametrize("schedule", EVERY, ids=repr)
def test_schedules_are_frozen_hashable_comparable_and_picklable(schedule):
    again = pickle.loads(pickle.dumps(schedule))
    assert again == schedule
    assert hash(again) == hash(schedule)
    with pytest.raises(AttributeError):
        setattr(schedule, next(iter(vars(schedule))), 1.0)


def test_linear_and_cosine_start_and_end_where_they_say_and_meet_in_the_middle():
    for schedule in (Linear(1.0, 0.2, steps=10), Cosine(1.0, 0.2, steps=10)):
        assert [schedule(t) for t in (0, 5, 10, 1000)] == pytest.approx([1.0, 0.6, 0.2, 0.2])
    assert Cosine(1.0, 0.2, steps=10)(2) == pytest.approx(0.2 + 0.8 * (1 + math.cos(0.2 * math.pi)) / 2)


@given(rate=st.sampled_from([1e-5, 1e-4]), every=st.sampled_from([500, 1000]), step=st.integers(0, 200_000))
def test_exponential_is_jangs_annealing(rate, every, step):
    expected = max(0.5, math.exp(-rate * (step // every * every)))
    assert Exponential(1.0, 0.5, rate, every)(step) == pytest.approx(expected, rel=1e-12)


def test_a_joined_child_sees_steps_since_its_own_boundary():
    seen = []

    def spy(step):
        seen.append(step)
        return 1.0

    join = Join([Constant(1.0), spy, Linear(1.0, 0.5, steps=10)], boundaries=[3, 7])
    assert [join(t) for t in (2, 3, 6, 7, 12, 17)] == [1.0, 1.0, 1.0, 1.0, 0.75, 0.5]
    assert seen == [0, 3]


def test_adam_by_the_rectified_factor_steps_as_radam_of_torch():
    """Compare them after RAdam's first steps, along the momentum; eps is small: the two add it in different places."""
    gradients = torch.randn(60, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    steps = []
    for make, factor in ((torch.optim.RAdam, Constant(1.0)), (torch.optim.Adam, Rectified())):
        p = torch.zeros(10, dtype=torch.float64, requires_grad=True)
        optimizer = make([p], lr=0.1, eps=1e-30)
        path = []
        for step, gradient in enumerate(gradients):
            optimizer.param_groups[0]["lr"] = 0.1 * factor(step)
            before, p.grad = p.detach().clone(), gradient
            optimizer.step()
            path.append(p.detach() - before)
        steps.append(torch.stack(path)[5:])
    assert torch.allclose(*steps, rtol=1e-10, atol=0)


@given(step=st.integers(0, 1000))
def test_a_join_of_one_is_that_one(step):
    assert Join([EVERY[1]], boundaries=[])(step) == EVERY[1](step)


@given(step=st.integers(0, 1000), period=st.integers(1, 50))
def test_cyclical_repeats_with_its_period(step, period):
    child = Linear(1.0, 0.5, steps=20)
    assert Cyclical(child, period)(step) == Cyclical(child, period)(step + period) == child(step % period)


@pytest.mark.parametrize(
    ("build", "error", "sentence"),
    [
        (lambda: Constant(0.0), ValueError, "value must be a positive finite number, got 0"),
        (lambda: Constant("1"), TypeError, "value must be a number, got '1'"),
        (lambda: Constant(True), TypeError, "value must be a number, got True"),
        (lambda: Linear(-1.0, 0.5, 10), ValueError, "start must be a positive finite number, got -1"),
        (lambda: Linear(1.0, math.nan, 10), ValueError, "end must be a positive finite number, got nan"),
        (lambda: Linear(1.0, 0.5, 0), ValueError, "steps must be at least 1, got 0"),
        (lambda: Linear(1.0, 0.5, 1.5), TypeError, "steps must be a whole number, got 1.5"),
        (lambda: Exponential(rate=-1e-4), ValueError, "rate must be a finite number >= 0, got -0.0001"),
        (lambda: Exponential(rate=math.nan), ValueError, "rate must be a finite number >= 0, got nan"),
        (lambda: Exponential(start=0.2, end=0.5), ValueError, "end must be at most start = 0.2, got 0.5"),
        (lambda: Exponential(every=0), ValueError, "every must be at least 1, got 0"),
        (lambda: Cosine(end=math.inf), ValueError, "end must be a positive finite number, got inf"),
        (lambda: Join([], []), ValueError, "schedules must hold at least one schedule"),
        (lambda: Join([Constant()], [3]), ValueError, "one step fewer than the 1 schedules, got 1"),
        (lambda: Join([Constant()] * 3, [5, 5]), ValueError, r"boundaries must increase, got \[5, 5\]"),
        (lambda: Join([0.5], []), TypeError, r"schedules must be schedules, tau\(step\), got 0.5"),
        (lambda: Rectified(1.0), ValueError, "beta2 must be a number from 0.75 up to 1, without 1, got 1.0"),
        (lambda: Cyclical(Constant(), 0), ValueError, "period must be at least 1, got 0"),
        (lambda: Cyclical(1.0, 5), TypeError, "schedule must be"),
    ],
)
def test_bad_parameters_raise_at_construction(build, error, sentence):
    with pytest.raises(error, match=sentence):
        build()
