"""Whole episodes of a fixed policy, apart from training."""

from collections.abc import Callable

import torch
from torch import Tensor

from taugrad.rl.environments import Environments

_MOST_STEPS = 20_000  # of an episode: an environment without a time limit ends here


@torch.no_grad()
def evaluate(environments: Environments, choose: Callable[[Tensor], Tensor], seed: int) -> tuple[Tensor, Tensor]:
    """Return and length of the first episode of each environment.

    One episode each, so that short episodes are not counted more often than long ones.

    Args:
        environments: E of them; they are reset.
        choose: observations (E, D) to choices (E, F).
        seed: of the reset.

    Returns:
        Returns (E,), float64, and lengths (E,), int64.
    """
    observation = environments.reset(seed)
    running = torch.ones(environments.num_envs, dtype=torch.bool)
    returns = torch.zeros(environments.num_envs, dtype=torch.float64)
    lengths = torch.zeros(environments.num_envs, dtype=torch.int64)
    for _ in range(_MOST_STEPS):
        step = environments.step(choose(observation))
        observation = step.observation
        returns += torch.where(running, step.reward, 0.0)
        lengths += running
        running &= ~(step.terminated | step.truncated)
        if not running.any():
            break
    return returns, lengths
