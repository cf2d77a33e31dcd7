import ctypes
import json
import logging
import os
import platform
import runpy
import shlex
import shutil
import stat
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from helpers.oracles import textbook_softmax

from taugrad import compiler as compiling
from taugrad.compiler import BuildError
from taugrad.ops.gumbel import gumbel_argmax, gumbel_softmax
from taugrad.ops.native import build, kernels

pytestmark = pytest.mark.system

SOURCES = Path(build.__file__).parent

# A compiler that logs its arguments, and then does what `body` says: $out is what it has to write.
COMPILER = """#!/bin/sh
echo "$@" >> {log}
case "$*" in *--version*) echo compiler 1; exit;; esac
arguments="$*"
while [ "$1" != -o ]; do shift; done
out=$2
{body}
"""


def forget() -> None:
    """Clear what a process decides once."""
    kernels._kernels.cache_clear()
    kernels._binding.cache_clear()


@pytest.fixture(scope="module")
def library(binding) -> Path:
    """The kernels as the compiler made them, with the binding, to be copied by compilers that need no time."""
    return build.build_binding()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The cache of this test, not yet there, for a process that knows nothing yet."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("TAUGRAD_BACKEND", raising=False)
    forget()
    yield tmp_path / "cache" / "taugrad"
    forget()


class Compiler:
    """A shell script in the compiler's place."""

    def __init__(self, directory: Path, library: Path):
        self.path, self.log, self.library = directory / "compiler", directory / "log", library
        self.copies()

    def does(self, body: str) -> None:
        self.path.write_text(COMPILER.format(log=self.log, body=body))
        self.path.chmod(0o755)

    def copies(self) -> None:
        self.does(f'cat {self.library} > "$out"')

    def writes_half_and(self, then: str) -> None:
        self.does(f'head -c 40000 {self.library} > "$out"\n{then}')

    def compilations(self) -> list[str]:
        told = self.log.read_text().splitlines() if self.log.exists() else []
        return [line for line in told if "--version" not in line]


@pytest.fixture
def compiler(tmp_path, library, monkeypatch) -> Compiler:
    monkeypatch.setenv("CXX", str(tmp_path / "compiler"))
    return Compiler(tmp_path, library)


def files(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def noise() -> list[float]:
    return kernels.noise(torch.empty(100), torch.tensor(7)).tolist()


@pytest.fixture(scope="module")
def expected(binding) -> list[float]:
    return noise()


def is_mapped(directory: Path) -> bool:
    """Return whether a file of the directory is loaded in this process."""
    return str(directory.resolve()) in Path("/proc/self/maps").read_text()


def assert_by_torch_because(reason: str, caplog) -> None:
    """Assert that there are no kernels, that all works, and that one line of the log says why."""
    caplog.clear()
    with caplog.at_level(logging.INFO, "taugrad"):
        x = torch.tensor([[0.0, -torch.inf], [-torch.inf, 0.0]])
        assert not kernels.available()
        assert gumbel_argmax(x).tolist() == [0, 1]
        assert torch.equal(gumbel_softmax(x, hard=True), torch.eye(2))
    (record,) = [r for r in caplog.records if r.name == "taugrad"]
    assert record.levelno == logging.INFO
    assert reason in record.getMessage()
    assert "\n" not in record.getMessage()


# The cache

CHILD = """
import json, torch
torch.compiler.assume_constant_result = lambda f: f  # else it imports torch's compiler, which takes a second
from taugrad.ops.native import kernels
tiny = torch.tensor(1e-40)
before = [float(tiny * 1.0), float("5e-324") * float("1"), 1.0 + 2.0**-53, 1.0 + 3 * 2.0**-53]
there = kernels.available()
after = [float(tiny * 1.0), float("5e-324") * float("1"), 1.0 + 2.0**-53, 1.0 + 3 * 2.0**-53]
print(json.dumps([there, before, after, kernels.noise(torch.empty(100), torch.tensor(7)).tolist()]))
"""


def start(code: str = CHILD, **environment: str) -> subprocess.Popen:
    pipe = subprocess.PIPE
    full = {**os.environ, **environment}
    return subprocess.Popen([sys.executable, "-c", code], env=full, stdout=pipe, stderr=pipe, text=True)


def finish(process: subprocess.Popen) -> str:
    out, err = process.communicate()
    assert process.returncode == 0, err
    return out


def test_processes_that_start_at_once_get_the_same_numbers_and_leave_one_library(cache, compiler, expected):
    # The file grows slowly, so that the others would find half of it if it had its final name.
    compiler.does(f'head -c 40000 {compiler.library} > "$out"; sleep 0.5; tail -c +40001 {compiler.library} >> "$out"')
    for out in [finish(process) for process in [start() for _ in range(4)]]:
        there, before, after, numbers = json.loads(out)
        assert there
        assert numbers == expected
        assert after == before  # the mode of floating point: denormal numbers and rounding
        assert after[0] > 0
        assert after[1] > 0
    (name,) = files(cache)
    assert name.endswith(".so")
    assert stat.S_IMODE(cache.stat().st_mode) == 0o700
    compiled = len(compiler.compilations())
    assert 1 <= compiled <= 4
    assert json.loads(finish(start()))[3] == expected
    assert len(compiler.compilations()) == compiled  # a later process finds it
    assert files(cache) == [name]


def test_a_cold_cache_is_filled_by_the_real_compiler_and_a_warm_one_asks_for_its_version_only(
    cache, tmp_path, monkeypatch, expected
):
    real = os.environ.get("CXX") or "c++"
    log, wrapper = tmp_path / "log", tmp_path / "wrapper"
    wrapper.write_text(f'#!/bin/sh\necho "$@" >> {log}\nexec {real} "$@"\n')
    wrapper.chmod(0o755)
    monkeypatch.setenv("CXX", str(wrapper))
    assert kernels.available()
    assert noise() == expected
    (compilation,) = [line for line in log.read_text().splitlines() if "--version" not in line]
    assert "-ffast-math" not in compilation
    assert "-Ofast" not in compilation
    (name,) = files(cache)
    assert is_mapped(cache)
    log.unlink()
    forget()
    assert kernels.available()
    assert set(log.read_text().splitlines()) == {"--version"}
    assert files(cache) == [name]
    assert files(tmp_path / "temporary") == []


def test_the_cache_is_in_home_where_xdg_names_none(cache, compiler, tmp_path, monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert kernels.available()
    assert len(files(tmp_path / "home" / ".cache" / "taugrad")) == 1


@pytest.mark.parametrize(
    "change",
    [
        lambda patch, compiler: patch.setattr(build, "_FLAGS", [*build._FLAGS, "-g"]),
        lambda patch, compiler: patch.setattr(build, "_cpu", lambda: "another"),
        lambda patch, compiler: patch.setenv("CXX", f"{compiler.path} -mno-fma"),
        lambda patch, compiler: compiler.path.write_text(compiler.path.read_text().replace("compiler 1", "compiler 2")),
    ],
    ids=["flags", "CPU", "command", "version"],
)
def test_another_compiler_or_cpu_has_a_library_of_its_own(cache, compiler, monkeypatch, change):
    assert kernels.available()
    (first,) = files(cache)
    forget()
    assert kernels.available()
    assert files(cache) == [first]
    change(monkeypatch, compiler)
    forget()
    assert kernels.available()
    assert len(files(cache)) == 2
    assert len(compiler.compilations()) == 2


@pytest.mark.parametrize("name", ["kernels.cpp", "noise.h", "vectors.h", "layouts.h"])
def test_another_source_has_a_library_of_its_own(cache, compiler, monkeypatch, tmp_path, name):
    copied = tmp_path / "sources"
    shutil.copytree(SOURCES, copied)
    monkeypatch.setattr(build, "_KERNELS", copied / "kernels.cpp")
    monkeypatch.setattr(build, "_BINDING", copied / "binding.cpp")
    assert kernels.available()
    (copied / name).write_text((copied / name).read_text() + "\n// more\n")
    forget()
    assert kernels.available()
    assert len(files(cache)) == 2


def test_the_key_knows_the_features_of_this_cpu():
    if not Path("/proc/cpuinfo").exists():
        pytest.skip("nothing tells them")
    told = build._cpu()
    assert "flags" in told or "Features" in told
    assert "MHz" not in told  # changes by itself


# Caches that are not to be trusted


def group_writable(cache: Path, elsewhere: Path) -> None:
    cache.chmod(0o770)


def world_writable(cache: Path, elsewhere: Path) -> None:
    cache.chmod(0o707)


def anothers(cache: Path, elsewhere: Path) -> None:
    if os.getuid() != 0:
        pytest.skip("only root can give a directory away")
    os.chown(cache, 12345, -1)


def a_symlink(cache: Path, elsewhere: Path) -> None:
    shutil.copytree(cache, elsewhere)
    shutil.rmtree(cache)
    cache.symlink_to(elsewhere)


def a_file(cache: Path, elsewhere: Path) -> None:
    shutil.rmtree(cache)
    cache.write_text("")


def below_a_file(cache: Path, elsewhere: Path) -> None:
    shutil.rmtree(cache.parent)
    cache.parent.write_text("")


@pytest.mark.parametrize("spoil", [group_writable, world_writable, anothers, a_symlink, a_file, below_a_file])
def test_a_cache_that_is_not_ones_own_is_neither_read_nor_written(
    cache, compiler, library, tmp_path, expected, caplog, spoil
):
    assert kernels.available()  # makes it, with a library by the right name
    assert is_mapped(cache)
    elsewhere = tmp_path / "elsewhere"
    for path in cache.iterdir():  # another file, which is not mapped yet
        path.unlink()
        shutil.copy(library, path)
    spoil(cache, elsewhere)
    before = [files(path) for path in (cache, elsewhere) if path.is_dir()]
    assert not is_mapped(elsewhere)
    forget()
    caplog.clear()
    with caplog.at_level(logging.INFO, "taugrad"):
        assert kernels.available()
    assert noise() == expected
    assert len(compiler.compilations()) == 2
    assert [files(path) for path in (cache, elsewhere) if path.is_dir()] == before
    assert not is_mapped(elsewhere)
    assert files(tmp_path / "temporary") == []  # gone, and still the kernels work
    assert [r.getMessage() for r in caplog.records if r.name == "taugrad"] == ["discrete samples by the native kernels"]


def test_without_a_home_there_is_a_temporary_library(cache, compiler, monkeypatch, expected):
    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", no_home)
    assert kernels.available()
    assert noise() == expected


def test_a_full_disk_leaves_torch_or_a_temporary_library(cache, compiler, monkeypatch, caplog):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tempfile, "mkstemp", full)
    assert_by_torch_because("No space left on device", caplog)


# Compilers that fail


@pytest.mark.parametrize("end", ["exit 1", "kill -9 $$"])
def test_half_a_library_is_not_kept(cache, compiler, caplog, expected, end):
    compiler.writes_half_and(end)
    assert_by_torch_because("failed", caplog)
    assert files(cache) == []
    compiler.copies()
    forget()
    assert kernels.available()
    assert noise() == expected
    assert len(files(cache)) == 1


def test_what_a_compiler_makes_that_is_no_library_is_not_taken_and_the_next_one_mends_it(
    cache, compiler, caplog, expected
):
    compiler.does('echo "no library" > "$out"')
    assert_by_torch_because("the compiled kernels do not load", caplog)
    compiler.copies()
    forget()
    assert kernels.available()
    assert noise() == expected
    assert len(files(cache)) == 1


def test_what_a_killed_process_leaves_is_not_loaded(cache, compiler, expected):
    compiler.writes_half_and("kill -9 $PPID")
    process = start()
    process.communicate()
    assert process.returncode == -9
    assert len(files(cache)) == 1
    assert files(cache)[0].endswith(".part")
    compiler.copies()
    assert kernels.available()
    assert noise() == expected
    assert len([name for name in files(cache) if name.endswith(".so")]) == 1


@pytest.mark.parametrize("contents", [b"", b"not a library"])
def test_a_damaged_library_in_the_cache_is_compiled_anew(cache, compiler, expected, contents):
    assert kernels.available()
    (path,) = cache.iterdir()
    path.unlink()
    path.write_bytes(contents)
    forget()
    assert kernels.available()
    assert noise() == expected


def test_a_compiler_that_does_not_know_the_cpu_is_asked_without(cache, compiler, expected):
    compiler.does(f'case "$arguments" in *march=native*) exit 1;; esac; cat {compiler.library} > "$out"')
    assert kernels.available()
    assert noise() == expected
    assert ["-march=native" in line for line in compiler.compilations()] == [True, False]


def test_a_compiler_that_hangs_is_given_up(cache, compiler, monkeypatch, caplog):
    monkeypatch.setattr(compiling, "_TIMEOUT", 0.2)
    compiler.does("exec sleep 60")
    assert_by_torch_because("timed out", caplog)
    assert files(cache) == []


def test_the_compilers_own_error_is_the_reason(cache, compiler, monkeypatch, caplog):
    compiler.does('echo "In file included from x:1:" >&2; echo "x.cpp:1: error: no such thing" >&2; exit 1')
    assert_by_torch_because("x.cpp:1: error: no such thing", caplog)
    monkeypatch.setenv("TAUGRAD_BACKEND", "native")
    forget()
    with pytest.raises(BuildError, match=r"^.*compiler failed: x\.cpp:1: error: no such thing$"):
        kernels.available()


def test_an_error_in_another_encoding_is_an_error_still(cache, compiler, caplog):
    compiler.does("printf 'error: \\377\\n' >&2; exit 1")
    assert_by_torch_because("failed", caplog)


@pytest.mark.parametrize("command", ["/nonexistent", "no-such-compiler -O3", " ", '"', "/etc"])
def test_without_a_compiler_the_samples_are_torchs_and_the_log_says_why(cache, monkeypatch, caplog, command):
    monkeypatch.setenv("CXX", command)
    assert_by_torch_because("compiler", caplog)
    monkeypatch.setenv("TAUGRAD_BACKEND", "native")
    forget()
    with pytest.raises(BuildError, match=r"^there is no C\+\+ compiler: .*$"):
        kernels.available()
    with pytest.raises(BuildError):  # again at every use
        gumbel_softmax(torch.zeros(2, 3))


def test_on_windows_the_samples_are_torchs_and_the_log_says_why(cache, compiler, monkeypatch, caplog):
    monkeypatch.setattr(platform, "system", lambda: "Windows")
    assert_by_torch_because("the native kernels are not built on Windows", caplog)
    with pytest.raises(SystemExit, match="error: the native kernels are not built on Windows"):
        runpy.run_module("taugrad.ops.native")
    assert not compiler.log.exists()


def test_a_process_without_a_path_draws_by_torch(cache):
    code = """
import logging, torch
torch.compiler.assume_constant_result = lambda f: f
logging.basicConfig(level=logging.INFO, format="%(name)s %(levelname)s %(message)s")
from taugrad import gumbel_softmax
y = gumbel_softmax(torch.tensor([[0.0, -torch.inf]] * 3), hard=True)
gumbel_softmax(torch.zeros(2, 3))
print(y.tolist())
"""
    environment = {"PATH": "", "TAUGRAD_BACKEND": "auto"}
    command = [sys.executable, "-c", code]
    full = {k: v for k, v in {**os.environ, **environment}.items() if k != "CXX"}
    done = subprocess.run(command, env=full, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [[1.0, 0.0]] * 3
    assert done.stderr.splitlines() == [
        "taugrad INFO discrete samples by torch: there is no C++ compiler: c++ is not on the PATH"
    ]
    assert not cache.exists()


# The choice


def test_torch_can_be_asked_for_and_asks_for_no_compiler(cache, compiler, monkeypatch, caplog):
    monkeypatch.setenv("TAUGRAD_BACKEND", "torch")
    assert_by_torch_because("as TAUGRAD_BACKEND says", caplog)
    assert not compiler.log.exists()
    assert not cache.exists()


@pytest.mark.parametrize("choice", ["auto", "native", None])
def test_the_kernels_are_announced_once(cache, compiler, monkeypatch, caplog, choice):
    if choice:
        monkeypatch.setenv("TAUGRAD_BACKEND", choice)
    with caplog.at_level(logging.INFO, "taugrad"):
        for _ in range(3):
            gumbel_softmax(torch.zeros(2, 3))
    (record,) = [r for r in caplog.records if r.name == "taugrad"]
    assert (record.levelno, record.getMessage()) == (logging.INFO, "discrete samples by the native kernels")


@pytest.mark.parametrize("choice", ["nonsense", "", "NATIVE"])
def test_another_choice_gets_a_sentence_that_names_the_four(cache, monkeypatch, choice):
    monkeypatch.setenv("TAUGRAD_BACKEND", choice)
    for _ in range(2):
        with pytest.raises(ValueError, match=f"TAUGRAD_BACKEND must be auto, native, triton or torch, got {choice}"):
            gumbel_softmax(torch.zeros(2, 3))


def test_threads_that_ask_at_once_all_get_the_kernels(cache, compiler, expected):
    compiler.does(f'sleep 0.2; cat {compiler.library} > "$out"')
    with ThreadPoolExecutor(4) as pool:
        numbers = list(pool.map(lambda _: noise(), range(4)))
    assert numbers == [expected] * 4
    assert len(files(cache)) == 1


# Floating point


def test_loading_changes_nothing_about_denormal_numbers(cache, compiler):
    tiny = torch.tensor(1e-40)
    assert kernels.available()
    assert is_mapped(cache)  # newly loaded
    assert (tiny * 1.0).item() > 0
    x = torch.tensor([[0.0, -80.0]])
    assert kernels.softmax(x, 1.0)[0, 1].item() == pytest.approx(textbook_softmax(x, 1.0, -1)[0, 1].item(), rel=1e-5)


@pytest.mark.usefixtures("users_compiler")
def test_a_library_linked_for_fast_mathematics_would_be_noticed(tmp_path):
    source, fast = tmp_path / "fast.c", tmp_path / "fast.so"
    source.write_text("int nothing;\n")
    command = [*shlex.split(os.environ.get("CXX") or "c++"), "-shared", "-fPIC", "-ffast-math"]
    subprocess.run([*command, str(source), "-o", str(fast)], check=True)
    tiny = torch.tensor(1e-40)
    try:
        ctypes.CDLL(str(fast))
        lost = (tiny * 1.0).item() == 0
    finally:
        torch.set_flush_denormal(False)
    assert (tiny * 1.0).item() > 0
    if not lost:
        pytest.skip("this compiler's fast mathematics leaves the process alone")
