"""State that a checkpoint holds next to the task: the random states and the run's config."""

import random
from typing import Any

import numpy as np
import torch
from lightning import Callback, LightningModule, Trainer

from taugrad import __version__


class RandomStates(Callback):
    """Puts the states of all random generators into checkpoints, so that a resumed run repeats an uninterrupted one.

    Each of several processes draws numbers of its own, at the start and after a resume.
    """

    def __init__(self) -> None:
        self._loaded: dict[str, Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        """Return the states as plain values and tensors."""
        name, key, *rest = np.random.get_state()  # noqa: NPY002  # libraries do use the global one
        return {
            "python": random.getstate(),
            "numpy": [name, np.asarray(key).tolist(), *rest],
            "torch": torch.get_rng_state(),
            "accelerator": _accelerator().get_rng_state() if torch.accelerator.is_available() else None,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the states until training starts, as set-up draws numbers too."""
        self._loaded = state_dict

    def on_train_start(self, trainer: Trainer, *_: Any) -> None:
        """Restore the checkpoint's states, and give each of several processes another one."""
        if self._loaded is not None:
            random.setstate(self._loaded["python"])
            name, key, *rest = self._loaded["numpy"]
            np.random.set_state((name, np.array(key, dtype=np.uint32), *rest))  # noqa: NPY002
            torch.set_rng_state(self._loaded["torch"].cpu())
            if self._loaded["accelerator"] is not None and torch.accelerator.is_available():
                _accelerator().set_rng_state(self._loaded["accelerator"].cpu())
            self._loaded = None
        if trainer.world_size > 1:
            torch.manual_seed(int(torch.randint(2**62, ())) + trainer.global_rank)


class SaveConfig(Callback):
    """Puts the run's config and the version of taugrad into its checkpoints: a checkpoint alone can be evaluated."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the config, plain dicts, lists and scalars."""
        checkpoint["config"] = self.config
        checkpoint["versions"] = {"taugrad": __version__}


def _accelerator() -> Any:
    return torch.get_device_module(torch.accelerator.current_accelerator())
