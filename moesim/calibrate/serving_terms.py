"""What the times of measured runs are sums of, and where their residuals lie."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from moesim.calibrate.serving_setups import TIME_PARTS, RunParts

__all__ = ["TTFT_PARTS", "release_of", "residual_points", "stacked", "ttft_parts"]

TTFT_PARTS = ("kernels", "request", "input_token", "tpot", "slot", "poll", "queue")
"""Seconds of kernels until the first token, and of host time per request, per input token, per
output-token time (an engine looks for new requests every few steps), per slot of the loop, per
output-token times between two looks where a launch script sets them, and of waiting for prefill
workers."""

BURST_SHARE = 0.1
"""Of a benchmark's requests, those of the first burst: it sends ten times its concurrency."""


def stacked(runs: Sequence[RunParts], name: str) -> np.ndarray:
    """[N, …] an array of every run, one above the other."""
    return np.array([getattr(run, name) for run in runs])


def release_of(run: RunParts) -> str:
    """What a run shares with others of one engine version and one day; empty if it cannot draft.

    Runs with prefill and decode workers change between drafting and not within a day.
    """
    of = run.run
    if not run.drafts or of.mode == "disagg":
        return ""
    return f"{of.engine} {of.version or 'unknown'} {of.date or 'undated'}"


def ttft_parts(runs: Sequence[RunParts], tpot_s: np.ndarray, service: float) -> np.ndarray:
    """[N, TTFT_PARTS], where prefill workers need so much of their kernels' time per prompt."""
    kernels = stacked(runs, "ttft")[:, : len(TIME_PARTS)].sum(axis=1)
    prompts, output, slots = (
        np.array([float(getattr(run.run, name)) for run in runs])
        for name in ("isl", "osl", "concurrency")
    )
    poll = np.array([run.run.flags.poll_steps - 1.0 if run.run.flags else 0.0 for run in runs])
    # With prefill workers: the first burst waits for half of itself. Later requests come as they
    # were served, unless all requests take longer to prefill than one takes to decode.
    servers = np.array([float(run.servers) for run in runs])
    split = servers > 0
    service_s = service * np.array([run.service_s for run in runs])
    through = np.where(split, slots * service_s / np.maximum(servers, 1.0), 0.0)
    late = np.maximum(0.0, through - output * tpot_s)
    queue = BURST_SHARE * through / 2 + (1 - BURST_SHARE) * np.where(split, late, 0.0)
    ones = np.ones(len(runs))
    columns = [kernels, ones, prompts, tpot_s, slots * tpot_s, poll * tpot_s, queue]
    return np.stack(columns, axis=1)


def residual_points(
    runs: Sequence[RunParts], marks: np.ndarray, systems: Sequence[str]
) -> np.ndarray:
    """[N, D] where the residual's rows lie: drafting and system are far from anything else."""
    own = np.array([[float(run.run.system == name) for name in systems] for run in runs])
    return np.concatenate([stacked(runs, "descriptors"), 4 * marks[:, None], own], axis=1)
