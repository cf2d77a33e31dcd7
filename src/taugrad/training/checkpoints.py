"""Checkpoint files that are whole or absent: written under another name, synced, renamed; checked when read.

A file is the zip archive that `torch.save` writes, with the SHA-256 of its content as the archive's comment: any other
reader can open it too. It holds plain values and tensors, and is loaded with `weights_only=True`: a pickle in it is
refused, and nothing in it is run. Two callbacks add what a checkpoint holds next to the task.
"""

import hashlib
import io
import os
import pickle
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import Callback, LightningModule, Trainer
from lightning.fabric.plugins.io import CheckpointIO

from taugrad import __version__
from taugrad.errors import CheckpointError

_END = b"PK\x05\x06"  # end of an archive: 22 bytes, the last two of them the length of a comment that follows
_DIGEST = 64  # hexadecimal digits of SHA-256


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that `path` is always the old one or the new one, also after an OSError or a system's crash."""
    part = path.with_name(f".{path.name}.part")
    try:
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    if hasattr(os, "O_DIRECTORY"):  # where a directory can be synced, and with it the new name
        directory = os.open(path.parent, os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


def save(checkpoint: dict[str, Any], path: Path) -> None:
    """Write a checkpoint with its checksum; CheckpointError if it cannot be, and the old one is as it was."""
    buffer = io.BytesIO()
    torch.save(checkpoint, buffer)
    archive = buffer.getvalue()[:-2]  # without the length of its comment, which is none
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, archive + _DIGEST.to_bytes(2, "little") + hashlib.sha256(archive).hexdigest().encode())
    except OSError as error:
        raise CheckpointError(f"{path} cannot be written: {error.strerror}; what was there is as it was") from error


def load(path: Path) -> dict[str, Any]:
    """Return a checkpoint's content on the CPU.

    Raises:
        CheckpointError: it cannot be read, is damaged, or holds what is no plain value; the message names the newest
            whole one next to it.
    """
    try:
        return _read(path)
    except CheckpointError as error:
        other, _ = newest(path.parent)
        if other is None:
            raise
        raise CheckpointError(f"{error}; {other} is whole, of step {_read(other).get('global_step')}") from error


def newest(directory: Path) -> tuple[Path | None, list[CheckpointError]]:
    """Return the newest whole checkpoint below a directory, and the errors of the damaged ones that are newer.

    The best one counts as the oldest: in a copied directory the times are those of the copying, in any order.
    """
    damaged = []
    by_time = sorted(directory.rglob("*.ckpt"), key=lambda path: path.stat().st_mtime_ns, reverse=True)
    for path in sorted(by_time, key=lambda path: path.name == "best.ckpt"):
        try:
            _read(path)
        except CheckpointError as error:  # noqa: PERF203  # few files
            damaged.append(error)
        else:
            return path, damaged
    return None, damaged


def _read(path: Path) -> dict[str, Any]:
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    archive, end, digest = raw[: -2 - _DIGEST], raw[-2 - _DIGEST - len(_END) - 16 :], raw[-_DIGEST:]
    if not end.startswith(_END):
        raise CheckpointError(f"{path} is truncated or no checkpoint of taugrad: its checksum is missing")
    if hashlib.sha256(archive).hexdigest().encode() != digest:
        raise CheckpointError(f"{path} is damaged: its content does not have the SHA-256 that it was written with")
    try:
        return torch.load(io.BytesIO(raw), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError) as error:
        raise CheckpointError(f"{path} holds more than plain values and tensors, and was not loaded") from error


class WholeCheckpoints(CheckpointIO):
    """Plugin of a `lightning.Trainer` that writes and reads checkpoints by the functions above."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write a checkpoint."""
        save(checkpoint, Path(path))

    def load_checkpoint(self, path: str | Path, *_: Any, **__: Any) -> dict[str, Any]:
        """Read a checkpoint to the CPU, without running anything in it; Lightning moves the values."""
        return load(Path(path))

    def remove_checkpoint(self, path: str | Path) -> None:
        """Remove a checkpoint."""
        Path(path).unlink(missing_ok=True)


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
            "accelerator": torch.get_device_module().get_rng_state() if torch.accelerator.is_available() else None,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the states until training starts, as set-up draws numbers too."""
        self._loaded = state_dict

    def on_train_start(self, trainer: Trainer, *_: Any) -> None:
        """Restore the checkpoint's states, and give each of several processes another one."""
        if (states := self._loaded) is not None:
            random.setstate(states["python"])
            name, key, *rest = states["numpy"]
            np.random.set_state((name, np.array(key, dtype=np.uint32), *rest))  # noqa: NPY002
            torch.set_rng_state(states["torch"].cpu())
            if states["accelerator"] is not None and torch.accelerator.is_available():
                torch.get_device_module().set_rng_state(states["accelerator"].cpu())
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
