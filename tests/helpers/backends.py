"""Backends of the samples."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from taugrad.ops.native import kernels


@contextmanager
def by_torch_alone() -> Iterator[None]:
    """As if there were no kernels: what a transform of `torch.func` sees."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "available", lambda: False)
        patch.setattr(kernels, "bound", lambda: False)
        yield


# For a test in a file whose tests all run on every backend, and that does not depend on one.
once = pytest.mark.parametrize("backend", ["bound"], indirect=True)
