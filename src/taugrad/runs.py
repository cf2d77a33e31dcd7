"""Loading what a run left: its model and data from a checkpoint alone."""

from pathlib import Path
from typing import Any

from hydra.utils import get_class
from lightning import LightningDataModule

from taugrad import checkpoints
from taugrad.config import fit_to_signature, instantiate
from taugrad.errors import ConfigError


def load_run(
    run: Path, checkpoint: str | None = None, **changes: Any
) -> tuple[Any, LightningDataModule | None, dict[str, Any]]:
    """A run's model with its weights, its data, and the config that its checkpoint carries.

    Args:
        run: the run's directory; only `checkpoints/` is read.
        checkpoint: `best` or `last`; by default the one that the model's class reports, its `evaluated`.
        changes: arguments of the model to set otherwise than the run did.

    Raises:
        ConfigError: the directory holds no such checkpoint.
    """
    either = "last" if (run / "checkpoints" / "last.ckpt").is_file() else "best"
    content = _content(run, checkpoint or either)
    config = content["config"]
    fit_to_signature(get_class(config["model"]["_target_"]), changes, "model")
    model = instantiate(config["model"] | changes, recursive=False)
    if checkpoint is None and model.evaluated != either:
        content = _content(run, model.evaluated)
    model.load_state_dict(content["state_dict"])
    return model, config["data"] and instantiate(config["data"], recursive=False), config


def _content(run: Path, checkpoint: str) -> dict[str, Any]:
    path = run / "checkpoints" / f"{checkpoint}.ckpt"
    if not path.is_file():
        raise ConfigError(f"run must be a run's directory that holds checkpoints/{path.name}, got {run}")
    return checkpoints.load(path)
