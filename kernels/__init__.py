"""Triton kernels: batched pooling, k-means and the fused loss. Imports only torch and triton."""
