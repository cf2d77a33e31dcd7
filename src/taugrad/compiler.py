"""The user's C++ compiler, `$CXX` or `c++`, which compiles C too; each failure is one sentence."""

import os
import platform
import shlex
import shutil
import subprocess
from typing import Any

from taugrad.errors import TaugradError

_TIMEOUT = 300  # seconds
_TEXT: Any = {"text": True, "encoding": "utf-8", "errors": "replace"}


class BuildError(TaugradError):
    """Code that cannot be compiled or loaded here; the message says why."""


def find_compiler(what: str) -> list[str]:
    """Return the first words of the command that compiles `what`.

    Raises:
        BuildError: there is no compiler.
    """
    if platform.system() == "Windows":
        raise BuildError(f"{what} are not built on Windows")
    chosen = os.environ.get("CXX") or "c++"
    try:
        command = shlex.split(chosen) or [chosen]
    except ValueError:
        command = [chosen]
    if shutil.which(command[0]) is None:
        raise BuildError(f"there is no C++ compiler: {command[0]} is not on the PATH")
    return command


def run_compiler(command: list[str]) -> str:
    """Run a command of the compiler and return what it prints.

    Raises:
        BuildError: it fails, or does not end.
    """
    try:
        done = subprocess.run(command, capture_output=True, timeout=_TIMEOUT, check=False, **_TEXT)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildError(f"{command[0]} could not be run: {error}") from error
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if "error" in line]
        raise BuildError(f"{command[0]} failed: {errors[0].strip() if errors else f'exit code {done.returncode}'}")
    return done.stdout


def run_for_this_cpu(command: list[str]) -> None:
    """Run a command of the compiler with the flag for this CPU, or without it where the compiler refuses it.

    Raises:
        BuildError: it fails without it too.
    """
    try:
        run_compiler([*command, "-march=native"])
    except BuildError:  # some compilers do not support it for some CPUs
        run_compiler(command)
