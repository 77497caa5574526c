"""Seconds of DeepEP's dispatch and combine, from what its kernels do.

Facts are DeepEP's (https://github.com/deepseek-ai/DeepEP, README and csrc/kernels):

Low latency
    Every token goes to each of its k experts directly: over NVLink within the node, by RDMA to
    other nodes. Dispatch sends FP8 with one FP32 scale per 128 values and a 16-byte header,
    combine sends BF16. ceil(experts / SMs) warp groups share an SM, so a few experts keep only a
    few SMs busy.
Normal
    A token goes once to every node that it has experts on, by RDMA to the GPU of the same index,
    and from there over NVLink to every rank that it has experts on. A given number of SMs copies.

The time of the flows (SMs, NVLink, RDMA) is their p-norm: they overlap, and the slowest counts.
They start behind a latency that itself overlaps a little with them (``latency_overlap``).

All arguments are arrays that broadcast; ``tokens`` are those of one rank. Routing is taken to be
uniform, over at most ``node_limit`` nodes per token where that is given, or among chosen groups.
"""

from __future__ import annotations

from math import comb
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from moesim.schema import Document

__all__ = [
    "LowLatencyCoefficients",
    "NormalCoefficients",
    "Phase",
    "expected_group_parts",
    "expected_parts",
    "low_latency_held_s",
    "low_latency_s",
    "normal_s",
    "p_norm",
    "vector_bytes",
]

Phase = Literal["dispatch", "combine"]
NonNegative = Annotated[float, Field(ge=0)]
Exponent = Annotated[float, Field(gt=0)]

SCALE_GROUP = 128
"""Values that share one FP32 scale (DeepEP, per_token_cast_to_fp8)."""
HEADER_BYTES = 16
"""Of a low-latency message: the source's index, padded to an int4 vector (internode_ll.cu)."""


class LowLatencyCoefficients(Document):
    """Low-latency dispatch or combine of one version on one system.

    Attributes:
        phase: Which of the two.
        device_sms: Streaming multiprocessors of the GPU.
        nodes: Numbers of nodes that were measured; fewer than the least are not predicted.
        launch_s: Fixed time within a node.
        expert_s: Fixed time per expert (counters are sent and awaited for each).
        internode_s: Further fixed time as the share of remote nodes grows to 1 (all of them are
            waited for at once); absent where nothing was measured across nodes.
        token_s: Time of an SM per token.
        token_s_per_byte: Time of an SM per byte of the token's vector.
        copy_s_per_byte: Time of an SM per byte sent, all k copies counted.
        link_s_per_byte: Time of the scale-up link per byte.
        rdma_s_per_byte: Time of the network card per byte; absent like ``internode_s``.
        flow_overlap: Exponent p of the flows' p-norm.
        latency_overlap: The same for the latency and the flows.
        on_bounds: Coefficients that the fit left on a bound of theirs.
    """

    phase: Phase
    device_sms: Annotated[int, Field(ge=1)]
    nodes: tuple[int, ...]
    launch_s: NonNegative
    expert_s: NonNegative
    internode_s: NonNegative | None
    token_s: NonNegative
    token_s_per_byte: NonNegative
    copy_s_per_byte: NonNegative
    link_s_per_byte: NonNegative
    rdma_s_per_byte: NonNegative | None
    flow_overlap: Exponent
    latency_overlap: Exponent
    on_bounds: tuple[str, ...] = ()


class NormalCoefficients(Document):
    """Normal dispatch or combine of one version on one system.

    Attributes:
        phase: Which of the two.
        nodes: [D] numbers of nodes that were measured; fewer than the least are not predicted.
        launch_s: Fixed time within a node, notification included.
        launch_s_per_byte: Further fixed time per byte of a vector: the pipeline is filled.
        internode_s: Further fixed time whenever the nodes double (barriers and counts pass from
            node to node); absent where nothing was measured across nodes.
        token_s: Time of an SM per token.
        token_s_per_byte: Time of an SM per byte of the token's own vector.
        copy_s: Time of an SM per copy, one for each rank that the token goes to.
        copy_s_per_byte: Time of an SM per byte of a copy.
        link_s_per_byte: Time of the scale-up link per byte.
        relay_s_per_byte: Time of an SM per byte that crosses nodes; absent like ``internode_s``.
        rdma_s_per_byte: [D] time of the network card per byte, for each number of nodes; the
            entry of a single node is not used. A number of nodes that was not measured takes that
            of the next smaller one: the card stays the same until it is seen to be slower.
        flow_overlap: Exponent p of the flows' p-norm.
        latency_overlap: The same for the latency and the flows.
        on_bounds: Coefficients that the fit left on a bound of theirs.
    """

    phase: Phase
    nodes: tuple[int, ...]
    launch_s: NonNegative
    launch_s_per_byte: NonNegative
    internode_s: NonNegative | None
    token_s: NonNegative
    token_s_per_byte: NonNegative
    copy_s: NonNegative
    copy_s_per_byte: NonNegative
    link_s_per_byte: NonNegative
    relay_s_per_byte: NonNegative | None
    rdma_s_per_byte: tuple[NonNegative, ...] | None
    flow_overlap: Exponent
    latency_overlap: Exponent
    on_bounds: tuple[str, ...] = ()


def vector_bytes(phase: Phase, hidden: np.ndarray) -> np.ndarray:
    """Bytes of a token's vector on the way: FP8 and scales in dispatch, BF16 in combine."""
    hidden = np.asarray(hidden, float)
    if phase == "combine":
        return 2 * hidden
    return hidden + 4 * np.ceil(hidden / SCALE_GROUP)


def expected_parts(
    top_k: np.ndarray, experts: np.ndarray, parts: np.ndarray, limit: int | None = None
) -> np.ndarray:
    """Expected number of parts (nodes, ranks) on which a token's k experts lie.

    Experts are spread evenly over the parts and drawn uniformly without repetition: a part is
    missed with probability C(E − E/p, k) / C(E, k).

    Args:
        top_k: k.
        experts: E.
        parts: p.
        limit: Parts that a token may use at all (DeepSeek-V3's node-limited routing draws its
            experts from 4 groups); all of them if not given.
    """
    k, e, p = np.broadcast_arrays(
        np.asarray(top_k, float), np.asarray(experts, float), np.asarray(parts, float)
    )
    used = p if limit is None else np.minimum(p, limit)
    drawn_from = e * used / p
    return used * (1 - _missed(k, drawn_from, drawn_from * (1 - 1 / used)))


def expected_group_parts(
    top_k: np.ndarray, experts: np.ndarray, parts: np.ndarray, groups: int, chosen: int
) -> np.ndarray:
    """The same where a token first chooses groups, and its experts among theirs.

    Groups lie on parts in order: a part holds whole groups, or a group spreads over several parts.
    Both choices are uniform (DeepSeek-V3's: 4 of 8 groups, arXiv 2412.19437, section 2.1.2).

    Args:
        top_k: k.
        experts: E.
        parts: p.
        groups: G.
        chosen: Groups that a token chooses.
    """
    k, e, p = np.broadcast_arrays(
        np.asarray(top_k, float), np.asarray(experts, float), np.asarray(parts, float)
    )
    drawn_from = e * chosen / groups
    held = np.maximum(np.round(groups / p), 1)
    missed = np.zeros(k.shape)
    for own in range(min(chosen, int(held.max(initial=1))) + 1):
        likely = _drawn(own, held, groups, chosen)
        missed += likely * _missed(k, drawn_from, drawn_from - np.minimum(own * e / groups, e / p))
    return p * (1 - missed)


def _drawn(own: int, held: np.ndarray, groups: int, chosen: int) -> np.ndarray:
    """Probability that so many of the chosen groups are among those of a part."""
    ways = [comb(int(h), own) * comb(groups - int(h), chosen - own) for h in held.flat]
    return np.array(ways, float).reshape(held.shape) / comb(groups, chosen)


def _missed(k: np.ndarray, drawn_from: np.ndarray, elsewhere: np.ndarray) -> np.ndarray:
    """Probability that k experts, drawn from so many without repetition, all lie elsewhere."""
    missed = np.ones(k.shape)
    for draw in range(int(k.max(initial=0))):
        left = np.maximum(elsewhere - draw, 0) / np.maximum(drawn_from - draw, 1)
        missed *= np.where(draw < k, left, 1.0)
    return missed


def low_latency_s(
    coefficients: LowLatencyCoefficients,
    tokens: np.ndarray,
    hidden: np.ndarray,
    top_k: np.ndarray,
    experts: np.ndarray,
    ranks: np.ndarray,
    nodes: np.ndarray,
) -> np.ndarray:
    """Seconds of a low-latency dispatch or combine.

    With ``nodes`` equal to ``ranks`` every byte goes by RDMA, as in DeepEP's first version.

    Args:
        coefficients: Of this phase.
        tokens: Of one rank.
        hidden: Values in a token's vector.
        top_k: Experts per token.
        experts: Over all ranks.
        ranks: Over all nodes.
        nodes: Scale-up domains.

    Returns:
        Seconds; NaN across nodes where nothing was measured across nodes, and below the least
        number of nodes that was.
    """
    c = coefficients
    tokens, experts, top_k = (np.asarray(x, float) for x in (tokens, experts, top_k))
    ranks, nodes = np.asarray(ranks, float), np.asarray(nodes, float)
    size = vector_bytes(c.phase, hidden)
    copies = tokens * top_k * (size + HEADER_BYTES)
    remote = 1 - 1 / nodes
    sm_s = _sms_s(c, tokens, copies, size, experts)
    link_s = copies * (1 / nodes - 1 / ranks) * c.link_s_per_byte  # a rank's own share stays
    rdma_s = copies * remote * (c.rdma_s_per_byte or 0.0)
    launch_s = c.launch_s + c.expert_s * experts + (c.internode_s or 0.0) * remote
    flow_s = p_norm(c.flow_overlap, sm_s, link_s, rdma_s)
    return _covered(c.nodes, nodes, p_norm(c.latency_overlap, launch_s, flow_s))


def low_latency_held_s(
    coefficients: LowLatencyCoefficients,
    tokens: np.ndarray,
    hidden: np.ndarray,
    top_k: np.ndarray,
    experts: np.ndarray,
) -> np.ndarray:
    """Seconds in which a low-latency dispatch or combine holds all cores.

    Its kernels send, and later receive; in between, messages travel and the cores are free. What
    the kernels take is what the phase takes without a byte on a link: their start, counters and
    copies. Arguments as in :func:`low_latency_s`.
    """
    c = coefficients
    tokens, experts = np.asarray(tokens, float), np.asarray(experts, float)
    size = vector_bytes(c.phase, hidden)
    copies = tokens * np.asarray(top_k, float) * (size + HEADER_BYTES)
    sm_s = _sms_s(c, tokens, copies, size, experts)
    return p_norm(c.latency_overlap, c.launch_s + c.expert_s * experts, sm_s)


def _sms_s(
    c: LowLatencyCoefficients,
    tokens: np.ndarray,
    copies: np.ndarray,
    size: np.ndarray,
    experts: np.ndarray,
) -> np.ndarray:
    """Seconds of the cores, as many as the experts keep busy."""
    sms = np.ceil(experts / np.ceil(experts / c.device_sms))
    found: np.ndarray = (
        tokens * (c.token_s + c.token_s_per_byte * size) + copies * c.copy_s_per_byte
    ) / sms
    return found


def normal_s(
    coefficients: NormalCoefficients,
    tokens: np.ndarray,
    hidden: np.ndarray,
    top_k: np.ndarray,
    experts: np.ndarray,
    ranks: np.ndarray,
    nodes: np.ndarray,
    sms: np.ndarray,
    *,
    node_limit: int | None = None,
    groups: tuple[int, int] | None = None,
) -> np.ndarray:
    """Seconds of a normal dispatch or combine; arguments and result as in ``low_latency_s``.

    Args:
        coefficients: Of this phase.
        tokens: Of one rank.
        hidden: Values in a token's vector.
        top_k: Experts per token.
        experts: Over all ranks.
        ranks: Over all nodes.
        nodes: Scale-up domains.
        sms: Streaming multiprocessors given to the kernel.
        node_limit: Nodes that a token may use, its own included.
        groups: Groups of experts, and how many of them a token chooses, instead. Groups lie on
            nodes whole (EPLB's hierarchical policy keeps them there); one node knows no groups.
    """
    c = coefficients
    tokens, sms, nodes = (np.asarray(x, float) for x in (tokens, sms, nodes))
    ranks = np.asarray(ranks, float)
    size = vector_bytes(c.phase, hidden)
    remote = 1 - 1 / nodes
    per_node = ranks / nodes
    if groups is not None and np.max(nodes) > 1:
        reached_nodes = expected_group_parts(top_k, experts, nodes, *groups) * remote
        reached_ranks = expected_group_parts(top_k, experts, ranks, *groups)
    else:
        reached_nodes = expected_parts(top_k, experts, nodes, node_limit) * remote
        # Within a node that is reached, its ranks share the token's experts there.
        limit = None if node_limit is None else int(node_limit * np.max(per_node))
        reached_ranks = expected_parts(top_k, experts, ranks, limit)
    sm_s = (
        tokens
        / sms
        * (
            c.token_s
            + c.token_s_per_byte * size
            + reached_ranks * (c.copy_s + c.copy_s_per_byte * size)
            + reached_nodes * (c.relay_s_per_byte or 0.0) * size
        )
    )
    link_s = tokens * reached_ranks * (1 - 1 / per_node) * size * c.link_s_per_byte
    rdma = 0.0 if c.rdma_s_per_byte is None else _over_nodes(c, nodes)
    rdma_s = tokens * reached_nodes * size * rdma
    launch_s = c.launch_s + c.launch_s_per_byte * size + (c.internode_s or 0.0) * np.log2(nodes)
    flow_s = p_norm(c.flow_overlap, sm_s, link_s, rdma_s)
    return _covered(c.nodes, nodes, p_norm(c.latency_overlap, launch_s, flow_s))


def _over_nodes(c: NormalCoefficients, nodes: np.ndarray) -> np.ndarray:
    """RDMA seconds per byte at the measured number of nodes that is next below, or the least."""
    pairs = [(n, value) for n, value in zip(c.nodes, c.rdma_s_per_byte or (), strict=True) if n > 1]
    below = np.searchsorted([n for n, _ in pairs], nodes, side="right") - 1
    return np.array([value for _, value in pairs])[np.maximum(below, 0)]


def _covered(measured: tuple[int, ...], nodes: np.ndarray, seconds: np.ndarray) -> np.ndarray:
    """NaN where the coefficients say nothing about that many nodes."""
    known = nodes >= min(measured)
    if max(measured) == 1:
        known &= nodes == 1
    return np.where(known, seconds, np.nan)


def p_norm(exponent: float, *parts: np.ndarray) -> np.ndarray:
    """(Σ xᵖ)^(1/p) of non-negative arrays that broadcast: their sum for 1, their maximum for ∞."""
    stacked = np.stack(np.broadcast_arrays(*parts))
    largest = stacked.max(axis=0)
    top = np.where(largest > 0, largest, 1.0)  # scaled: powers neither over- nor underflow
    return top * ((stacked / top) ** exponent).sum(axis=0) ** (1 / exponent)
