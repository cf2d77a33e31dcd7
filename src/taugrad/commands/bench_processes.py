"""Processes that `taugrad bench` measures in, and next to; nothing here loads torch before they start."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

from taugrad.threads import WAITING

_COMPUTE = """
import os, torch
torch.set_num_threads(1)
x, parent = torch.ones(500, 500), os.getppid()
print(flush=True)
while os.getppid() == parent:
    x @ x
"""


@contextmanager
def process(waiting: dict[str, str]) -> Iterator[Callable[[Callable[[], Any]], Any]]:
    """Start a process where OpenMP's threads wait as these variables say; yield a function that calls others there."""
    context = get_context("spawn")  # a spawned process loads torch anew
    ours, theirs = context.Pipe()
    child = context.Process(target=_serve, args=(theirs,), daemon=True)
    here = dict(os.environ)
    for name in WAITING:
        os.environ.pop(name, None)
    os.environ.update(waiting)
    try:
        child.start()
    finally:
        for name in waiting:
            del os.environ[name]
        os.environ.update(here)
    theirs.close()

    def call(function: Callable[[], Any]) -> Any:
        ours.send(function)
        try:
            return ours.recv()
        except EOFError:
            raise RuntimeError("the process that measures has ended") from None

    try:
        yield call
    finally:
        child.kill()


def _serve(calls: Connection) -> None:
    while True:
        try:
            function = calls.recv()
        except EOFError:  # the parent has ended
            return
        calls.send(function())


@contextmanager
def busy_process() -> Iterator[None]:
    """Let another process compute on one thread meanwhile, as somebody else's run would."""
    command = [sys.executable, "-c", _COMPUTE]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as computing:  # noqa: S603
        if computing.stdout is None or not computing.stdout.readline():  # it writes a line when it begins
            raise RuntimeError("the busy process did not start")
        try:
            yield
        finally:
            computing.kill()
