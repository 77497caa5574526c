"""Compiled loops that draw topics and experts.

Experts of a token are drawn one after another without replacement, each with probability
proportional to its weight among those left (Plackett–Luce). That is top-k of router logits
log(weight) + Gumbel noise, so the gates that belong to the choices follow from an exponential race:
expert e "arrives" at a time of rate ``probability[e]``, the first K arrivals are the choice in
order, and logit = −log(time).

Locality keeps the first j choices of the previous token and draws the others anew. Whatever the law
of j, this leaves the Plackett–Luce law of a token exactly as it is, so locality changes neither
loads nor affinity.

Random numbers are SplitMix64 (Steele, Lea, Flood 2014) seeded by (seed, layer, token): what a token
gets does not depend on how the work is cut into chunks.
"""

from __future__ import annotations

import numpy as np
from numba import njit

__all__ = ["alias_tables", "geometric_ratio", "sample_experts", "sample_topics", "stream_key"]

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_GATE_STREAM = np.uint64(0xD1B54A32D192ED03)
_RANK_STREAM = np.uint64(0xA0761D6478BD642F)
_LOW = np.uint64(0xFFFFFFFF)
_S11, _S27, _S30, _S31, _S32 = (np.uint64(n) for n in (11, 27, 30, 31, 32))
_ONE = np.uint64(1)
# Below this remaining probability, rejecting what is taken already costs more than one scan.
_SCAN_BELOW = 0.02


@njit(cache=True, nogil=True, inline="always")
def _mix(z: np.uint64) -> np.uint64:  # pragma: no cover - compiled
    z = (z ^ (z >> _S30)) * _MIX_1
    z = (z ^ (z >> _S27)) * _MIX_2
    return z ^ (z >> _S31)


@njit(cache=True, nogil=True, inline="always")
def _uniform(bits: np.uint64) -> float:  # pragma: no cover - compiled
    return np.float64(bits >> _S11) * 2.0**-53


def stream_key(seed: int, *labels: int) -> np.uint64:
    """A 64-bit key of its own for each seed and sequence of labels."""
    state = np.random.SeedSequence([seed, *labels]).generate_state(1, np.uint64)
    return np.uint64(state[0])


@njit(cache=True, nogil=True)
def alias_tables(
    probability: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:  # pragma: no cover - compiled
    """Alias tables (Vose 1991) of each row.

    Args:
        probability: [C, E] float64, rows sum to 1.

    Returns:
        Thresholds [C, E] uint32 and aliases [C, E] uint16.
    """
    contexts, experts = probability.shape
    threshold = np.full((contexts, experts), 0xFFFFFFFF, dtype=np.uint32)
    alias = np.empty((contexts, experts), dtype=np.uint16)
    small = np.empty(experts, dtype=np.int64)
    large = np.empty(experts, dtype=np.int64)
    for c in range(contexts):
        height = probability[c] * experts
        n_small = 0
        n_large = 0
        for e in range(experts):
            alias[c, e] = e
            if height[e] < 1.0:
                small[n_small] = e
                n_small += 1
            else:
                large[n_large] = e
                n_large += 1
        while n_small > 0 and n_large > 0:
            n_small -= 1
            low = small[n_small]
            high = large[n_large - 1]
            threshold[c, low] = np.uint32(height[low] * 4294967295.0)
            alias[c, low] = high
            height[high] -= 1.0 - height[low]
            if height[high] < 1.0:
                n_large -= 1
                small[n_small] = high
                n_small += 1
    return threshold, alias


def geometric_ratio(topics: int, effective: float) -> float:
    """The q for which weights 1, q, …, q^(Z − 1) of Z topics count as ``effective`` topics.

    Counted by participation, 1 / Σ share² = (1 + q) (1 − q^Z) / ((1 − q) (1 + q^Z)).
    """
    powers = np.arange(topics)
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        weights = middle**powers
        if weights.sum() ** 2 / (weights**2).sum() < effective:
            low = middle
        else:
            high = middle
    return high


@njit(cache=True, nogil=True)
def sample_topics(
    starts: np.ndarray,
    domain: np.ndarray,
    topics: int,
    ratio: float,
    keep: float,
    key: np.uint64,
    tokens: int,
) -> tuple[np.ndarray, np.ndarray]:  # pragma: no cover - compiled
    """Context of every token: a request keeps its topic with probability ``keep`` per token.

    Args:
        starts: [R] int64, first token of every request.
        domain: [R] int64, domain of every request.
        topics: Number of topics, equally likely over all requests.
        ratio: Each request ranks the topics at random; the next in rank is so many times as likely
            in it. 1 for equally likely.
        keep: Probability that a token has the topic of the one before it.
        key: Of the random stream.
        tokens: T.

    Returns:
        context [T] uint16 = domain · topics + topic, and continues [T] bool: the topic was kept.
    """
    context = np.empty(tokens, dtype=np.uint16)
    continues = np.zeros(tokens, dtype=np.bool_)
    ranking = np.arange(topics)
    tail = ratio**topics
    for r in range(starts.size):
        end = starts[r + 1] if r + 1 < starts.size else tokens
        topic = 0
        if ratio < 1.0:
            state = _mix((key ^ _RANK_STREAM) + np.uint64(starts[r]) * _GAMMA)
            for z in range(topics):
                ranking[z] = z
            for z in range(topics - 1, 0, -1):
                state += _GAMMA
                other = int(_uniform(_mix(state)) * (z + 1))
                ranking[z], ranking[other] = ranking[other], ranking[z]
        for t in range(starts[r], end):
            state = _mix(key ^ _mix(np.uint64(t) * _GAMMA))
            if t > starts[r] and _uniform(_mix(state + _GAMMA)) < keep:
                continues[t] = True
            else:
                at = _uniform(_mix(state + _GAMMA + _GAMMA))
                if ratio < 1.0:
                    rank = int(np.log1p(-at * (1.0 - tail)) / np.log(max(ratio, 1e-12)))
                    topic = ranking[min(rank, topics - 1)]
                else:
                    topic = int(at * topics)
            context[t] = domain[r] * topics + topic
    return context, continues


@njit(cache=True, nogil=True)
def sample_experts(  # noqa: C901, PLR0913 - one pass over tokens, kept in registers
    first_token: int,
    context: np.ndarray,
    continues: np.ndarray,
    topics: int,
    probability: np.ndarray,
    threshold: np.ndarray,
    alias: np.ndarray,
    group_mass: np.ndarray,
    groups_per_token: int,
    keep: float,
    key: np.uint64,
    experts_before: np.ndarray,
    times_before: np.ndarray,
    routing: np.ndarray,
    gates: np.ndarray,
    loads: np.ndarray,
) -> None:  # pragma: no cover - compiled
    """Draw the experts of a run of tokens in one layer.

    Args:
        first_token: Index of the first of the N tokens in the trace.
        context: [N] uint16.
        continues: [N] bool, the token has the topic of the one before it in the same request.
        topics: Contexts per domain.
        probability: [C, E] float64, see :class:`~moesim.traces.synthetic_tables.LayerTables`.
        threshold: [C, E] uint32.
        alias: [C, E] uint16.
        group_mass: [C, groups] float64.
        groups_per_token: At most so many groups of experts serve one token.
        keep: Each further choice of the token before is kept with this probability.
        key: Of the layer's random stream.
        experts_before: [K] int64, choices of the token before; updated for the next run.
        times_before: [K] float64, their arrival times; updated for the next run.
        routing: [N, K] uint8 or uint16, receives the choices, largest gate first.
        gates: [N, K] float32, receives the gates (summing to 1), or [0, K].
        loads: [domains, E] int64, choices are added to it.
    """
    tokens, top_k = routing.shape
    experts = probability.shape[1]
    groups = group_mass.shape[1]
    group_size = experts // groups
    limited = groups_per_token < groups
    with_gates = gates.shape[0] > 0
    taken_by = np.full(experts, -1, dtype=np.int64)
    wide_experts = np.uint64(experts)
    for i in range(tokens):
        t = first_token + i
        c = context[i]
        domain = c // topics
        seed = _mix(key ^ _mix(np.uint64(t) * _GAMMA))
        state = seed
        kept = 0
        if continues[i]:
            while kept < top_k:
                state += _GAMMA
                if _uniform(_mix(state)) >= keep:
                    break
                kept += 1
        left = 1.0
        open_groups = groups_per_token
        groups_used = np.uint64(0)
        for j in range(top_k):
            closed = limited and open_groups == 0
            if j < kept:
                e = experts_before[j]
            elif left > _SCAN_BELOW:
                while True:
                    state += _GAMMA
                    bits = _mix(state)
                    e = np.int64(((bits >> _S32) * wide_experts) >> _S32)
                    if (bits & _LOW) >= np.uint64(threshold[c, e]):
                        e = np.int64(alias[c, e])
                    if taken_by[e] == t:
                        continue
                    if closed and not (groups_used >> np.uint64(e // group_size)) & _ONE:
                        continue
                    break
            else:
                left = 0.0
                for x in range(experts):
                    if taken_by[x] != t and (
                        not closed or (groups_used >> np.uint64(x // group_size)) & _ONE
                    ):
                        left += probability[c, x]
                state += _GAMMA
                target = _uniform(_mix(state)) * left
                e = -1
                for x in range(experts):
                    if taken_by[x] != t and (
                        not closed or (groups_used >> np.uint64(x // group_size)) & _ONE
                    ):
                        e = x
                        target -= probability[c, x]
                        if target < 0:
                            break
            if with_gates and j >= kept:
                arrival = -np.log1p(-_uniform(_mix((seed ^ _GATE_STREAM) + np.uint64(j) * _GAMMA)))
                times_before[j] = arrival / left + (times_before[j - 1] if j > 0 else 0.0)
            taken_by[e] = t
            left -= probability[c, e]
            if limited:
                group = np.uint64(e // group_size)
                if not (groups_used >> group) & _ONE:
                    groups_used |= _ONE << group
                    open_groups -= 1
                    if open_groups == 0:
                        # From here on only the groups in use can be drawn from.
                        left = 0.0
                        for g in range(groups):
                            if (groups_used >> np.uint64(g)) & _ONE:
                                left += group_mass[c, g]
                        for x in range(j):
                            left -= probability[c, experts_before[x]]
                        left -= probability[c, e]
            experts_before[j] = e
            routing[i, j] = e
            loads[domain, e] += 1
        if with_gates:
            total = 0.0
            for j in range(top_k):
                total += 1.0 / max(times_before[j], 1e-300)
            for j in range(top_k):
                gates[i, j] = 1.0 / max(times_before[j], 1e-300) / total
