"""DeepEP's published tables, by kernels fitted to measurements on another device."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from moesim.hardware import load_device
from moesim.operators.comm_fits import DeepEpFit
from moesim.operators.deepep import expected_parts, vector_bytes
from moesim.operators.fitted import Estimate
from moesim.operators.shipped import find_fit
from moesim.reports.paper import Paper
from moesim.reports.prediction import Prediction

__all__ = ["predict"]

HIDDEN, TOP_K, EXPERTS, NODE = 7168, 8, 256, 8
LOW_LATENCY_TOKENS, NORMAL_TOKENS = 128, 4096
NORMAL_CORES = 24
NODE_LIMIT = 4
PHASES = ("dispatch", "combine")
CARDS = {
    2: "half of the bytes counted stay on the node: the published run leaves half of the card idle",
    8: "the measurements behind the fit run at half the bandwidth on 8 nodes",
}
YOUNGER = "within a node the fit is of kernels of another version"


def predict(paper: Paper) -> Mapping[str, Prediction]:
    """Every figure of the file."""
    del paper
    found = {}
    for phase in PHASES:
        for ranks in (8, 16, 64, 256):
            found[f"rdma-{phase}-{ranks}"] = _low_latency(phase, ranks, ranks)
            found[f"nvlink-{phase}-{ranks}"] = _low_latency(phase, ranks, ranks // NODE)
        for ranks in (8, 16, 32, 64):
            found[f"normal-{phase}-{ranks}"] = _normal(phase, ranks)
    return found


def _low_latency(phase: str, ranks: int, nodes: int) -> Prediction:
    """Seconds; where every rank is a node of its own, all bytes go by RDMA."""
    fit = _fit("low_latency", phase, nodes)
    tokens, hidden, top_k, experts, gpus, domains = (
        np.array([float(size)])
        for size in (LOW_LATENCY_TOKENS, HIDDEN, TOP_K, EXPERTS, ranks, nodes)
    )
    time = fit.time(tokens, hidden, top_k, experts, gpus, domains)
    middle, low, high = _ends(time)
    return Prediction(middle, low, high, time.evidence, YOUNGER if nodes == 1 else "")


def _normal(phase: str, ranks: int) -> Prediction:
    """Bytes per second, all that DeepEP counts."""
    nodes = ranks // NODE
    tokens, hidden, top_k, experts, gpus, domains = (
        np.array([float(size)]) for size in (NORMAL_TOKENS, HIDDEN, TOP_K, EXPERTS, ranks, nodes)
    )
    # Where there are more nodes than a token may use, each holds one group of experts.
    groups = (nodes, NODE_LIMIT) if nodes > NODE_LIMIT else None
    fit = _fit("normal", phase, nodes)
    time = fit.time(tokens, hidden, top_k, experts, gpus, domains, sms=NORMAL_CORES, groups=groups)
    limit = None if nodes == 1 else NODE_LIMIT
    parts = np.array(float(ranks if nodes == 1 else nodes))
    copies = expected_parts(np.array(TOP_K), np.array(EXPERTS), parts, limit)
    phase_bytes = vector_bytes("dispatch" if phase == "dispatch" else "combine", np.array(HIDDEN))
    counted = float(NORMAL_TOKENS * copies * phase_bytes)
    middle, low, high = _ends(time)
    return Prediction(
        counted / middle, counted / high, counted / low, time.evidence, CARDS.get(nodes, "")
    )


def _fit(mode: str, phase: str, nodes: int) -> DeepEpFit:
    fit: DeepEpFit = find_fit(
        f"deepep_{mode}",
        load_device("h800_sxm"),
        phase=phase,
        mode=mode,
        across="nodes" if nodes > 1 else "node",
    )
    return fit


def _ends(time: Estimate) -> tuple[float, float, float]:
    """Seconds of the one call, and of its interval."""
    middle, low, high = (
        float(np.atleast_1d(values)[0]) for values in (time.time_s, time.lo_s, time.hi_s)
    )
    return middle, low, high
