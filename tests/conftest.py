"""Each test starts from the same random state and on one thread, so that a failure repeats."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from taugrad.native import kernels


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(params=["native", "torch"])
def backend(request, monkeypatch) -> str:
    """Runs a test on both backends: with the native kernels, which must be there, and by torch alone."""
    assert kernels.available()
    if request.param == "torch":
        monkeypatch.setattr(kernels, "available", lambda: False)
    return request.param


@contextmanager
def by_torch_alone() -> Iterator[None]:
    """As if there were no kernels: what a transform of `torch.func` sees."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "available", lambda: False)
        yield


torch.set_num_threads(1)
