"""Loading what a run left: its model and data from a checkpoint alone."""

from pathlib import Path
from typing import Any

import torch
from lightning import LightningDataModule

from taugrad.config import instantiate
from taugrad.errors import ConfigError


def load_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint's content, plain values and tensors, loaded with `weights_only=True`."""
    return torch.load(path, map_location="cpu", weights_only=True)


def load_run(run: Path, checkpoint: str = "best", **changes: Any) -> tuple[Any, LightningDataModule, dict[str, Any]]:
    """A run's model with its weights, its data, and the config that its checkpoint carries.

    Args:
        run: the run's directory; only `checkpoints/` is read.
        checkpoint: `best` or `last`.
        changes: arguments of the model to set otherwise than the run did.

    Raises:
        ConfigError: the directory holds no such checkpoint.
    """
    path = run / "checkpoints" / f"{checkpoint}.ckpt"
    if not path.is_file():
        raise ConfigError(f"run must be a run's directory that holds checkpoints/{path.name}, got {run}")
    content = load_checkpoint(path)
    config = content["config"]
    model = instantiate(config["model"] | changes, recursive=False)
    model.load_state_dict(content["state_dict"])
    return model, instantiate(config["data"], recursive=False), config
