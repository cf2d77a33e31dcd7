"""Evaluation of a fixed policy on whole episodes, apart from training."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from taugrad.checks import check_count
from taugrad.rl.environments import Environments

_MOST_STEPS = 20_000  # steps of an episode, after which an evaluation stops; for environments without a time limit


Choose = Callable[[Tensor, Tensor], Tensor]  # observations (E, D) and masks (E, F, K) to choices (E, F)


@dataclass(frozen=True)
class Evaluation:
    """Settings of the evaluation of a policy: how often, and on how many episodes; ValueError if a count is below 1."""

    every: int = 10_000  # environment steps between two evaluations during training
    episodes: int = 10  # episodes of each evaluation during training
    test_episodes: int = 100  # episodes of the evaluation at the end

    changeable: ClassVar[tuple[str, ...]] = ("every", "episodes", "test_episodes")

    def __post_init__(self) -> None:
        for name in ("every", "episodes", "test_episodes"):
            check_count(name, getattr(self, name))


class Episodes(NamedTuple):
    """Results of an episode of each of E environments."""

    returns: Tensor  # (E,), float64, of all agents
    lengths: Tensor  # (E,), int64
    whole: Tensor  # (E,), bool: False for an episode that had not ended when its evaluation stopped
    each: Tensor  # (E, N), float64: the return of each agent


@torch.no_grad()
def evaluate(environments: Environments, choose: Choose, seed: int) -> Episodes:
    """Play the first episode of each of E environments.

    One episode each, so that short episodes do not count more often than long ones. An episode of more than 20,000
    steps counts with its return so far, is marked as not whole, and leads to a warning.
    """
    seen = environments.reset(seed)
    running = torch.ones(environments.num_envs, dtype=torch.bool)
    returns = torch.zeros(environments.num_envs, dtype=torch.float64)
    lengths = torch.zeros(environments.num_envs, dtype=torch.int64)
    each = torch.zeros(environments.num_envs, len(environments.sizes.parts), dtype=torch.float64)
    for _ in range(_MOST_STEPS):
        step = environments.step(choose(seen.observation, seen.mask))
        seen = step.seen
        returns += torch.where(running, step.reward.sum(-1), 0.0)
        each += torch.where(running[:, None], step.reward, 0.0)
        lengths += running
        running &= ~(step.terminated | step.truncated)
        if not running.any():
            break
    if running.any():
        warnings.warn(
            f"{int(running.sum())} of {len(running)} episodes had not ended after {_MOST_STEPS:,} steps and count with "
            "their return so far: give the environment a time limit, such as +env.make.max_episode_steps=1000",
            stacklevel=3,
        )
    return Episodes(returns, lengths, ~running, each)


def interquartile_mean(values: Tensor) -> tuple[float, float, float]:
    """Return the mean of the middle half of `values` (n,), and a bootstrap interval of 95 % around it (2108.13264).

    >>> interquartile_mean(torch.tensor([0.0, 1.0, 3.0, 100.0]))[0]
    2.0
    """
    from scipy import stats  # imported here because it takes a second

    x = values.double().numpy()
    middle = float(stats.trim_mean(x, 0.25))
    if len(x) < 2 or np.all(x == x[0]):
        return middle, middle, middle
    draw = {"n_resamples": 2000, "method": "percentile", "rng": np.random.default_rng(0)}
    interval = stats.bootstrap((x,), lambda x, axis: stats.trim_mean(x, 0.25, axis=axis), **draw).confidence_interval
    return middle, float(interval.low), float(interval.high)


@torch.no_grad()
def record(environments: Environments, choose: Choose, seed: int, most: int = 1000) -> np.ndarray:
    """Record pictures (n, height, width, 3) of the first environment's first episode; ConfigError if it renders none.

    There are at most `most` of them; a warning says so if the episode is longer.
    """
    seen = environments.reset(seed)
    frames = [environments.picture()]
    while len(frames) < most:
        step = environments.step(choose(seen.observation, seen.mask))
        seen = step.seen
        frames.append(environments.picture())
        if step.terminated[0] or step.truncated[0]:
            return np.stack(frames)
    warnings.warn(f"the film ends after {most:,} pictures, before its episode does", stacklevel=3)
    return np.stack(frames)
