"""Run-time cost of kernels: physics with few fitted coefficients, shapes in, seconds out."""
