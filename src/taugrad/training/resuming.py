"""Resuming a run: the command that does it, the checkpoint, and the best checkpoints of before."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException
from lightning import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn

from taugrad.config import Config, in_sweep
from taugrad.errors import CheckpointError, ConfigError
from taugrad.files import user_path
from taugrad.training import checkpoints
from taugrad.training.task import Task


def assigned(key: str, value: str) -> str:
    """Return the override that sets `key` to a text, quoted where Hydra would not read that text otherwise.

    >>> print(assigned("hydra.run.dir", "outputs/a"), assigned("hydra.run.dir", "lr=1 (new)"))
    hydra.run.dir=outputs/a hydra.run.dir='lr=1 (new)'
    """
    plain = f"{key}={value}"
    try:
        if "${" not in value and OverridesParser.create().parse_override(plain).value() == value:
            return plain
    except HydraException:
        pass
    literal = re.sub(r"(\\*)\$\{", r"\1\1\\${", value)  # no interpolation
    return f"{key}={QuotedString(literal, Quote.single).with_quotes()}"


def command(key: str, directory: Path, arguments: list[str], ckpt_path: str | None = "last") -> str:
    """Return the command line of this process, for a shell, that resumes the run or the sweep in `directory`.

    `key` of Hydra's config holds the directory; `arguments` are those of the process, program first. A `ckpt_path` of
    None keeps the one that was given.
    """
    program, *given = arguments
    name = Path(program).name
    words = ["python", program] if name.endswith(".py") else ["taugrad", "train"] if "taugrad" in name else [program]
    replaced = (f"{key}=", "ckpt_path=") if ckpt_path is not None else (f"{key}=",)
    words += [*(w for w in given if not w.lstrip("+").startswith(replaced)), assigned(key, str(directory))]
    words += [f"ckpt_path={ckpt_path}"] if ckpt_path is not None else []
    return subprocess.list2cmdline(words) if os.name == "nt" else shlex.join(words)


def advice(run_dir: Path) -> str:
    """Return the sentence that says how to resume a run that was stopped."""
    if HydraConfig.initialized() and not in_sweep():
        output = Path(HydraConfig.get().runtime.output_dir)
        return f"to go on: {command('hydra.run.dir', output, sys.argv)}"
    last = run_dir / "checkpoints" / "last.ckpt"
    if not last.is_file():
        return "no checkpoint was saved yet"
    return f"saved: {last}" if in_sweep() else f"to go on: ckpt_path={last}"  # a sweep goes on with all its jobs


class BestComesAlong(Callback):
    """Keeps the best checkpoints of a resumed run, also in another directory than the one in which they were saved.

    Lightning's `ModelCheckpoint` forgets them there, and a worse one would pass for the best. They are searched where
    the run now saves, next to the checkpoint it is resumed from, and where they were saved. Found elsewhere, they are
    copied, and so is the checkpoint it is resumed from, to `last`: the directory holds all of the run from its start.
    `say` prints a sentence about a best checkpoint that is missing.
    """

    def __init__(self, last: Path, say: Callable[[str], Any]) -> None:
        self.last, self.say = last, say

    def on_load_checkpoint(self, trainer: Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Rewrite the checkpoint's record of the best ones before Lightning reads it."""
        if trainer.state.fn != TrainerFn.FITTING or not trainer.checkpoint_callbacks:
            return
        loaded = Path(str(trainer.ckpt_path))
        states = checkpoint["callbacks"]
        for callback in trainer.checkpoint_callbacks:
            if isinstance(callback, ModelCheckpoint) and callback.state_key in states:
                state = states[callback.state_key]
                found = self._found(callback, state, loaded, checkpoint["global_step"])
                if trainer.is_global_zero:
                    for path, (source, _) in found.items():
                        _copy(source, path)
                scores = {path: score for path, (_, score) in found.items()}
                states[callback.state_key] = _state(callback, state, scores)
        if trainer.is_global_zero and not self.last.exists():
            _copy(loaded, self.last)  # after the best ones: it is the newest
        trainer.strategy.barrier()

    def _found(
        self, callback: ModelCheckpoint, state: Mapping[str, Any], loaded: Path, step: int
    ) -> dict[Path, tuple[Path, Any]]:
        """Return the run's best checkpoints by the paths they belong at: the paths they are at, and their scores."""
        here, there = Path(str(callback.dirpath)), str(state["dirpath"])
        found = {}
        for recorded, score in state["best_k_models"].items():
            name = _within(recorded, there)
            for directory in (here, loaded.parent, loaded.parent / "checkpoints", Path(there)):
                best = _score(directory / name, callback.state_key, score)
                # The original run may have gone on: a best checkpoint of a later step is not this run's.
                if best is not None and (directory == here or best[0] <= step):
                    found[here / name] = directory / name, best[1]
                    break
            else:
                self.say(
                    f"the best checkpoint until now, with {callback.monitor} {float(score):.6g}, is not beside "
                    f"{loaded}, nor at {recorded}: the best is counted from here on"
                )
        return found


def _state(callback: ModelCheckpoint, state: Mapping[str, Any], scores: Mapping[Path, Any]) -> dict[str, Any]:
    """Return a callback's state with the best checkpoints that were found, in the directory of the callback."""
    here, there = Path(str(callback.dirpath)), str(state["dirpath"])
    moved = dict(state) | {"dirpath": callback.dirpath, "best_k_models": {str(p): s for p, s in scores.items()}}
    last = here / _within(state["last_model_path"], there) if state["last_model_path"] else None
    moved["last_model_path"] = str(last) if last is not None and last.is_file() else ""
    if callback.monitor is None:  # it keeps the newest
        kept = state["best_model_path"]
        return moved | {"best_model_path": str(here / _within(kept, there)) if kept else ""}
    best, worst = (min, max) if callback.mode == "min" else (max, min)
    if not scores:
        fresh = {"best_model_path": "", "best_model_score": None, "kth_best_model_path": ""}
        return moved | fresh | {"kth_value": callback.kth_value}
    first, kth = best(scores, key=scores.__getitem__), worst(scores, key=scores.__getitem__)
    moved |= {"best_model_path": str(first), "best_model_score": scores[first]}
    full = len(scores) == callback.save_top_k
    return moved | {"kth_best_model_path": str(kth) if full else "", "kth_value": scores[kth]}


def _score(path: Path, state_key: str, recorded: Any) -> tuple[int, Any] | None:
    """Return step and score of a checkpoint that can be read; the score in the file counts, if there is one."""
    if not path.is_file():
        return None
    try:
        content = checkpoints.load(path)
    except CheckpointError:
        return None
    own = content.get("callbacks", {}).get(state_key, {}).get("current_score")
    return content["global_step"], recorded if own is None else own


def _within(path: str, directory: str) -> str:
    """Return a path relative to the directory that it lies in, else its last part."""
    inner = path.removeprefix(directory)
    return re.split(r"[/\\]", path)[-1] if inner == path else inner.lstrip("/\\")


def _copy(source: Path, path: Path) -> None:
    if source.resolve() == path.resolve():
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        checkpoints.write_whole(path, source.read_bytes())
    except OSError as error:
        raise CheckpointError(f"{path} cannot be written: {error.strerror}") from error


def checkpoint(run_dir: Path, ckpt_path: str | None, say: Callable[[str], Any]) -> Path | None:
    """Return the checkpoint to resume from: `ckpt_path`, or for `last` the newest whole one of the run's directory."""
    if ckpt_path is None:
        return None
    if ckpt_path != "last":
        path = user_path(ckpt_path)
        if not path.is_file():
            raise ConfigError(f"ckpt_path must be a checkpoint file, or last, got {ckpt_path}")
        return path
    given = HydraConfig.get().overrides if HydraConfig.initialized() else None
    keys = ("run_dir=", "hydra.run.dir=", "hydra.sweep.dir=")  # else Hydra named the directory by the clock
    if given is not None and not any(override.lstrip("+").startswith(keys) for override in (*given.hydra, *given.task)):
        raise ConfigError("ckpt_path=last goes on with a run: give its directory as hydra.run.dir=...")
    newest, damaged = checkpoints.newest(run_dir)
    for error in damaged:
        say(str(error))
    if newest is None and damaged:
        raise ConfigError(f"ckpt_path=last: no checkpoint in {run_dir} is whole")
    say(f"going on from {newest}" if newest else f"{run_dir} holds no checkpoint yet: from the beginning")
    return newest


def check_resume(checkpoint: Path, config: Config, task: Task, set_as: Callable[[str], str]) -> None:
    """Refuse arguments in the task's `config` that differ from the checkpoint's, and are not the task's `changeable`.

    A checkpoint's weights and rollouts have fixed sizes. The error names the key that a user sets, by `set_as`.
    """
    saved = checkpoints.load(checkpoint).get("config", {}).get("task")
    if saved is None:
        return
    there, here = _flat(saved), _flat(config)
    changeable = tuple(f"{name}." for name in task.changeable)
    for key in sorted(there.keys() | here.keys()):
        old, new = there.get(key), here.get(key)
        if old != new and not f"{key}.".startswith(changeable):
            raise ConfigError(f"{set_as(key)} cannot change on resume: the checkpoint has {old}, got {new}")


def _flat(node: Any, key: str = "") -> Config:
    """Return the leaves of nested dicts by their dotted keys."""
    if not isinstance(node, dict):
        return {key: node}
    return {name: leaf for k, child in node.items() for name, leaf in _flat(child, f"{key}.{k}" if key else k).items()}
