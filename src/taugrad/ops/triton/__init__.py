"""Triton kernels for GPUs. `taugrad.ops._fused` chooses them; what imports Triton is imported where they are chosen."""
