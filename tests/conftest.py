"""Each test starts from the same random state and on one thread, so that a failure repeats."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from taugrad.native import kernels
from taugrad.native.build import build_binding

build_binding()  # before the first use of the kernels, so that they are found with it


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


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


@contextmanager
def by_torch_alone() -> Iterator[None]:
    """As if there were no kernels: what a transform of `torch.func` sees."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "available", lambda: False)
        patch.setattr(kernels, "bound", lambda: False)
        yield


torch.set_num_threads(1)
