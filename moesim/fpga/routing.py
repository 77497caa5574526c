"""Which experts the tokens of an image go to: drawn, or out of a trace."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from moesim.errors import InputError, UsageError
from moesim.forward.expert_load import Distribution
from moesim.traces.bundle import open_trace

__all__ = ["assignments_of_trace", "draw_assignments", "expert_counts"]

MOST_DRAWS = 2**26
"""Images × layers × tokens × experts: half a gigabyte of random numbers."""


def draw_assignments(
    distribution: Distribution,
    images: int,
    layers: int,
    tokens: int,
    experts: int,
    top_k: int,
    seed: int,
) -> np.ndarray:
    """[I, L, N, K] int64 distinct experts of every token.

    ``balanced`` deals experts out in turn, ``uniform`` draws them evenly without repeats,
    ``zipf:S`` with odds ∝ rank^-S whose ranks are shuffled in every image and layer.

    Args:
        distribution: Of tokens over experts.
        images: I.
        layers: L, with experts.
        tokens: N of an image.
        experts: E.
        top_k: K.
        seed: Same seed, same draws.

    Raises:
        UsageError: If the distribution is none of these, or this is too much to draw.
    """
    if images * layers * tokens * experts > MOST_DRAWS:
        raise UsageError(
            f"{images} images of {tokens:,} tokens in {layers} layers of {experts} experts are too "
            "many to draw\nfix: pass fewer --images, or a smaller image in the --model file"
        )
    if distribution.name == "balanced":
        dealt = np.arange(tokens * top_k).reshape(tokens, top_k) % experts
        return np.broadcast_to(dealt, (images, layers, tokens, top_k)).copy()
    if distribution.name not in ("uniform", "zipf"):
        raise UsageError(
            f"--routing {distribution} is not drawn per token\n"
            "fix: choose from balanced, uniform or zipf:S, or pass --trace FOLDER"
        )
    rng = np.random.default_rng(seed)
    ranked = -distribution.exponent * np.log(np.arange(1, experts + 1))
    odds = rng.permuted(np.broadcast_to(ranked, (images, layers, experts)), axis=-1)
    # The k largest of log odds plus Gumbel noise are k draws without replacement.
    noise = rng.gumbel(size=(images, layers, tokens, experts))
    order = np.argsort(-(odds[:, :, None, :] + noise), axis=-1, kind="stable")
    return order[..., :top_k]


def assignments_of_trace(
    folder: Path, images: int, layers: int, tokens: int, experts: int, top_k: int
) -> np.ndarray:
    """[I, L, N, K] int64 of consecutive windows of a trace; layers beyond its own start anew.

    Raises:
        InputError: If the trace has other experts, another top-k, or fewer tokens.
    """
    trace = open_trace(folder)
    manifest = folder / "manifest.json"
    found = trace.routing.shape
    for field, value, wanted in (
        ("experts", trace.manifest.experts, experts), ("top_k", found[2], top_k),
    ):  # fmt: skip
        if value != wanted:
            raise InputError(
                "the trace is not of the network",
                file=manifest,
                field=field,
                found=value,
                allowed=str(wanted),
                fix="pass the --model that the trace is of",
            )
    if trace.valid_k is not None:
        raise InputError(
            "tokens with fewer experts than top-k are not modelled",
            file=folder / "valid_k.npy",
            fix="pass a trace without valid_k",
        )
    if found[1] < images * tokens:
        raise InputError(
            "too few tokens",
            file=manifest,
            field="tokens",
            found=found[1],
            allowed=f"at least {images * tokens:,} for {images} images",
            fix="pass fewer --images",
        )
    chosen = np.asarray(trace.routing[:, : images * tokens], dtype=np.int64)
    layer = np.arange(layers) % found[0]
    return chosen[layer].reshape(layers, images, tokens, top_k).swapaxes(0, 1)


def expert_counts(assignments: np.ndarray, experts: int) -> np.ndarray:
    """[..., E] int64 tokens of every expert, from [..., N, K] assignments."""
    shape = assignments.shape[:-2]
    flat = assignments.reshape(int(np.prod(shape)), assignments.shape[-2] * assignments.shape[-1])
    offset = flat + experts * np.arange(len(flat))[:, None]
    counts = np.bincount(offset.ravel(), minlength=len(flat) * experts)
    return counts.reshape(*shape, experts)
