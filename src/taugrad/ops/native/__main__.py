"""python -m taugrad.ops.native: compile the kernels' binding to torch's C++ autograd, once, in about 15 seconds."""

import sys

from taugrad.compiler import BuildError
from taugrad.ops.native.build import build_binding

try:
    print(f"the binding is in {build_binding()}")  # noqa: T201
except (BuildError, OSError, RuntimeError) as error:  # no compiler, no private cache, no home
    sys.exit(f"error: {error}")
