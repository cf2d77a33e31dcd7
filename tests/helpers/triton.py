"""Triton's kernels: on a GPU, or on a CPU by Triton's interpreter, which tests/conftest.py asks for."""

from dataclasses import replace
from types import FunctionType

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed: pip install -e '.[dev,triton]'")

from triton.runtime import interpreter

from taugrad.ops.triton import kernels, launch

__all__ = ["DEVICE", "kernels", "launch"]

DEVICE = str(torch.accelerator.current_accelerator()) if torch.accelerator.is_available() else "cpu"


def patch_the_language_once_a_launch() -> None:
    """Spare the interpreter a third of its time: it patches all of Triton's language at each call of a function.

    A launch patches it for the kernel, and restores it at its end; the functions that the kernel calls, of the same
    module, find it patched.
    """
    patch, launched = interpreter._patch_lang, interpreter.GridExecutor.__call__
    patched: list[int] = []  # modules of the launch in progress

    def patch_once(function: FunctionType) -> object:
        module = id(function.__globals__)
        if module in patched:
            return None
        patched.append(module)
        return patch(function)

    def launch_anew(self, *arguments, **keywords):
        patched.clear()
        return launched(self, *arguments, **keywords)

    interpreter._patch_lang, interpreter.GridExecutor.__call__ = patch_once, launch_anew


def check_no_overflow() -> None:
    """Spare the interpreter a third of the rest: it checks each sum of integers and, without `debug`, drops it."""
    builder = interpreter.interpreter_builder
    assert not builder.options.debug
    builder.options = replace(builder.options, sanitize_overflow=False)


def look_dtypes_up() -> None:
    """Spare it the tables of numpy's types, one of which it makes at each operation."""
    make, found = interpreter._get_np_dtype, {}

    def look_up(dtype):
        name = str(dtype.scalar)
        if name not in found:
            found[name] = make(dtype.scalar)
        return found[name]

    interpreter._get_np_dtype = look_up


if DEVICE == "cpu":
    patch_the_language_once_a_launch()
    check_no_overflow()
    look_dtypes_up()
