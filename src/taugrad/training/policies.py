"""The task of a policy: collecting, improving, evaluating, the clock of environment steps, the state in a checkpoint.

A training step collects one rollout from the vector environment and improves the agent by several optimizer steps
(manual optimization). The clock of schedules and of the x-axis is environment steps. An evaluation plays whole episodes
with seeds of its own, greedily and by sampling.

A checkpoint holds networks, optimizer, normalization, the rollouts, the counts and the last episodes' returns. Episodes
in flight are not part of it: a resumed run begins new ones.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from typing import Any, ClassVar, cast, final

import numpy as np
import torch
from gymnasium.vector import VectorEnv
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor
from torch.utils.data import DataLoader

from taugrad.errors import ConfigError
from taugrad.rl.algorithm import Agent, Algorithm, Clock
from taugrad.rl.environments import Environments, build
from taugrad.rl.evaluation import Episodes, Evaluation, evaluate, interquartile_mean, record
from taugrad.rl.rollouts import Collection, Collector, Rollout, Window
from taugrad.rl.spaces import Part
from taugrad.schedules import Schedule
from taugrad.training.task import MakeOptimizer, Task, is_kept, scale_lr

_EVALUATION_SEED = 1_000_000
_BEST_SEED = 2_000_000  # seed of episodes by which no checkpoint was chosen
_MOST_SHARES = 64  # shares of choices that are logged one by one
_CHARTS = {
    "return": ("rollout/ep_rew_mean", "eval/mean_reward", "eval_sampled/mean_reward"),
    "loss": ("train/actor_loss", "train/critic_loss"),
    "temperature": ("policy/tau",),
    "entropy": ("policy/entropy",),
    "step of the policy": ("train/approx_kl", "train/beta"),
    "speed": ("time/fps",),
}
_OF_AGENTS = ("rollout/ep_rew_mean", "eval/mean_reward", "eval_sampled/mean_reward")
_EVALUATED = ("mean_reward", "std_reward", "ep_len")  # by the greedy policy, and by sampling


@final
class PolicyTask(Task):
    """Trains a policy in an environment.

    Args:
        env: a function from `num_envs` to a vector environment.
        model: the algorithm, which builds the agent for the environment's observations and actions.
        collection: how rollouts are collected, and how long.
        evaluation: when the policy is evaluated, and on how many episodes.
        optimizer: makes the optimizer of the agent's parameters.
        lr_factor: schedule that multiplies the optimizer's learning rate, over environment steps.

    Raises:
        TypeError: `model` is no algorithm, or `env`, `optimizer` or `lr_factor` is no function.
        ConfigError: the environment's spaces are not supported.
        ValueError: the algorithm refuses the environment's sizes.

    >>> from functools import partial
    >>> from taugrad import Constant
    >>> from taugrad.rl.environments import make
    >>> from taugrad.rl.multilinear import MultilinearActorCritic
    >>> env, adam = partial(make, "CartPole-v1"), partial(torch.optim.Adam, lr=1e-3)
    >>> collection = Collection(max_env_steps=100_000, window=100)
    >>> task = PolicyTask(env, MultilinearActorCritic(), collection, Evaluation(), adam, Constant(1.0))
    >>> task.greedy(torch.zeros(2, 4)).shape
    torch.Size([2, 1])
    """

    evaluated: ClassVar[str] = "last"  # a collapse must show
    speed: ClassVar[str] = "time/fps"

    def __init__(
        self,
        env: Callable[..., VectorEnv],
        model: Algorithm,
        collection: Collection,
        evaluation: Evaluation,
        optimizer: MakeOptimizer,
        lr_factor: Schedule,
    ) -> None:
        super().__init__(optimizer, lr_factor)
        if not isinstance(model, Algorithm):
            raise TypeError(f"model must be an Algorithm, such as PPO(), got {model!r}")
        if not callable(env):
            raise TypeError(f"env must be a function from num_envs to a vector environment, got {env!r}")
        self.make_env, self.collection, self.evaluation = env, collection, evaluation
        environments = build(env, collection.num_envs)
        sizes = environments.sizes
        self.factors, self.masked = sizes.factors, environments.masked
        self.agents = sizes.agents  # none if there are not several
        self.input_size, self.input_dtype = (sizes.observation,), environments.observation_dtype
        self.reward_threshold = environments.reward_threshold
        self.collector = Collector(environments, collection.seed)
        self.window = Window(collection.window, collection.rollout_steps, collection.num_envs, sizes, self.input_dtype)
        self.agent: Agent = model.build(sizes)
        self.solved_at: int | None = None  # environment steps
        self.metrics = (
            *(f"{kind}/{name}" for kind in ("eval", "eval_sampled") for name in _EVALUATED),
            *("rollout/ep_rew_mean", "rollout/ep_len_mean"),
            *(f"{name}/{part.name}" for name in _OF_AGENTS for part in self.agents),
            *("best/mean_reward", "best/std_reward"),
        )
        self.charts = _CHARTS | _charts_of(self.agents)
        parts = {"model": model, "collection": collection, "evaluation": evaluation}
        self.changeable = (
            *("lr_factor", "optimizer.lr"),
            *(f"{key}.{name}" for key, part in parts.items() for name in part.changeable),
        )

    def clock(self) -> tuple[int, int]:
        """Return the environment steps done, and their total."""
        return self.collector.env_steps, self.collection.max_env_steps

    def greedy(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the most probable choices (E, F) for observations (E, D), of those that `mask` (E, F, K) allows."""
        return self.agent.policy.greedy(x, mask)

    def training_step(self, batch: int, batch_idx: int) -> None:
        """Collect a rollout, improve the agent, log."""
        rollout = self.collect()
        lightning = cast(LightningOptimizer, self.optimizers())
        optimizer = lightning.optimizer  # torch's own, whose steps are faster
        scale_lr(optimizer, self.lr_factor(self.collector.env_steps))
        terms = self.agent.improve(self.window, optimizer, Clock(*self.clock()))
        optimizer.zero_grad(set_to_none=True)
        lightning.step()  # without gradients it only counts a training step in `global_step`, which names checkpoints
        self._note_solution()
        if self.collector.env_steps >= self.collection.max_env_steps:
            self.trainer.should_stop = True
        if is_kept(self.trainer):
            self._log(terms, rollout)

    @torch.no_grad()
    def collect(self) -> Rollout:
        """Fill and return the next rollout of the window; its observations count for the normalization."""
        rollout = self.window.oldest()
        self.collector.fill(rollout, self.agent.policy.act)
        self.agent.policy.count(rollout.observation[:-1][rollout.valid])
        return rollout

    def train_dataloader(self) -> DataLoader[Any]:
        """Return the numbers of the training steps of an epoch, which ends at the next evaluation; no other data."""
        steps = self.evaluation.every / self.window.rollout_size
        return DataLoader(range(math.ceil(steps)), batch_size=None)  # pyright: ignore[reportArgumentType]

    def val_dataloader(self) -> DataLoader[Any]:
        """Return one batch: an evaluation."""
        return DataLoader(range(1), batch_size=None)  # pyright: ignore[reportArgumentType]

    test_dataloader = val_dataloader

    def on_fit_start(self) -> None:
        """Refuse several devices and other precisions, which the agent's own optimizer steps do not support."""
        if self.trainer.precision != "32-true" or self.trainer.world_size > 1:
            raise ConfigError(
                "a policy trains on one device in 32 bits, got "
                f"trainer.devices={self.trainer.world_size} and trainer.precision={self.trainer.precision}"
            )

    def on_train_start(self) -> None:
        """Begin new episodes after a resume, with new seeds; stop if no environment steps are left."""
        if self.collector.env_steps >= self.collection.max_env_steps:
            self.trainer.should_stop = True
        elif self.collector.env_steps:
            self.collector.restart(self.collection.seed + self.collector.env_steps)

    def validation_step(self, batch: int, batch_idx: int) -> None:
        """Play whole episodes greedily and by sampling."""
        self._evaluate(self.evaluation.episodes)

    def test_step(self, batch: int, batch_idx: int) -> None:
        """Play the test's episodes, and log the interquartile mean of their returns too."""
        returns = self._evaluate(self.evaluation.test_episodes)
        names = ("eval/iqm", "eval/iqm_low", "eval/iqm_high")
        self.log_evaluation(dict(zip(names, interquartile_mean(returns), strict=True)), batch_size=1)

    def of_best(self) -> dict[str, float]:
        """Return mean and deviation of the greedy returns, in episodes that no evaluation had."""
        returns = self.play(self.evaluation.test_episodes, greedy=True, seed=_BEST_SEED).returns
        return {"best/mean_reward": returns.mean().item(), "best/std_reward": returns.std(correction=0).item()}

    def play(self, episodes: int, *, greedy: bool, seed: int = _EVALUATION_SEED) -> Episodes:
        """Play one episode in each of `episodes` environments, of one seed the same ones at every call."""
        policy = self.agent.policy
        choose = policy.greedy if greedy else lambda x, mask: policy.act(x, mask)[0]
        with closing(build(self.make_env, episodes)) as environments, torch.random.fork_rng():
            torch.manual_seed(seed)
            return evaluate(environments, choose, seed)

    def film(self) -> tuple[np.ndarray, int]:
        """Return frames (n, height, width, 3) of the greedy policy's first evaluation episode, and their rate a second.

        Raises:
            ConfigError: the environment cannot be rendered.
        """
        with closing(self._drawn()) as environments:
            frames = record(environments, self.agent.policy.greedy, _EVALUATION_SEED)
            return frames, environments.env.metadata.get("render_fps", 30)

    def check_film(self) -> None:
        """Raise ConfigError unless a picture of the environment can be rendered."""
        with closing(self._drawn()) as environments:
            environments.reset(_EVALUATION_SEED)
            environments.picture()

    def _drawn(self) -> Environments:
        """Build an environment that draws pictures."""
        try:
            return build(self.make_env, 1, render_mode="rgb_array")
        except TypeError as error:
            raise ConfigError(f"this environment cannot be rendered: {error}") from error

    def results(self) -> dict[str, Any]:
        """Return the environment steps, and the number at which the environment was solved."""
        return {"env_steps": self.collector.env_steps, "solved_at_env_steps": self.solved_at}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the state that is neither a parameter nor a buffer."""
        checkpoint["acting"] = {
            "window": self.window.state_dict(),
            "env_steps": self.collector.env_steps,
            "returns": list(self.collector.returns),
            "each": list(self.collector.each),
            "lengths": list(self.collector.lengths),
            "solved_at": self.solved_at,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore that state."""
        state = checkpoint["acting"]
        self.window.load_state_dict(state["window"])
        self.collector.env_steps, self.solved_at = state["env_steps"], state["solved_at"]
        self.collector.returns.extend(state["returns"])
        self.collector.each.extend(state["each"])
        self.collector.lengths.extend(state["lengths"])

    def _evaluate(self, episodes: int) -> Tensor:
        """Log whole episodes played by sampling and greedily; return the returns of the greedy ones."""
        returns = torch.empty(0)
        for kind, greedy in (("eval_sampled", False), ("eval", True)):
            returns, lengths, whole, each = self.play(episodes, greedy=greedy)
            terms = {
                f"{kind}/mean_reward": returns.mean().item(),
                f"{kind}/std_reward": returns.std(correction=0).item(),
                f"{kind}/ep_len": lengths.double().mean().item(),
                f"{kind}/unfinished": (~whole).double().mean().item(),
            }
            terms |= self._of_each(f"{kind}/mean_reward", each)
            self.log_evaluation(terms, batch_size=1)
        return returns

    def _of_each(self, name: str, returns: Tensor) -> dict[str, float]:
        """Return the mean of returns (n, N) of each of several agents by its tag."""
        means = returns.mean(0).tolist()
        return {f"{name}/{part.name}": mean for part, mean in zip(self.agents, means, strict=False)}

    def _note_solution(self) -> None:
        returns, mean = self.collector.returns, self.collector.mean_return
        if self.solved_at is not None or self.reward_threshold is None or len(returns) < (returns.maxlen or 0):
            return
        if mean is not None and mean >= self.reward_threshold:
            self.solved_at = self.collector.env_steps

    def _log(self, terms: Mapping[str, Tensor], rollout: Rollout) -> None:
        collector = self.collector
        if collector.mean_return is not None:
            self.log("rollout/ep_len_mean", sum(collector.lengths) / len(collector.lengths), logger=False)
            self.log("rollout/ep_rew_mean", collector.mean_return, prog_bar=True, logger=False)
            self.log_dict(self._of_each("rollout/ep_rew_mean", torch.tensor(list(collector.each))), logger=False)
        self.log_dict({**terms, **self._usage(rollout)}, logger=False)

    def _usage(self, rollout: Rollout) -> dict[str, Tensor]:
        """Return the usage of the choices, of several agents that of each where it was alive."""
        chosen, alive = rollout.action[rollout.valid], rollout.alive[:-1][rollout.valid]
        single = sum(self.factors) <= _MOST_SHARES
        if not self.agents:
            return _usage(chosen, self.factors, single)
        usage, own = {}, chosen.split([len(part.factors) for part in self.agents], 1)
        for part, x, lives in zip(self.agents, own, alive.unbind(1), strict=True):
            usage |= {f"{tag}/{part.name}": x for tag, x in _usage(x[lives], part.factors, single).items()}
        return usage


def _charts_of(agents: Sequence[Part]) -> dict[str, tuple[str, ...]]:
    """Return the charts of the returns and choices of several agents."""
    charts = {
        f"{title} of each agent": tuple(f"{tag}/{part.name}" for part in agents)
        for title, tag in (("return", "rollout/ep_rew_mean"), ("evaluation", "eval/mean_reward"))
        if agents
    }
    if sum(sum(part.factors) for part in agents) <= _MOST_SHARES:
        for part in agents:
            choices = ((f, k) for f, n in enumerate(part.factors) for k in range(n))
            charts[f"choices of {part.name}"] = tuple(f"policy/action_{f}_{k}/{part.name}" for f, k in choices)
    return charts


def _usage(chosen: Tensor, factors: tuple[int, ...], single: bool) -> dict[str, Tensor]:
    """Return the usage of choices (n, F); `single` shares only where there are few, as each scalar takes time."""
    n, F = chosen.shape
    if n == 0:
        return {}
    share = torch.zeros(F, max(factors)).scatter_add_(1, chosen.T, torch.ones(F, n)) / n  # (F, K)
    usage = {"policy/action_perplexity": torch.special.entr(share).sum(-1).exp().mean()}
    if single:
        usage |= {f"policy/action_{f}_{k}": share[f, k] for f, n in enumerate(factors) for k in range(n)}
    return usage
