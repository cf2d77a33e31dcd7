"""Triton's kernels: on a GPU, or on a CPU by Triton's interpreter, which tests/conftest.py asks for."""

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed: pip install -e '.[dev,triton]'")

from taugrad.ops.triton import kernels, launch

__all__ = ["DEVICE", "kernels", "launch"]

DEVICE = str(torch.accelerator.current_accelerator()) if torch.accelerator.is_available() else "cpu"
