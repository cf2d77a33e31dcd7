"""A game of three agents of different sizes, with masks, one of whom leaves early; the best return is known."""

import numpy as np
import torch
from gymnasium.spaces import Box, MultiDiscrete
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from taugrad.rl.algorithm import Clock
from taugrad.rl.environments import build
from taugrad.rl.evaluation import evaluate
from taugrad.rl.rollouts import Collector, Window
from taugrad.rl.spaces import Part

PARTS = (Part("red", 3, (3,)), Part("green", 2, (4, 2)), Part("blue", 1, (2,)))
STEPS, LEAVES = 6, 3  # of an episode, and after how many blue leaves
BEST = STEPS * 1.25 + LEAVES * 0.5


class Matching(VectorEnv):
    """A number t of 0, 1, 2 is drawn in each step. Red sees it as a one-hot, green as t and a one, blue sees nothing.

    Red and green get half a point each if red chooses t and green t + 1 of its four, where t is forbidden; green gets a
    quarter more if its second choice says whether t is 2; blue gets half a point whenever it chooses 1.
    """

    metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP, "agents": PARTS, "render_modes": []}  # noqa: RUF012

    def __init__(self, num_envs):
        self.num_envs = num_envs
        self.single_observation_space = Box(0, 3, (6,), np.float32)
        self.single_action_space = MultiDiscrete([3, 4, 2, 2])
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.made = np.zeros(self.num_envs, dtype=np.int64)
        self.ended = np.zeros(self.num_envs, dtype=bool)
        return self._show(np.zeros((self.num_envs, 3)))

    def step(self, actions):
        t, (red, green, late, blue) = self.t, np.asarray(actions).T
        assert (self.ended | (green != t)).all()  # the mask forbids it
        both = (red == t) & (green == t + 1)
        rewards = np.stack([both, both + (late == (t == 2)) / 2, (blue == 1) & (self.made < LEAVES)], 1) / 2
        rewards[self.ended] = 0
        self.made = np.where(self.ended, 0, self.made + 1)
        self.ended = self.made == STEPS
        observation, info = self._show(rewards)
        return observation, rewards.sum(1), np.zeros_like(self.ended), self.ended.copy(), info

    def _show(self, rewards):
        E = self.num_envs
        self.t = t = self.np_random.integers(3, size=E)
        alive = np.stack([np.ones(E), np.ones(E), self.made < LEAVES], 1).astype(bool)
        observation = np.concatenate([np.eye(3)[t], t[:, None], np.ones((E, 1)), np.zeros((E, 1))], 1)
        mask = np.ones((E, 3 + 4 + 2 + 2), dtype=bool)
        mask[np.arange(E), 3 + t] = False
        return observation.astype(np.float32), {"rewards": rewards, "alive": alive, "action_mask": mask}


def filled(algorithm, rollouts=3, num_envs=4, rollout=8, capacity=20, make=Matching):
    """An agent of the game, a window that it has filled, its collector and its optimizer."""
    environments = build(make, num_envs)
    agent = algorithm.build(environments.sizes)
    window = Window(capacity, rollout, num_envs, environments.sizes, environments.observation_dtype)
    collector = Collector(environments, seed=0)
    for _ in range(rollouts):
        collect(agent, window, collector)
    return agent, window, collector, torch.optim.Adam(agent.parameters(), lr=3e-3)


def collect(agent, window, collector):
    rollout = window.oldest()
    collector.fill(rollout, agent.policy.act)
    agent.policy.count(rollout.observation[:-1][rollout.valid])


def best_return(algorithm, lr, steps, **options):
    """The greedy policy's mean return of the game after so many steps of training."""
    agent, window, collector, optimizer = filled(algorithm, rollouts=0, num_envs=16, **options)
    for group in optimizer.param_groups:
        group["lr"] = lr
    while collector.env_steps < steps:
        collect(agent, window, collector)
        agent.improve(window, optimizer, Clock(collector.env_steps, steps))
    return evaluate(build(Matching, 20), agent.policy.greedy, seed=7).returns.mean().item()
