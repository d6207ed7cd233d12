"""Triton kernels for an NVIDIA GPU, or for Triton's interpreter on the CPU.

They know nothing of pyids: this folder imports torch, triton and itself, by relative imports, so
that it works under any package name (`benchmarks/gpu` loads it straight from a checkout).
Formulas, tilings, floors and bounds are in docs/kernels.md. Nothing here checks its arguments
beyond what a kernel could not survive: `pyids.ops` does.
"""
