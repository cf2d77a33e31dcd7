"""Interface of a task: a Lightning module that commands train, evaluate and export."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, cast

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

from taugrad.errors import ConfigError
from taugrad.schedules import Schedule, check_schedule

MakeOptimizer = Callable[[Iterable[Parameter]], Optimizer]  # such as partial(torch.optim.Adam, lr=1e-3)


class Task(LightningModule, ABC):
    """Interface that commands and callbacks use of any task; those of images and policies add what only they have."""

    evaluated: ClassVar[str]  # checkpoint that a finished run reports on, `best` or `last`
    speed: ClassVar[str]  # tag of the training speed

    charts: dict[str, tuple[str, ...]]  # tags side by side in TensorBoard
    metrics: tuple[str, ...]  # metrics that a run reports and that may be an objective
    changeable: tuple[str, ...]  # arguments of the task that may change on resume, by their dotted keys
    input_size: tuple[int, ...]  # size of one input of `greedy`
    input_dtype: torch.dtype = torch.float32

    def __init__(self, optimizer: MakeOptimizer, lr_factor: Schedule) -> None:
        super().__init__()
        if not callable(optimizer):
            raise TypeError(
                "optimizer must be a function from parameters to an optimizer, such as "
                f"partial(torch.optim.Adam, lr=1e-3), got {optimizer!r}"
            )
        check_schedule("lr_factor", lr_factor)
        self.automatic_optimization = False  # a training step makes several optimizer steps
        self.make_optimizer, self.lr_factor = optimizer, lr_factor

    @abstractmethod
    def clock(self) -> tuple[int, int]:
        """Return the steps done on the task's own axis, and their total (-1: no end)."""

    @abstractmethod
    def results(self) -> dict[str, Any]:
        """Return what a finished run reports next to its metrics."""

    def of_best(self) -> dict[str, float]:
        """Return what a run that reports its last weights adds about its best ones, which are loaded now."""
        return {}

    @abstractmethod
    def greedy(self, x: Tensor) -> Tensor:
        """Return the most probable choices for inputs (batch, ...), without sampling: an export computes this."""

    def configure_optimizers(self) -> Optimizer:
        """Make the optimizer of all parameters; ConfigError if it refuses its arguments."""
        try:
            return self.make_optimizer(self.parameters())
        except (TypeError, ValueError) as error:
            raise ConfigError(f"optimizer: {error}") from error

    def log_evaluation(self, terms: Mapping[str, Tensor | float], batch_size: int | None = None) -> None:
        """Log the terms of an evaluation; during a fit a callback writes them to the loggers."""
        fitting = self.trainer.state.fn == TrainerFn.FITTING
        self.log_dict(dict(terms), batch_size=batch_size, logger=False if fitting else None, sync_dist=True)


def scale_lr(optimizer: Optimizer, factor: float) -> None:
    """Set the learning rate to its initial value times a factor."""
    for group in optimizer.param_groups:
        group["lr"] = optimizer.defaults["lr"] * factor


def task_of(trainer: Trainer) -> Task:
    """Return the task that is trained or evaluated."""
    return cast(Task, trainer.lightning_module)


def is_kept(trainer: Trainer) -> bool:
    """Return True if this training step is to be logged; logging costs more than a small model's whole step.

    The last step is logged, so that a training shorter than `log_every_n_steps` has logged something.
    """
    every: int = trainer.log_every_n_steps  # pyright: ignore[reportAttributeAccessIssue]
    if every == 0:
        return False
    done, total = task_of(trainer).clock()
    return (trainer.fit_loop.epoch_loop.total_batch_idx + 1) % every == 0 or 0 < total <= done
