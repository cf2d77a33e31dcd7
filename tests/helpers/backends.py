"""Backends of the samples."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from taugrad.ops.native import kernels


@contextmanager
def by_torch_alone() -> Iterator[None]:
    """Hide the kernels, as they are hidden from a transform of `torch.func`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "available", lambda: False)
        patch.setattr(kernels, "_binding", lambda: None)
        yield


# In a file whose tests run on every backend, for those that depend on none, and for those of a compiled program, which
# samples by the operator or by torch: the binding is of eager mode alone.
once = pytest.mark.parametrize("backend", ["bound"], indirect=True)
of_programs = pytest.mark.parametrize("backend", ["bound", "torch"], indirect=True)
