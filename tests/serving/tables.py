"""Step tables made up for tests."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np


def made_up_tables(seed: int | None = 0) -> SimpleNamespace:
    """Times that grow with everything; random ones with a seed, round ones without."""
    rng = np.random.default_rng(seed)
    tokens = np.array([1, 2, 4, 8, 16, 64, 256, 1024, 8192], float)
    decode_sequences = np.array([1, 4, 16, 64, 256, 1024], float)
    decode_context = np.array([16, 256, 1024, 4096, 32768], float)
    chunk_tokens = np.array([1, 16, 256, 2048, 8192], float)
    chunk_past = np.array([0, 1024, 8192, 65536], float)
    jitter = rng.uniform(0.5, 1.5, (2, 3)) if seed is not None else np.ones((2, 3))
    return SimpleNamespace(
        components=("gemm", "experts", "small"),
        tokens=tokens,
        token_s=jitter[:, :, None] * np.array([2e-3, 5e-3, 1e-3])[None, :, None]
        + 1e-6 * jitter[:, :, None] * tokens,
        hidden_s=1e-3 * jitter[:, :1] + 2e-7 * tokens,
        sampled_s=5e-5 + 1e-6 * tokens,
        kernels=np.array([1000.0, 1500.0]),
        decode_sequences=decode_sequences,
        decode_context=decode_context,
        decode_attention_s=1e-3 + 1e-9 * decode_sequences[:, None] * decode_context,
        chunk_tokens=chunk_tokens,
        chunk_past=chunk_past,
        chunk_attention_s=1e-5
        + 1e-9 * chunk_tokens[:, None] * (chunk_past + chunk_tokens[:, None] / 2),
    )
