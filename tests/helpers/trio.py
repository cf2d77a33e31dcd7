"""Three agents of different spaces with the parallel interface of PettingZoo, which end at random times."""

import numpy as np
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Tuple

SEES = {
    "scout": Box(-5, 5, (2, 1), np.float32),
    "pilot": Dict({"observation": Discrete(4), "action_mask": MultiBinary(5)}),
    "guard": MultiBinary(3),
}
CHOOSES = {
    "scout": Discrete(3, start=-1),
    "pilot": MultiDiscrete([2, 3], start=[0, 4]),
    "guard": Tuple([Discrete(2), MultiBinary(2)]),
}
FACTORS = {"scout": (3,), "pilot": (2, 3), "guard": (2, 2, 2)}
ENDS = ("terminated", "truncated", "both")


class Trio:
    """The scout has no mask, the pilot's is in its observation, the guard's in its info.

    An agent's reward says what it did. `ends` fixes when each ends and how, in their order; they are drawn otherwise.
    """

    def __init__(self, ends=None, render_mode=None, fails_at=None, spoil=lambda *parts: parts):
        self.possible_agents, self.ends, self.fails_at, self.spoil = list(SEES), ends, fails_at, spoil
        self.closed, self.render_mode, self.metadata = False, render_mode, {"render_fps": 7}

    def observation_space(self, agent):
        return SEES[agent]

    def action_space(self, agent):
        return CHOOSES[agent]

    def reset(self, seed=None, options=None):
        if seed is not None:
            self.random = np.random.default_rng(seed)
        self.agents, self.t = list(SEES), 0
        drawn = [(int(self.random.integers(1, 6)), str(self.random.choice(ENDS))) for _ in SEES]
        self.plan = dict(zip(SEES, self.ends or drawn, strict=True))
        return self._shown()

    def step(self, given):
        assert list(given) == self.agents
        assert all(CHOOSES[a].contains(action) for a, action in given.items()), given
        self.t += 1
        if self.t == self.fails_at:
            raise OSError("the radio is dead")
        reward = {a: float(np.sum(np.concatenate([np.ravel(x) for x in _parts(given[a])]) * 10.0)) for a in self.agents}
        over = {a: self.plan[a][0] <= self.t for a in self.agents}
        terminated = {a: over[a] and self.plan[a][1] != "truncated" for a in self.agents}
        truncated = {a: over[a] and self.plan[a][1] != "terminated" for a in self.agents}
        seen, info = self._shown()
        self.agents = [a for a in self.agents if not over[a]]
        return self.spoil(seen, reward, terminated, truncated, info)

    def _shown(self):
        mask = self.random.integers(2, size=5).astype(np.int8)
        mask[[0, 3]] = 1
        guards = self.random.integers(2, size=6).astype(bool)
        guards[::2] = True
        guards = [guards[:2], (guards[2:4], guards[4:])] if self.t % 2 else guards  # one of each factor, or joined
        seen = {
            "scout": self.random.normal(size=(2, 1)).astype(np.float32).clip(-5, 5),
            "pilot": {"observation": int(self.random.integers(4)), "action_mask": mask},
            "guard": self.random.integers(2, size=3).astype(np.int8),
        }
        info = {"scout": {}, "pilot": {}, "guard": {"action_mask": guards}}
        return {a: seen[a] for a in self.agents}, {a: info[a] for a in self.agents}

    def render(self):
        return np.full((4, 6, 3), self.t, np.uint8)

    def close(self):
        self.closed = True


def _parts(action):
    return action if isinstance(action, tuple) else (action,)


def parallel_env(**kwargs):
    return Trio(**kwargs)
