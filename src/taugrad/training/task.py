"""What the training steps of all tasks need."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from lightning import Trainer
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

from taugrad.config import instantiate
from taugrad.errors import ConfigError, NonFiniteLossError


def optimizer_over(parameters: Iterable[Parameter], config: Mapping[str, Any]) -> Optimizer:
    """The optimizer of a partial config.

    Raises:
        ConfigError: it refuses its arguments.
    """
    try:
        return instantiate(config)(parameters)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"optimizer: {error}") from error


def is_kept(trainer: Trainer) -> bool:
    """Whether what this training step logs is kept; logging costs more than a small model's whole step.

    The last step's is, so that a training shorter than `log_every_n_steps` has logged something.
    """
    every: int = trainer.log_every_n_steps  # pyright: ignore[reportAttributeAccessIssue]
    if every == 0:
        return False
    done, total = trainer.lightning_module.clock()  # pyright: ignore[reportCallIssue]
    return (trainer.fit_loop.epoch_loop.total_batch_idx + 1) % every == 0 or 0 < total <= done


def require_finite(term: str, value: Tensor, step: int, tau: float | None = None) -> None:
    """Raise when a term of the loss is NaN or infinite, naming it.

    Raises:
        NonFiniteLossError: it is.

    >>> require_finite("KL", torch.tensor(1.0), step=0)
    """
    if not torch.isfinite(value):
        at, help_by = ("", "") if tau is None else (f" (tau = {tau:.4g})", " or a higher tau")
        raise NonFiniteLossError(
            f"the {term} term of the loss is {value.item()} at step {step}{at}: a lower learning rate{help_by} "
            "usually helps"
        )
