"""Waiting of OpenMP's threads for each other: commands let them sleep, and the library leaves it alone.

The first test looks at the moment in which a command first asks for torch; the second asks the OpenMP library itself.
"""

import ctypes
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from taugrad import cli
from taugrad.ops.native import kernels
from taugrad.threads import WAITING, wait_passively

# Runs every command up to its first import of torch, in a process where that import fails; prints what was set by then.
UP_TO_TORCH = """
import os, sys
import taugrad, taugrad.cli
assert not {*taugrad.threads.WAITING} & os.environ.keys(), "the library set it"

class NoTorch:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            seen.append(os.environ.get("OMP_WAIT_POLICY"))
            raise ImportError("no torch here")

sys.meta_path.insert(0, NoTorch())
for name, command in taugrad.cli._COMMANDS.items():
    seen = []
    os.environ.pop("OMP_WAIT_POLICY", None)
    sys.argv = ["taugrad", *{"compare": ["."], "bench": ["op"]}.get(name, [])]
    try:
        command()
    except (ImportError, SystemExit):
        pass
    print(name, seen[0])
"""


def start(*command, cwd, **environment) -> subprocess.Popen:
    full = {name: value for name, value in os.environ.items() if name not in WAITING} | environment
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen([sys.executable, *command], cwd=cwd, env=full | {"OMP_NUM_THREADS": "1"}, **pipes)


def test_every_command_lets_threads_sleep_before_it_loads_torch_and_importing_taugrad_does_not(tmp_path):
    lines = start("-c", UP_TO_TORCH, cwd=tmp_path).communicate()[0].splitlines()
    # The benchmarks measure what a program sees that sets nothing.
    expected = [f"{name} {None if name == 'bench' else 'passive'}" for name in cli._COMMANDS]
    assert [line for line in lines if line.endswith((" passive", " None"))] == expected, lines


@pytest.mark.system
@pytest.mark.skipif(sys.platform != "linux", reason="asks GNU's OpenMP library")
def test_openmp_knows_it_when_a_command_loads_torch_and_a_users_value_wins(tmp_path):
    # What every command does first, as the test above shows.
    command, asked = "from taugrad.threads import wait_passively; wait_passively(); import torch", "verbose"
    processes = [
        start("-c", command, cwd=tmp_path, OMP_DISPLAY_ENV=asked, **of_the_user)
        for of_the_user in ({}, {"GOMP_SPINCOUNT": "12"})
    ]
    shown = [process.communicate()[0] for process in processes]
    assert [re.findall("GOMP_SPINCOUNT = '(.*)'", text) for text in shown] == [["0"], ["12"]], shown


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, "passive"),
        ({"KMP_BLOCKTIME": "5"}, "passive"),  # which the library that reads it puts first
        ({"OMP_WAIT_POLICY": "active"}, "active"),
        ({"GOMP_SPINCOUNT": "12"}, None),
        ({"KMP_LIBRARY": "turnaround"}, None),
    ],
)
def test_what_the_user_said_of_waiting_threads_holds(monkeypatch, given, expected):
    environment = dict(given)
    with monkeypatch.context() as patch:
        patch.setattr(os, "environ", environment)
        patch.delitem(sys.modules, "torch")
        wait_passively()
    assert environment == given | ({"OMP_WAIT_POLICY": expected} if expected else {})


def test_where_torch_is_loaded_already_nothing_is_set(monkeypatch):
    for name in WAITING:
        monkeypatch.delenv(name, raising=False)
    wait_passively()
    assert not any(name in os.environ for name in WAITING)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the kernels use one thread")
def test_the_kernels_share_torchs_own_pool_and_so_wait_as_it_does():
    torchs = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so")).GOMP_parallel
    assert kernels._parallel() == ctypes.cast(torchs, ctypes.c_void_p).value
