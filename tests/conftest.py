"""Each test starts from the same random state and on one thread, so that a failure repeats; each has its tier."""

import gc
import lzma
import os
from collections.abc import Iterator
from copy import copy
from functools import lru_cache
from types import SimpleNamespace

import pytest
import torch

if not torch.accelerator.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before anything imports Triton, Lightning among them
os.environ.pop("TAUGRAD_BACKEND", None)  # a choice for one's own runs; a test makes its own

from helpers.compositions import remember_compositions
from hydra.core.hydra_config import HydraConfig

from taugrad.compiler import BuildError, find_compiler
from taugrad.data import binarized_mnist
from taugrad.ops.native import kernels
from taugrad.ops.native.build import build_binding

gc.disable()  # until all is imported: to look for garbage among it is a sixth of the time of the imports

NO_COMPILER = ""
try:
    find_compiler("the native kernels")
except BuildError as error:  # a compiler is optional, for users and for the tests of all else
    NO_COMPILER = str(error)
else:
    build_binding()  # before the first use of the kernels, so that they are found with it; to fail is no reason to skip


LIBRARY = {  # parts of the package, of which tests/ has the same tree
    *("ops", "estimators", "layers", "circuits", "models", "rl", "data"),
    *("bounds", "distributions", "nets", "probe", "schedules", "checks"),
}
COMPILED = "taugrad.circuits.c.compile_circuit"  # a doctest, which has no marks of its own
TIERS = {"unit", "command", "system", "triton", "slow"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark a test that names no tier as `unit`, where it is of the library, or `command`; those on a GPU as `gpu`."""
    for item in items:
        if torch.accelerator.is_available() and item.get_closest_marker("triton"):
            item.add_marker("gpu")
        if not TIERS & {mark.name for mark in item.iter_markers()}:
            item.add_marker("unit" if part_of(item) in LIBRARY and item.name != COMPILED else "command")
        if item.name == COMPILED:
            item.add_marker(pytest.mark.skipif(bool(NO_COMPILER), reason=NO_COMPILER))


def part_of(item: pytest.Item) -> str:
    """Return the part of the package that a test is of: the first folder or file in tests/ or in src/taugrad/."""
    _, first, *_ = [*item.nodeid.partition("::")[0].removeprefix("src/").split("/"), ""]
    return first.removeprefix("test_").removesuffix(".py")


def pytest_collection_finish() -> None:
    """Collect garbage from here on, never among what is imported, and less often than after 700 objects."""
    gc.freeze()
    gc.set_threshold(20_000, 10, 10)
    gc.enable()


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    torch.manual_seed(0)
    yield
    HydraConfig.instance().cfg = None  # of a command that the test ran in this process


@pytest.fixture(scope="session")
def users_compiler() -> None:
    """Skips what compiles, where there is no compiler."""
    if NO_COMPILER:
        pytest.skip(NO_COMPILER)


@pytest.fixture(scope="session")
def binding(users_compiler) -> None:
    """The native kernels, with their binding."""
    assert kernels.bound()


@pytest.fixture(params=["bound", "native", "torch"])
def backend(request, monkeypatch) -> str:
    """Runs a test with the kernels, bound to torch's autograd in C++ and in Python, and by torch alone."""
    if request.param != "torch":
        request.getfixturevalue("binding")
        assert kernels.bound()
    if request.param == "native":
        monkeypatch.setattr(kernels, "_binding", lambda: None)
    if request.param == "torch":
        monkeypatch.setattr(kernels, "available", lambda: False)
        monkeypatch.setattr(kernels, "_binding", lambda: None)
    return request.param


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    from helpers.commands import SMALL, run  # of Lightning, which tests of the library do without

    directory = tmp_path_factory.mktemp("user")
    result = run("train.py", *SMALL, cwd=directory)
    assert result.returncode == 0, result.stderr
    (run_directory,) = (directory / "outputs" / "cat_vae").iterdir()
    return run_directory, result


@pytest.fixture(scope="session")
def onnx_functions():
    """Lets ONNX's exporter copy its registry, for which it parses five hundred functions: a second an export."""
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    fill = lru_cache(ONNXRegistry.from_torchlib)

    def copied(*arguments, **keywords):
        registry = copy(fill(*arguments, **keywords))
        registry.functions = {target: list(known) for target, known in registry.functions.items()}
        return registry

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ONNXRegistry, "from_torchlib", staticmethod(copied))
        yield


@pytest.fixture
def command(tmp_path, monkeypatch):
    """Runs `taugrad ...` in an empty directory; its exit code and what it wrote to stderr and stdout."""
    from helpers.commands import taugrad

    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        code, out, err = taugrad(*arguments, cwd=tmp_path)
        return code, err, out

    return run


# What every command would do again, of files that stay as they are: 0.3 and 0.16 s of one that trains for a step.
remember_compositions()
binarized_mnist.lzma = SimpleNamespace(decompress=lru_cache(1)(lzma.decompress), LZMAError=lzma.LZMAError)
torch.set_num_threads(1)
