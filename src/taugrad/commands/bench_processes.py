"""Processes that `taugrad bench` measures in, and next to."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
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
    here = {name: os.environ.pop(name) for name in WAITING if name in os.environ}
    with ProcessPoolExecutor(1, get_context("spawn")) as child:  # a spawned process loads torch anew
        try:
            os.environ.update(waiting)
            child.submit(os.getpid).result()  # it has started
        finally:
            for name in waiting:
                del os.environ[name]
            os.environ.update(here)
        yield lambda function: child.submit(function).result()


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
