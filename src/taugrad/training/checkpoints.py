"""Checkpoint files that are whole or absent: written under another name, synced, renamed; checked when read.

A file is the zip archive that `torch.save` writes, with the SHA-256 of its content as the archive's comment: any other
reader can open it too. It holds plain values and tensors, and is loaded with `weights_only=True`: a pickle in it is
refused, and nothing in it is run.
"""

import hashlib
import io
import os
import pickle
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io import CheckpointIO

from taugrad.errors import CheckpointError

_END = b"PK\x05\x06"  # of an archive: 22 bytes, of which the last two are the length of a comment behind them
_DIGEST = 64  # hexadecimal digits of SHA-256


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that `path` is always the old one or the new one, also after a crash of the system.

    Raises:
        OSError: it cannot be written; the old one is as it was.
    """
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
    """Write a checkpoint with its checksum.

    Raises:
        CheckpointError: it cannot be written; the one that was there is as it was.
    """
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
        error = _fault(path)
        if error is None:
            return path, damaged
        damaged.append(error)
    return None, damaged


def _fault(path: Path) -> CheckpointError | None:
    try:
        _read(path)
    except CheckpointError as error:
        return error
    return None


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
