"""Each test starts from the same random state and on one thread, so that a failure repeats."""

import functools
import inspect
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import pytest
import torch
from hydra.core.hydra_config import HydraConfig

from taugrad.ops.native import kernels
from taugrad.ops.native.build import build_binding

build_binding()  # before the first use of the kernels, so that they are found with it


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    torch.manual_seed(0)
    yield
    HydraConfig.instance().cfg = None  # of a command that the test ran in this process


@pytest.fixture(params=["bound", "native", "torch"])
def backend(request, monkeypatch) -> str:
    """Runs a test with the kernels, bound to torch's autograd in C++ and in Python, and by torch alone."""
    assert kernels.bound()
    if request.param == "native":
        monkeypatch.setattr(kernels, "bound", lambda: False)
    if request.param == "torch":
        monkeypatch.setattr(kernels, "available", lambda: False)
        monkeypatch.setattr(kernels, "bound", lambda: False)
    return request.param


def each(names: str, cases: Iterable) -> Callable[[Callable], Callable]:
    """As `pytest.mark.parametrize`, for cases too small to be tests of their own: one test runs them all.

    Every case starts from the state that a test starts from, and one that fails is named.
    """
    keys = names.replace(",", " ").split()
    rows = [case if len(keys) > 1 else (case,) for case in cases]

    def decorate(test: Callable) -> Callable:
        @functools.wraps(test)
        def run(**fixtures: object) -> None:
            for row in rows:
                case = dict(zip(keys, row, strict=True))
                torch.manual_seed(0)
                try:
                    test(**fixtures, **case)
                except Exception as error:
                    raise AssertionError(f"{case}: {error}") from error

        signature = inspect.signature(test)
        kept = [p for name, p in signature.parameters.items() if name not in keys]
        run.__signature__ = signature.replace(parameters=kept)  # what pytest finds fixtures by
        return run

    return decorate


@contextmanager
def by_torch_alone() -> Iterator[None]:
    """As if there were no kernels: what a transform of `torch.func` sees."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "available", lambda: False)
        patch.setattr(kernels, "bound", lambda: False)
        yield


torch.set_num_threads(1)
