"""Compiles the kernels once for this source, compiler and CPU, and keeps the result in a cache of the user's own.

The contract: the cache, `taugrad` in $XDG_CACHE_HOME or ~/.cache, is a directory that only its owner can write, or it
is not used. A library is compiled under a temporary name, synced and renamed, so that what is found under the final
name is whole, however many processes start at once. Where no cache can be had, the library lives in a temporary
directory that is gone once it is loaded.
"""

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import stat
import subprocess
import tempfile
from pathlib import Path

_SOURCE = Path(__file__).parent / "kernels.cpp"
# No -ffast-math: it would drop NaN and infinity, and linking with it changes the rounding mode of the whole process.
_FLAGS = ["-O2", "-std=c++17", "-fPIC", "-shared", "-fno-math-errno", "-fno-trapping-math"]
_TIMEOUT = 300  # seconds


class BuildError(RuntimeError):
    """The kernels cannot be compiled or loaded here; the message says why."""


def load() -> ctypes.CDLL:
    """The kernels' library, compiled if it is not in the cache.

    Raises:
        BuildError: there is no compiler, or it fails.
    """
    compiler = _compiler()
    name = f"kernels-{_key(compiler)}.so"
    try:
        directory = _private(_cache())
    except OSError:  # nowhere to keep it, or others can write there
        with tempfile.TemporaryDirectory() as directory:
            return _open(_compile(compiler, Path(directory) / name))
    library = directory / name
    return _open(library if library.exists() else _compile(compiler, library))


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "taugrad"


def _private(directory: Path) -> Path:
    """`directory`, made if need be, when it is a real one that nobody else can write.

    Raises:
        PermissionError: it is not.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = directory.lstat()
    if (
        not stat.S_ISDIR(status.st_mode)
        or status.st_uid != os.getuid()
        or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        or not os.access(directory, os.W_OK)
    ):
        raise PermissionError(f"{directory} is not a directory that only its owner can write")
    return directory


def _compiler() -> list[str]:
    command = shlex.split(os.environ.get("CXX") or "c++")
    if shutil.which(command[0]) is None:
        raise BuildError(f"there is no C++ compiler: {command[0]} is not on the PATH")
    return command


def _key(compiler: list[str]) -> str:
    digest = hashlib.sha256()
    for source in (_SOURCE, *sorted(_SOURCE.parent.glob("*.h"))):
        digest.update(source.read_bytes())
    digest.update(repr((compiler, _FLAGS)).encode())
    digest.update(_run([*compiler, "--version"]).encode())
    digest.update(_cpu().encode())
    return digest.hexdigest()[:32]


def _cpu() -> str:
    """What the compiler's -march=native depends on, as far as this system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine() + platform.processor()
    told = sorted({line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))})
    return "\n".join([platform.machine(), *told])


def _compile(compiler: list[str], library: Path) -> Path:
    descriptor, name = tempfile.mkstemp(dir=library.parent, suffix=".part")
    os.close(descriptor)
    try:
        command = [*compiler, *_FLAGS, str(_SOURCE), "-o", name]
        try:
            _run([*command, "-march=native"])
        except BuildError:  # some compilers do not know it for some CPUs
            _run(command)
        with Path(name).open("rb") as file:
            os.fsync(file.fileno())
        return Path(name).replace(library)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _run(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT, check=False)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildError(f"{command[0]} could not be run: {error}") from error
    if done.returncode:
        told = done.stderr.strip().splitlines()
        raise BuildError(f"{command[0]} failed: {told[0] if told else f'exit code {done.returncode}'}")
    return done.stdout


def _open(library: Path) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(str(library))
    except OSError as error:
        raise BuildError(f"the compiled kernels do not load: {error}") from error
