"""Choice of the kernels by the environment variable TAUGRAD_BACKEND.

`auto` (the default) takes the native kernels on a CPU and Triton's on a GPU, where they can be compiled, and torch
where not. `native` and `triton` fail where theirs cannot be compiled, and take no others; `torch` takes none. On a CPU
`triton` needs Triton's interpreter, by TRITON_INTERPRET=1: it is slow, and for tests.
"""

import os

from taugrad.errors import ConfigError

_CHOICES = ("auto", "native", "triton", "torch")


def backend_chosen() -> str:
    """Return TAUGRAD_BACKEND.

    Raises:
        ConfigError: it is none of its values.
    """
    choice = os.environ.get("TAUGRAD_BACKEND", "auto")
    if choice not in _CHOICES:
        raise ConfigError(f"TAUGRAD_BACKEND must be auto, native, triton or torch, got {choice}")
    return choice
