"""Fused kernels in C++ for tensors on a CPU, compiled on first use; everything they do, torch code does too."""
