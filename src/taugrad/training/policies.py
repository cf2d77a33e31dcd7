"""What every policy task shares: collecting, evaluating, the clock of environment steps, what a checkpoint holds.

A training step collects one rollout from the vector environment and improves the actor by several optimizer steps
(manual optimization). The clock of schedules and of the x-axis is environment steps. An evaluation plays whole episodes
with seeds of its own, greedily and by sampling.

A checkpoint holds networks, optimizer, normalization, the rollouts, the counts and the last episodes' returns. Episodes
in flight are not part of it: a resumed run begins new ones.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, cast

import numpy as np
import torch
from gymnasium.vector import VectorEnv
from lightning import LightningModule
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torch.utils.data import DataLoader

from taugrad.checks import check_count
from taugrad.config import instantiate
from taugrad.errors import ConfigError
from taugrad.ops.gumbel import gumbel_argmax
from taugrad.rl.actor import Actor
from taugrad.rl.environments import build
from taugrad.rl.evaluation import Episodes, evaluate, interquartile_mean, record
from taugrad.rl.normalization import RunningNorm
from taugrad.rl.rollouts import Collector, Rollout, Window
from taugrad.schedules import Schedule
from taugrad.training.task import is_kept, optimizer_over

_EVALUATION_SEED = 1_000_000
_MOST_SHARES = 64  # of choices that are logged one by one


class Acting(LightningModule, ABC):
    """The base of policies.

    Args:
        env: config of a function from `num_envs` to a vector environment.
        num_envs: E, environments that training steps at once.
        rollout_steps: T, steps of each in a rollout.
        window: rollouts kept.
        max_env_steps: the training's length.
        seed: of the training's environments.
        optimizer: config of the optimizer, partial: the parameters come later.
        lr_factor: config of the schedule that multiplies the optimizer's learning rate.
        evaluation_every: environment steps between two evaluations during training.
        evaluation_episodes: episodes of each.
        test_episodes: episodes of the evaluation at the end.
        normalize: observations by their running mean and variance.

    Raises:
        ValueError: a count is out of range.
        ConfigError: the environment's spaces are not supported.
    """

    evaluated: ClassVar[str] = "last"  # checkpoint: a collapse must show
    speed: ClassVar[str] = "time/fps"
    changeable: ClassVar[tuple[str, ...]] = (  # on resume
        *("max_env_steps", "lr_factor", "optimizer.lr", "evaluation_every", "evaluation_episodes", "test_episodes"),
        *("gamma", "lam", "ent_coef", "batch_size"),
    )
    charts: ClassVar[dict[str, tuple[str, ...]]] = {  # side by side in TensorBoard
        "return": ("rollout/ep_rew_mean", "eval/mean_reward", "eval_sampled/mean_reward"),
        "loss": ("train/actor_loss", "train/critic_loss"),
        "temperature": ("policy/tau",),
        "entropy": ("policy/entropy",),
        "step of the policy": ("train/approx_kl", "train/beta"),
        "speed": ("time/fps",),
    }
    metrics: ClassVar[tuple[str, ...]] = (
        *(f"{kind}/{name}" for kind in ("eval", "eval_sampled") for name in ("mean_reward", "std_reward", "ep_len")),
        "rollout/ep_rew_mean",
        "rollout/ep_len_mean",
    )

    actor: Actor

    def __init__(
        self,
        env: Mapping[str, Any],
        num_envs: int,
        rollout_steps: int,
        window: int,
        max_env_steps: int,
        seed: int,
        optimizer: Mapping[str, Any],
        lr_factor: Mapping[str, Any],
        evaluation_every: int,
        evaluation_episodes: int,
        test_episodes: int,
        normalize: bool = True,
    ) -> None:
        super().__init__()
        counts = {
            "num_envs": num_envs,
            "rollout_steps": rollout_steps,
            "window": window,
            "max_env_steps": max_env_steps,
            "evaluation_every": evaluation_every,
            "evaluation_episodes": evaluation_episodes,
            "test_episodes": test_episodes,
        }
        for name, value in counts.items():
            check_count(name, value)
        self.automatic_optimization = False  # a training step makes several optimizer steps
        self.make_env: Callable[..., VectorEnv] = instantiate(env)
        environments = build(self.make_env, num_envs)
        self.factors, self.observation_size = environments.factors, environments.observation_size
        self.input_dtype = environments.observation_dtype
        self.reward_threshold = environments.reward_threshold
        self.collector = Collector(environments, seed)
        sizes = self.observation_size, len(self.factors)
        self.window = Window(window, rollout_steps, num_envs, *sizes, self.input_dtype)
        self.norm = RunningNorm(self.observation_size) if normalize else torch.nn.Identity()
        self.seed, self.max_env_steps = seed, max_env_steps
        self.optimizer_config = optimizer
        self.lr_factor: Schedule = instantiate(lr_factor)
        self.evaluation_every, self.evaluation_episodes = evaluation_every, evaluation_episodes
        self.test_episodes = test_episodes
        self.solved_at: int | None = None  # environment steps

    @abstractmethod
    def improve(self) -> dict[str, Tensor]:
        """Optimizer steps after a rollout came into the window; what they tell, nothing without a transition."""

    def clock(self) -> tuple[int, int]:
        """Environment steps done, and in all."""
        return self.collector.env_steps, self.max_env_steps

    def act(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        """Choices (E, F) drawn by the actor and their log-probability (E,), for observations (E, D)."""
        logits = self.actor(self.normalized(observation))
        action = gumbel_argmax(logits)
        return action, log_prob_of(logits, action)

    def greedy(self, observation: Tensor) -> Tensor:
        """The most probable choices (E, F)."""
        return self.actor(self.normalized(observation)).argmax(-1)

    def normalized(self, observation: Tensor) -> Tensor:
        """Observations (..., D) as the networks take them, float32."""
        return self.norm(observation.to(self.device)).float()

    @property
    def input_size(self) -> tuple[int, ...]:
        """Of one input of `greedy`."""
        return (self.observation_size,)

    def training_step(self, batch: int, batch_idx: int) -> None:
        """Collect a rollout, improve the actor, log."""
        rollout = self.collect()
        terms = self.improve()
        self._count_step()
        self._note_solution()
        if self.collector.env_steps >= self.max_env_steps:
            self.trainer.should_stop = True
        if is_kept(self.trainer):
            self._log(terms, rollout)

    @torch.no_grad()
    def collect(self) -> Rollout:
        """The next rollout of the window, filled by the actor; its observations count for the normalization."""
        rollout = self.window.oldest()
        self.collector.fill(rollout, self.act)
        if isinstance(self.norm, RunningNorm):
            self.norm.update(rollout.observation[:-1][rollout.valid].to(self.device))
        return rollout

    def optimizer_now(self) -> torch.optim.Optimizer:
        """The optimizer, its learning rate that of the clock; torch's own, whose steps are faster than Lightning's."""
        optimizer = cast(LightningOptimizer, self.optimizers()).optimizer
        for group in optimizer.param_groups:
            group["lr"] = optimizer.defaults["lr"] * self.lr_factor(self.collector.env_steps)
        return optimizer

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The configured optimizer over all parameters."""
        return optimizer_over(self.parameters(), self.optimizer_config)

    def train_dataloader(self) -> DataLoader[Any]:
        """The count of training steps up to the next evaluation, which makes an epoch; they need no other data."""
        steps = self.evaluation_every / self.window.rollout_size
        return DataLoader(range(math.ceil(steps)), batch_size=None)  # pyright: ignore[reportArgumentType]

    def val_dataloader(self) -> DataLoader[Any]:
        """One batch: an evaluation."""
        return DataLoader(range(1), batch_size=None)  # pyright: ignore[reportArgumentType]

    test_dataloader = val_dataloader

    def on_fit_start(self) -> None:
        """Refuse what the plain backward and optimizer steps would not follow.

        Raises:
            ConfigError: the trainer's precision is not 32 bits, or it has several devices.
        """
        if self.trainer.precision != "32-true" or self.trainer.world_size > 1:
            raise ConfigError(
                "a policy trains on one device in 32 bits, got "
                f"trainer.devices={self.trainer.world_size} and trainer.precision={self.trainer.precision}"
            )

    def on_train_start(self) -> None:
        """Begin new episodes after a resume, with seeds that the earlier ones had not; stop where nothing is left."""
        if self.collector.env_steps >= self.max_env_steps:
            self.trainer.should_stop = True
        elif self.collector.env_steps:
            self.collector.restart(self.seed + self.collector.env_steps)

    def validation_step(self, batch: int, batch_idx: int) -> None:
        """Play whole episodes greedily and by sampling."""
        self._evaluate(self.evaluation_episodes)

    def test_step(self, batch: int, batch_idx: int) -> None:
        """The same with the episodes of the end."""
        returns = self._evaluate(self.test_episodes)
        names = ("eval/iqm", "eval/iqm_low", "eval/iqm_high")
        self._log_evaluation(dict(zip(names, interquartile_mean(returns), strict=True)))

    def play(self, episodes: int, *, greedy: bool) -> Episodes:
        """One episode in each of `episodes` environments, the same ones at every call."""
        environments = build(self.make_env, episodes)
        choose = self.greedy if greedy else lambda x: self.act(x)[0]
        try:
            with torch.random.fork_rng():
                torch.manual_seed(_EVALUATION_SEED)
                return evaluate(environments, choose, _EVALUATION_SEED)
        finally:
            environments.close()

    def film(self) -> tuple[np.ndarray, int]:
        """Pictures (n, height, width, 3) of the greedy policy's first evaluation episode, and how many make a second.

        Raises:
            ConfigError: the environment cannot be drawn.
        """
        try:
            environments = build(self.make_env, 1, render_mode="rgb_array")
        except TypeError as error:
            raise ConfigError(f"this environment cannot be drawn: {error}") from error
        try:
            frames = record(environments, self.greedy, _EVALUATION_SEED)
            return frames, environments.env.metadata.get("render_fps", 30)
        finally:
            environments.close()

    def results(self) -> dict[str, Any]:
        """What a finished run reports beside its metrics."""
        return {"env_steps": self.collector.env_steps, "solved_at_env_steps": self.solved_at}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what is no parameter and no buffer."""
        checkpoint["acting"] = {
            "window": self.window.state_dict(),
            "env_steps": self.collector.env_steps,
            "returns": list(self.collector.returns),
            "lengths": list(self.collector.lengths),
            "solved_at": self.solved_at,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take it back."""
        state = checkpoint["acting"]
        self.window.load_state_dict(state["window"])
        self.collector.env_steps, self.solved_at = state["env_steps"], state["solved_at"]
        self.collector.returns.extend(state["returns"])
        self.collector.lengths.extend(state["lengths"])

    def _count_step(self) -> None:
        """Let Lightning's `global_step`, which keeps checkpoints apart, count this training step."""
        optimizer = cast(LightningOptimizer, self.optimizers())
        optimizer.zero_grad(set_to_none=True)
        optimizer.step()  # without gradients it changes nothing

    def _evaluate(self, episodes: int) -> Tensor:
        """Log whole episodes played by sampling and greedily; the returns of the latter."""
        returns = torch.empty(0)
        for kind, greedy in (("eval_sampled", False), ("eval", True)):
            returns, lengths, whole = self.play(episodes, greedy=greedy)
            terms = {
                f"{kind}/mean_reward": returns.mean().item(),
                f"{kind}/std_reward": returns.std(correction=0).item(),
                f"{kind}/ep_len": lengths.double().mean().item(),
                f"{kind}/unfinished": (~whole).double().mean().item(),
            }
            self._log_evaluation(terms)
        return returns

    def _log_evaluation(self, terms: Mapping[str, float]) -> None:
        fitting = self.trainer.state.fn == TrainerFn.FITTING
        self.log_dict(dict(terms), batch_size=1, logger=False if fitting else None)

    def _note_solution(self) -> None:
        returns, mean = self.collector.returns, self.collector.mean_return
        if self.solved_at is not None or self.reward_threshold is None or len(returns) < (returns.maxlen or 0):
            return
        if mean is not None and mean >= self.reward_threshold:
            self.solved_at = self.collector.env_steps

    def _log(self, terms: Mapping[str, Tensor], rollout: Rollout) -> None:
        collector = self.collector
        shown = {}
        if collector.mean_return is not None:
            shown["rollout/ep_rew_mean"] = collector.mean_return
            self.log_dict({"rollout/ep_len_mean": sum(collector.lengths) / len(collector.lengths)}, logger=False)
        self.log_dict(shown, prog_bar=True, logger=False)
        self.log_dict({**terms, **self._usage(rollout.action[rollout.valid])}, logger=False)

    def _usage(self, chosen: Tensor) -> dict[str, Tensor]:
        """How the choices (n, F) spread, one by one only where there are few: each scalar takes time to log."""
        if len(chosen) == 0:
            return {}
        share = shares(chosen, max(self.factors))
        usage = {"policy/action_perplexity": torch.special.entr(share).sum(-1).exp().mean()}
        if sum(self.factors) <= _MOST_SHARES:
            usage |= {f"policy/action_{f}_{k}": share[f, k] for f, n in enumerate(self.factors) for k in range(n)}
        return usage


def shares(chosen: Tensor, choices: int) -> Tensor:
    """The share (F, K) of each of K choices among n of every factor, (n, F).

    >>> shares(torch.tensor([[0, 2], [1, 2]]), choices=3)
    tensor([[0.5000, 0.5000, 0.0000],
            [0.0000, 0.0000, 1.0000]])
    """
    n, F = chosen.shape
    return torch.zeros(F, choices).scatter_add_(1, chosen.T, torch.ones(F, n)) / n


def log_prob_of(logits: Tensor, action: Tensor) -> Tensor:
    """Log pi(a), (...), of choices (..., F) for logits (..., F, K).

    >>> log_prob_of(torch.zeros(2, 4), torch.tensor([0, 3])).exp()
    tensor(0.0625)
    """
    return logits.log_softmax(-1).gather(-1, action.unsqueeze(-1)).sum((-2, -1))
