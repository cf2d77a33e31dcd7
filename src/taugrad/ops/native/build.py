"""Compile the kernels once for this source, compiler and CPU, and keep them in a private cache.

The contract: the cache, `taugrad` in $XDG_CACHE_HOME or ~/.cache, is a directory that only its owner can write, or it
is not used. A library is compiled under a temporary name, synced and renamed, so that a file under the final name is
complete, however many processes start at once. Where there is no usable cache, the library is compiled in a temporary
directory, which is deleted once it is loaded.

`python -m taugrad.ops.native` adds the binding, a Python module by which torch's C++ autograd calls the kernels. Later
processes use it if it is in the cache.
"""

import ctypes
import hashlib
import importlib.machinery
import importlib.util
import os
import platform
import stat
import sysconfig
import tempfile
from contextlib import suppress
from pathlib import Path
from types import ModuleType

import torch

from taugrad.compiler import BuildError, find_compiler, run_compiler, run_for_this_cpu

_KERNELS = Path(__file__).parent / "kernels.cpp"
_BINDING = Path(__file__).parent / "binding.cpp"  # the kernels and their binding
# No -ffast-math: it would drop NaN and infinity, and linking with it changes the rounding mode of the whole process.
_STANDARD = "-std=c++17"
_FLAGS = ["-O3", "-fPIC", "-shared", "-fno-math-errno", "-fno-trapping-math"]
_WHAT = "the native kernels"


def load() -> tuple[ctypes.CDLL, ModuleType | None]:
    """Load the kernels' library, compiled unless it is in the cache, and the binding if it is there.

    Raises:
        BuildError: there is no compiler, or it fails.
    """
    compiler = find_compiler(_WHAT)
    try:
        directory = _private(_cache())
    except (OSError, RuntimeError):  # there is no home, or others can write there
        with tempfile.TemporaryDirectory() as directory:
            return _open(_compile(compiler, _KERNELS, Path(directory) / "kernels.so")), None
    kernels, binding = _libraries(compiler, directory)
    if binding.exists():
        with suppress(BuildError):  # where it is damaged, the kernels alone are enough
            return _open(binding), _import(binding)
    if kernels.exists():
        with suppress(BuildError):  # where it is damaged, it is compiled again
            return _open(kernels), None
    return _open(_compile(compiler, _KERNELS, kernels)), None


def build_binding() -> Path:
    """Compile the binding into the cache unless it is there, and return its path.

    Raises:
        BuildError: there is no compiler, or it fails.
        PermissionError: the cache is not a directory that only its owner can write.
    """
    compiler = find_compiler(_WHAT)
    _, binding = _libraries(compiler, _private(_cache()))
    return binding if binding.exists() else _compile(compiler, _BINDING, binding)


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "taugrad"


def _private(directory: Path) -> Path:
    """Return `directory`, created if necessary, when it is no link and nobody else can write it.

    Raises:
        PermissionError: it is not.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = directory.lstat()
    if (
        not stat.S_ISDIR(status.st_mode)
        or not hasattr(os, "getuid")  # a system with other permissions
        or status.st_uid != os.getuid()
        or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        or not os.access(directory, os.W_OK)
    ):
        raise PermissionError(f"{directory} is not a directory that only its owner can write")
    return directory


def _libraries(compiler: list[str], directory: Path) -> tuple[Path, Path]:
    """Return the paths of the kernels and of the binding. Their names hash all that their contents depend on."""
    digest = hashlib.sha256()
    for file in sorted(_KERNELS.parent.glob("*.[ch]*")):
        digest.update(file.read_bytes())
    digest.update(repr((compiler, _FLAGS)).encode())
    digest.update(run_compiler([*compiler, "--version"]).encode())
    digest.update(_cpu().encode())
    kernels = directory / f"kernels-{digest.hexdigest()[:32]}.so"
    digest.update(repr((torch.__version__, sysconfig.get_config_var("SOABI"))).encode())
    return kernels, directory / f"binding-{digest.hexdigest()[:32]}.so"


def _cpu() -> str:
    """Describe the CPU, as far as the system shows it: the compiler's -march=native depends on it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.machine() + platform.processor()
    facts = sorted({line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))})
    return "\n".join([platform.machine(), *facts])


def _compile(compiler: list[str], source: Path, library: Path) -> Path:
    try:
        descriptor, name = tempfile.mkstemp(dir=library.parent, suffix=".part")
    except OSError as error:
        raise BuildError(f"the kernels cannot be written to {library.parent}: {error}") from error
    os.close(descriptor)
    try:
        command = [
            *compiler,
            *_FLAGS,
            str(source),
            "-o",
            name,
            *(_torch_flags() if source is _BINDING else [_STANDARD]),
        ]
        run_for_this_cpu(command)
        with Path(name).open("rb") as file:
            os.fsync(file.fileno())
        return Path(name).replace(library)
    except OSError as error:
        Path(name).unlink(missing_ok=True)
        raise BuildError(f"the kernels cannot be written to {library.parent}: {error}") from error
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _torch_flags() -> list[str]:
    root = Path(torch.__file__).parent
    return [
        "-std=c++20",
        f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}",
        f"-I{root / 'include'}",
        f"-I{root / 'include' / 'torch' / 'csrc' / 'api' / 'include'}",
        f"-I{sysconfig.get_path('include')}",
        f"-L{root / 'lib'}",
        "-ltorch_python",
        "-ltorch_cpu",
        "-lc10",
    ]


def _open(library: Path) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(str(library))
    except OSError as error:
        raise BuildError(f"the compiled kernels do not load: {error}") from error


def _import(binding: Path) -> ModuleType:
    loader = importlib.machinery.ExtensionFileLoader("taugrad_binding", str(binding))
    spec = importlib.util.spec_from_loader(loader.name, loader)
    try:
        module = importlib.util.module_from_spec(spec)  # pyright: ignore[reportArgumentType]
        loader.exec_module(module)
    except ImportError as error:
        raise BuildError(f"the binding does not load: {error}") from error
    return module
