"""Nothing relies on what other systems than Linux lack, as far as that can be tested on Linux."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ELSEWHERE = r"""
import builtins, pkgutil, sys, types

MODULES = (
    "fcntl resource pwd grp spwd crypt termios tty pty syslog readline posix curses _posixsubprocess triton"
).split()
LACKS = {
    "os": (
        "fork forkpty getuid geteuid getgid getegid getgroups getpgid getpgrp setsid setuid killpg wait uname nice "
        "chown lchown fchown fchmod mkfifo mknod statvfs fstatvfs sysconf confstr getloadavg pread pwrite sendfile "
        "readv sched_getaffinity sched_setaffinity register_at_fork O_DIRECTORY O_NOFOLLOW O_CLOEXEC O_NONBLOCK "
        "O_SYNC"
    ).split(),
    "signal": (
        "SIGHUP SIGKILL SIGQUIT SIGUSR1 SIGUSR2 SIGALRM SIGCHLD SIGCONT SIGSTOP SIGTSTP SIGPIPE alarm setitimer "
        "pthread_kill pthread_sigmask sigwait siginterrupt pause"
    ).split(),
    "platform": [],
}


class Poorer(types.ModuleType):
    def __init__(self, module):
        super().__init__(module.__name__)
        self.__dict__["_module"] = module

    def __getattr__(self, name):
        if (self.__name__, name) == ("platform", "system"):
            return lambda: "Windows"
        if name in LACKS[self.__name__]:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        return getattr(self.__dict__["_module"], name)


real = builtins.__import__


def elsewhere(name, globals=None, locals=None, fromlist=(), level=0):
    ours = str((globals or {}).get("__name__")).split(".")[0] in ("taugrad", "hydra_plugins")
    if ours and level == 0 and name.split(".")[0] in MODULES:
        raise ModuleNotFoundError(f"No module named {name!r}")
    found = real(name, globals, locals, fromlist, level)
    return Poorer(found) if ours and level == 0 and name in LACKS else found


builtins.__import__ = elsewhere
import hydra_plugins.taugrad_sweepers, taugrad
for module in pkgutil.walk_packages(taugrad.__path__, "taugrad."):
    if not module.name.endswith(".__main__") and not module.name.startswith("taugrad.ops.triton."):
        __import__(module.name)

import pytest
from taugrad import cli
sys.argv = ["taugrad", "train", "-m", "model.nll_samples=2", "trainer.max_steps=2", "+trainer.limit_val_batches=1",
            "+trainer.limit_test_batches=1", "hydra.sweep.dir=sweep"]
cli.main()
"""


@pytest.mark.system
def test_everything_imports_and_trains_without_what_only_posix_has_and_without_triton(tmp_path):
    result = subprocess.run(
        [sys.executable, "-c", ELSEWHERE], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr[-2000:]
    assert "discrete samples by torch: the native kernels are not built on Windows" in result.stdout
    assert (tmp_path / "sweep" / "0" / "metrics.json").is_file()


def test_every_text_file_is_read_and_written_in_utf_8():
    """The default encoding is another one elsewhere, also that of a pager or editor: so configs are ASCII."""
    files = [file for folder in ("src", "scripts", "docs", "examples") for file in (ROOT / folder).rglob("*.py")]
    assert len(files) > 70
    for file in files:
        for call in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not (isinstance(call, ast.Call) and isinstance(call.func, (ast.Attribute, ast.Name))):
                continue
            name = call.func.attr if isinstance(call.func, ast.Attribute) else call.func.id
            of_os = isinstance(call.func, ast.Attribute) and ast.unparse(call.func.value) in ("os", "Image", "tarfile")
            binary = any(isinstance(a, ast.Constant) and "b" in str(a.value) for a in call.args[-1:])
            if name in ("read_text", "write_text") or (name == "open" and not of_os and not binary):
                given = {keyword.arg for keyword in call.keywords}
                assert "encoding" in given, f"{file}:{call.lineno}"
    for file in (ROOT / "conf").rglob("*.yaml"):
        assert file.read_bytes().isascii(), file


def test_no_file_of_the_checkout_has_a_name_that_windows_lacks():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    for name in listed.stdout.splitlines():
        assert not set(name) & set('<>:"|?*\\'), name
    defaults = (ROOT / "conf").rglob("*.yaml")
    stamps = [line for file in defaults for line in file.read_text(encoding="utf-8").splitlines() if "${now:" in line]
    assert stamps
    assert all(":" not in line.split("${now:")[1].split("}")[0] for line in stamps)
