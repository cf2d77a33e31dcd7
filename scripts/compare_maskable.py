"""Train the policies here and sb3-contrib's MaskablePPO in the same masked environments, and print what each reaches.

    python scripts/compare_maskable.py connect_four 60_000 1_000 0 1 2

trains every algorithm for 60,000 steps with each of three seeds, one after the other, and plays 1,000 episodes by each;
0 episodes measure the speed alone. It needs `pip install sb3-contrib pettingzoo pygame`. Speeds are by the CPU's time.
PPO and MaskablePPO have the same networks, rollouts, minibatches and learning rate.
"""

import sys
import time
from functools import partial

import gymnasium
import torch
from gymnasium.spaces import Box
from gymnasium.vector import SyncVectorEnv
from sb3_contrib import MaskablePPO  # pyright: ignore[reportMissingImports]
from sb3_contrib.common.envs import (  # pyright: ignore[reportMissingImports]
    InvalidActionEnvDiscrete,
    InvalidActionEnvMultiDiscrete,
)
from stable_baselines3.common.vec_env import DummyVecEnv  # pyright: ignore[reportMissingImports]

from taugrad import Constant, STGumbelSoftmax
from taugrad.rl.algorithm import Clock
from taugrad.rl.environments import Environments
from taugrad.rl.envs.turns import AgainstRandom
from taugrad.rl.multilinear import MultilinearActorCritic
from taugrad.rl.ppo import PPO
from taugrad.rl.rollouts import Collector, Window

ENVS, STEPS, HIDDEN, LR = 8, 128, [128, 128], 1e-3


def connect_four():
    """Connect Four against a random player."""
    from pettingzoo.classic.connect_four import connect_four

    return AgainstRandom(connect_four.env())


GAMES = {
    "connect_four": connect_four,
    "discrete": partial(InvalidActionEnvDiscrete, dim=80, n_invalid_actions=60),
    "multi_discrete": partial(InvalidActionEnvMultiDiscrete, dims=[20, 20], n_invalid_actions=20),
}


class ByMethod(gymnasium.Wrapper):
    """The game as MaskablePPO takes it: numbers alone are seen, and a method gives the mask."""

    def __init__(self, env):
        super().__init__(env)
        seen = env.observation_space["observation"]  # pyright: ignore[reportIndexIssue]
        self.observation_space = Box(0, 1, seen.shape)

    def reset(self, **options):
        """Begin a new episode; gymnasium's interface."""
        self.seen, info = self.env.reset(**options)
        return self.seen["observation"], info

    def step(self, action):
        """Make one step; gymnasium's interface."""
        self.seen, *rest = self.env.step(action)
        return self.seen["observation"], *rest

    def action_masks(self):
        """Return the mask of the present state."""
        return self.seen["action_mask"].astype(bool)


def ours(algorithm, steps, window, game, total, seed):
    """Train an algorithm; return its environment steps, and how it chooses greedily and by sampling."""
    torch.manual_seed(seed)
    environments = Environments(SyncVectorEnv([game] * ENVS))
    agent = algorithm.build(environments.sizes)
    optimizer = torch.optim.Adam(agent.parameters(), lr=LR, eps=1e-5)
    window = Window(window, steps, ENVS, environments.sizes, environments.observation_dtype)
    collector = Collector(environments, seed)
    while collector.env_steps < total:
        rollout = window.oldest()
        optimizer.param_groups[0]["lr"] = LR * Clock(collector.env_steps, total).remaining
        collector.fill(rollout, agent.policy.act)
        agent.policy.count(rollout.observation[:-1][rollout.valid])
        agent.improve(window, optimizer, Clock(collector.env_steps, total))
    return collector.env_steps, (agent.policy.greedy, lambda x, mask: agent.policy.act(x, mask)[0])


def maskable(game, total, seed):
    """Train MaskablePPO; return as `ours` does."""
    wrapped = (lambda: ByMethod(game())) if game is connect_four else game
    policy = {"net_arch": HIDDEN, "activation_fn": torch.nn.Tanh}
    batches = {"n_steps": STEPS, "batch_size": 256, "n_epochs": 10}
    model = MaskablePPO(
        "MlpPolicy", DummyVecEnv([wrapped] * ENVS), lambda left: LR * left, seed=seed, policy_kwargs=policy, **batches
    )
    model.learn(total)

    def choose(deterministic, x, mask):
        if game is connect_four:
            seen = x.view(-1, 6, 7, 2).numpy()
        else:  # flattened, a one-hot for each number
            seen = torch.stack([part.argmax(-1) for part in x.split(sizes(game), -1)], -1).squeeze(-1).numpy()
        masks = mask.flatten(1).numpy()
        action, _ = model.predict(seen, action_masks=masks, deterministic=deterministic)
        return torch.as_tensor(action).view(len(x), -1)

    return model.num_timesteps, (partial(choose, True), partial(choose, False))


def sizes(game):
    """Numbers of choices of one of sb3-contrib's environments."""
    return [game.keywords["dim"]] if "dim" in game.keywords else game.keywords["dims"]


PPO_HERE = PPO(hidden=HIDDEN, epochs=10, gamma=0.99, lam=0.95)
POLICY = MultilinearActorCritic(STGumbelSoftmax(), Constant(1.0), hidden=HIDDEN)
ALGORITHMS = {
    "policy": partial(ours, POLICY, 32, 100),
    "ppo": partial(ours, PPO_HERE, STEPS, 1),
    "MaskablePPO": maskable,
}


@torch.no_grad()
def returns_of(game, choose, episodes):
    """Returns of whole episodes, as many in each environment, so that short ones count no more than long ones."""
    torch.manual_seed(0)
    environments = Environments(SyncVectorEnv([game] * ENVS))
    seen, total = environments.reset(1_000_000), torch.zeros(ENVS, dtype=torch.float64)
    returns = [[] for _ in range(ENVS)]
    while min(map(len, returns)) < episodes // ENVS:
        step = environments.step(choose(seen.observation, seen.mask))
        seen, total = step.seen, total + step.reward[:, 0]
        for e in (step.terminated | step.truncated).nonzero()[:, 0].tolist():
            returns[e].append(total[e].item())
            total[e] = 0
    return torch.tensor([part[: episodes // ENVS] for part in returns])


def main(name, total, episodes, *seeds):
    """Train every algorithm with every seed, and print a line for each."""
    torch.set_num_threads(1)
    game, episodes = GAMES[name], int(episodes)
    for seed in map(int, seeds):
        for algorithm, train in ALGORITHMS.items():
            start = time.process_time()
            steps, ways = train(game, int(total), seed)
            speed = steps / (time.process_time() - start)
            told = []
            for way, choose in zip(("greedy", "sampled"), ways, strict=True) if episodes else ():
                returns = returns_of(game, choose, episodes)
                told.append(f"{way} {returns.mean():.3f} (above 0: {(returns > 0).double().mean():.1%})")
            print(f"{name} {algorithm:12} seed {seed}: {speed:5,.0f} steps a CPU second; {', '.join(told)}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
