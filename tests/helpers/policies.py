"""Small tasks of policies, and a trainer."""

from lightning import Trainer

from helpers.configs import composed
from taugrad.config import instantiate
from taugrad.rl.algorithm import Clock

SMALL = ["collection.num_envs=4", "collection.rollout_steps=8", "model.hidden=[16]", "env.max_env_steps=400"]
EVALUATED = ["evaluation.every=150", "evaluation.episodes=3", "evaluation.test_episodes=5"]
REPLAY = ["collection.window=10", "model.minibatches=3", "model.batch_size=16"]
POLICY = ["model=policy", *SMALL, *EVALUATED, *REPLAY]
BANDIT = ["model=policy", "env=bandit", "env.make.factors=2", "env.make.choices=3", "model.pairwise=true"]
BANDIT += ["model.gamma=0", "collection.rollout_steps=16", "model.minibatches=10", "model.batch_size=128"]
PPO = ["model=ppo", *SMALL, *EVALUATED, "model.epochs=2", "model.batch_size=16"]
MADDPG = ["model=maddpg", "env=cartpole", *SMALL, *EVALUATED, "collection.window=10", "model.updates=2"]
MADDPG += ["model.batch_size=16", "model.learning_starts=100"]


def task(*overrides):
    return instantiate(composed(*overrides)["task"])


def trainer(directory, **options):
    parts = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    return Trainer(default_root_dir=directory, max_epochs=-1, enable_model_summary=False, **parts | options)


def improving(task):
    """The task with a filled window, and what improves its agent by one training step outside of a trainer."""
    optimizer = task.configure_optimizers()
    for _ in range(3):
        task.collect()
    return task, lambda: task.agent.improve(task.window, optimizer, Clock(*task.clock()))
