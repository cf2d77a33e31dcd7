"""An environment that counts its steps, and numbers of actions."""

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete, Tuple
from gymnasium.vector import SyncVectorEnv
from gymnasium.wrappers import TimeLimit

from taugrad.rl.environments import Environments


class Counter(gymnasium.Env):
    """Ends after 3 steps by itself or after 2 by time; it shows the step it is at, and 1 is its reward."""

    observation_space, action_space = Box(0, 10, (1,)), Discrete(2, start=5)

    def reset(self, *, seed=None, options=None):
        self.at = 0
        return np.array([0.0], dtype=np.float32), {}

    def step(self, action):
        assert action in (5, 6)
        self.at += 1
        return np.array([self.at], dtype=np.float32), 1.0, self.at == 3, False, {}


def counters(limit=None, **options):
    one = (lambda: TimeLimit(Counter(), limit)) if limit else Counter
    return Environments(SyncVectorEnv([one] * 2, **options))


def from_zero(action, space):
    """An action's numbers in the order of its factors, each less its smallest."""
    if isinstance(space, Tuple):
        return [n for a, part in zip(action, space, strict=True) for n in from_zero(a, part)]
    return np.subtract(action, getattr(space, "start", 0), dtype=int).ravel().tolist()
