"""python -m taugrad.native: compile the kernels' binding to torch's C++ autograd, once, in about 15 seconds."""

from taugrad.native.build import build_binding

print(f"the binding is in {build_binding()}")  # noqa: T201
