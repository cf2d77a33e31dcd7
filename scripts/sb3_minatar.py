"""PPO of stable-baselines3 on a game of MinAtar: `python scripts/sb3_minatar.py breakout --frames 100000 --seed 0`.

The other side of the table in docs/results.md: the networks of `experiment=minatar_ppo` but one trunk for actor and
value, as is usual there, its hyperparameters, the same games and the same evaluation. It needs stable-baselines3.
"""

# stable-baselines3 is not installed with this library.
# pyright: reportMissingImports=false, reportArgumentType=false, reportAttributeAccessIssue=false

import argparse
import json
import time
from functools import partial

import torch
from stable_baselines3 import PPO
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import DummyVecEnv
from torch import nn

from taugrad.nets import PictureEncoder
from taugrad.rl.environments import build
from taugrad.rl.envs import minatar
from taugrad.rl.evaluation import evaluate

EVALUATION_SEED = 1_000_000


class Features(BaseFeaturesExtractor):
    """16 filters 3 x 3 and a linear layer, as in MinAtar's paper."""

    def __init__(self, observation_space, features_dim=128):
        super().__init__(observation_space, features_dim)
        self.encoder = PictureEncoder(observation_space.shape, features_dim)

    def forward(self, observations):
        """Encode observations as stable-baselines3 gives them, (n, 10, 10, C)."""
        return self.encoder(observations.flatten(1))


def train(game, frames, seed):
    """Return the trained model."""
    one = minatar.make(game, 1).env_fns[0]
    env = DummyVecEnv([lambda: Monitor(one())] * 8)
    model = PPO(
        "MlpPolicy",
        env,
        learning_rate=lambda left: 1e-3 * left,
        n_steps=128,
        batch_size=256,
        n_epochs=4,
        gamma=0.99,
        gae_lambda=0.95,
        clip_range=0.2,
        ent_coef=0.01,
        policy_kwargs={"features_extractor_class": Features, "net_arch": [], "activation_fn": nn.ReLU},
        seed=seed,
        device="cpu",
    )
    return model.learn(frames)


@torch.no_grad()
def play(model, game, episodes, *, greedy):
    """Return the mean return of one episode in each of `episodes` environments."""

    def choose(observation, mask):
        actions, _, _ = model.policy(observation.view(-1, *model.observation_space.shape), deterministic=greedy)
        return actions[:, None]

    torch.manual_seed(EVALUATION_SEED)
    return evaluate(build(partial(minatar.make, game), episodes), choose, EVALUATION_SEED).returns.mean().item()


def main():
    """Train, evaluate and print one line of JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("game")
    parser.add_argument("--frames", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--episodes", type=int, default=20)
    given = parser.parse_args()
    torch.set_num_threads(1)
    wall, cpu = time.time(), time.process_time()
    model = train(given.game, given.frames, given.seed)
    result = {"wall": round(time.time() - wall), "cpu": round(time.process_time() - cpu)}
    returns = [episode["r"] for episode in model.ep_info_buffer]
    result["rollout"] = sum(returns) / len(returns)
    for kind, greedy in (("sampled", False), ("greedy", True)):
        result[kind] = play(model, given.game, given.episodes, greedy=greedy)
    print(json.dumps({**vars(given), **result}))


if __name__ == "__main__":
    main()
