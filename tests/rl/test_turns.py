"""Turn-based games against random opponents."""

import sys

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete
from gymnasium.vector import SyncVectorEnv

from taugrad.errors import ConfigError
from taugrad.rl.environments import Environments
from taugrad.rl.envs.turns import AgainstRandom, make


class Nim:
    """Three players take 1 or 2 of the sticks that are left, in turns; who takes the last one loses 1. As an AECEnv."""

    metadata, render_mode = {"render_modes": []}, None
    possible_agents = ("a", "b", "c")
    seen = Dict({"sticks": Box(0, 9, (1,)), "action_mask": Box(0, 1, (2,), np.int8)})
    chosen = Discrete(2, start=1)

    def observation_space(self, agent):
        return self.seen

    def action_space(self, agent):
        return self.chosen

    def reset(self, seed=None, options=None):
        self.left, self.at, self.paid, self.history = 9, 0, [0, 0, 0], []

    @property
    def agent_selection(self):
        return self.possible_agents[self.at]

    def last(self):
        mask = np.array([self.left >= 1, self.left >= 2], np.int8)
        seen = {"sticks": np.array([self.left], np.float32), "action_mask": mask}
        return seen, self.paid[self.at], self.left == 0, False, {}

    def step(self, action):
        if self.left == 0:
            assert action is None
        else:
            assert action in self.chosen
            assert action <= self.left
            self.left -= int(action)
            self.history.append((self.at, int(action)))
            if self.left == 0:
                self.paid[self.at] = -1
        self.at = (self.at + 1) % 3

    def close(self):
        pass


def test_one_agent_plays_its_own_turns_and_random_legal_opponents_the_others():
    game = Nim()
    env = AgainstRandom(game)
    seats, lost, twos, others = [], [], 0, 0
    seen, _ = env.reset(seed=0)
    for _ in range(300):
        over = False
        while not over:
            assert (seen["action_mask"] == [1, game.left >= 2]).all()
            before = len(game.history)
            seen, reward, over, late, _ = env.step(1)
            me, mine = game.history[before]
            assert mine == 1
            assert all(seat != me for seat, _ in game.history[before + 1 :])
            assert not late
        seats.append(me)
        lost.append(reward)
        assert reward == -(game.history[-1][0] == me)
        free = [n for seat, n in game.history[:-2] if seat != me]
        twos, others = twos + free.count(2), others + len(free)
        seen, _ = env.reset()
    # 300 seats of 3: the standard error of a count is 8; 5 of them fail once in 10^6. Those that begin are the first.
    assert all(60 < seats.count(seat) < 140 for seat in range(3))
    assert 0.4 < twos / others < 0.6  # of about 1,000
    assert 0 < -sum(lost) < 300


def test_a_seed_repeats_the_games_and_episodes_differ():
    def play():
        environments = Environments(SyncVectorEnv([lambda: AgainstRandom(Nim())] * 2))
        seen = environments.reset(3)
        rows = []
        for _ in range(40):
            step = environments.step(torch.zeros(2, 1, dtype=torch.int64))
            rows.append(torch.cat([step.seen.observation[:, 0], step.reward[:, 0]]))
        assert environments.sizes.factors == (2,)
        assert seen.mask.shape == (2, 1, 2)
        return torch.stack(rows)

    first = play()
    assert torch.equal(first, play())
    assert not torch.equal(first[:, 0], first[:, 1])


@pytest.mark.parametrize("id", ["connect_four", "tictactoe"])
def test_games_of_pettingzoo_end_with_a_win_a_loss_or_a_draw(id):
    pytest.importorskip("pettingzoo")
    environments = Environments(make(f"pettingzoo.classic.{id}.{id}", 4))
    mask, rewards = environments.reset(0).mask, set()
    for _ in range(150):
        step = environments.step((torch.rand(mask.shape) * mask).argmax(-1))
        assert not step.reward[~step.terminated].any()
        rewards |= set(step.reward[step.terminated].flatten().tolist())
        mask = step.seen.mask
    assert {-1.0, 1.0} <= rewards <= {-1.0, 0.0, 1.0}
    environments.close()


def test_what_is_no_game_is_refused_in_a_sentence(monkeypatch):
    game = Nim()
    game.chosen = Box(0, 1, (1,))
    with pytest.raises(ConfigError, match="the agents of a game must choose from the same Discrete, got"):
        AgainstRandom(game)
    game = Nim()
    game.seen = Box(0, 1, (1,))
    with pytest.raises(ConfigError, match="the agents of a game must see the same Dict with action_mask, got"):
        AgainstRandom(game)
    monkeypatch.setitem(sys.modules, "pettingzoo", sys)  # any module
    for id, sentence in (
        ("no_such_game", "env.make.id=no_such_game: No module named 'no_such_game'"),
        (".four", "env.make.id=.four: the 'package' argument is required"),
        ("math", "env.make.id=math: a game's module has a function env, as those of pettingzoo.classic do"),
    ):
        with pytest.raises(ConfigError, match=sentence):
            make(id, 2)
    monkeypatch.setitem(sys.modules, "pettingzoo", None)
    with pytest.raises(ConfigError, match=r"this needs pettingzoo: pip install 'taugrad\[pettingzoo\]'"):
        make("pettingzoo.classic.connect_four.connect_four", 2)
