"""Triton kernels of a Mixture-of-Experts layer: grouped GEMM and what surrounds it.

Every op stands in one module with its plain torch reference and its cost function:

    routing        router logits → top-k expert ids and weights
    permute        expert ids → rows sorted by expert, counts
    tile_table     counts → the list of row tiles that a GEMM works through
    grouped_gemm   rows of all experts times their weights, with fused prologues and epilogues
    quantise       blocks of 128 in fp8 e4m3 with scales
    combine        rows → tokens, in a fixed order
    experts        the two GEMMs of a SwiGLU expert layer
    layer          all of it: a Mixture-of-Experts layer forward

These modules need torch, triton, numpy and the standard library, nothing else: a copy of the
repository on PYTHONPATH runs on a machine without any other package.
"""
