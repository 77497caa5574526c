"""Triton kernels of a Mixture-of-Experts layer."""
