"""Fused kernels in C++ for tensors on a CPU, compiled on first use. Torch code can do everything that they do."""
