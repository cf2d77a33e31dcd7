"""The commands as a user gives them, run in this process: what a shell starts, but for the seconds of imports.

Tests of a process itself (signals, kills, several processes, what is installed) start one, and so does one test of each
command.
"""

import contextlib
import io
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from hydra.core.hydra_config import HydraConfig
from lightning.pytorch.strategies.launchers.subprocess_script import _SubprocessScriptLauncher as Launcher

from taugrad import cli

SCRIPTS = Path(__file__).parents[2] / "scripts"


class Result(NamedTuple):
    """Result of a process, as `subprocess.run` returns it."""

    returncode: int
    stdout: str
    stderr: str


def run(script: str, *arguments: str, cwd: Path) -> Result:
    """`python scripts/<script> <arguments>` in the directory `cwd`."""
    return _run(getattr(cli, script.removesuffix(".py")), [SCRIPTS / script, *arguments], cwd)


def taugrad(*arguments: str, cwd: Path) -> Result:
    """`taugrad <arguments>` in the directory `cwd`."""
    return _run(cli.main, ["taugrad", *arguments], cwd)


def _run(command: Callable[[], object], words: list, cwd: Path) -> Result:
    out, err = io.StringIO(), io.StringIO()
    with _as_it_was() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        patch.chdir(cwd)
        patch.setattr(Launcher, "_call_children_scripts", _refuse)
        patch.setattr(sys, "argv", [str(word) for word in words])
        os.environ.update({"OMP_NUM_THREADS": "1", "COLUMNS": "200"})
        code = _exit_code(command)
    return Result(code, out.getvalue(), err.getvalue())


def _refuse(*_: object) -> None:
    """Starts no process of DDP: Lightning kills this one when another fails."""
    raise RuntimeError("a command of several processes needs one of its own: subprocess.run")


def _exit_code(command: Callable[[], object]) -> int:
    """Run a command; return its exit code, and write to stderr what the interpreter writes at its end."""
    try:
        command()
    except SystemExit as error:
        if error.code is None or isinstance(error.code, int):
            return error.code or 0
        sys.stderr.write(f"{error.code}\n")
        return 1
    except Exception:
        traceback.print_exc()
        return 1
    return 0


@contextlib.contextmanager
def _as_it_was() -> Iterator[pytest.MonkeyPatch]:
    """Restores what a command changes of its process, and shows warnings as the interpreter does."""
    environment, random, threads = dict(os.environ), torch.get_rng_state(), torch.get_num_threads()
    handlers, level, config = logging.root.handlers[:], logging.root.level, HydraConfig.instance().cfg
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("default")
        for category in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
            warnings.simplefilter("ignore", category)
        warnings.showwarning = _show
        try:
            yield patch
        finally:
            os.environ.clear()
            os.environ.update(environment)
            HydraConfig.instance().cfg = config
            torch.set_rng_state(random)
            torch.set_num_threads(threads)
            logging.root.handlers[:], logging.root.level = handlers, level


def _show(message, category, filename, lineno, file=None, line=None) -> None:
    sys.stderr.write(warnings.formatwarning(message, category, filename, lineno, line))


ROOT = Path(__file__).parents[2]


SHORT = [
    "trainer.max_steps=60",
    "trainer.check_val_every_n_epoch=null",
    "+trainer.val_check_interval=3",  # stacks of ten steps
    "+trainer.limit_val_batches=4",
    "+trainer.limit_test_batches=4",
]


SMALL = [
    "model=cat_vae",
    "model.encoder=[32]",
    "model.decoder=[32]",
    "model.latents=4",
    "model.nll_samples=5",
    *SHORT,
]
