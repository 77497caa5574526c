"""Tokens of every expert slot in some draws of a step, from a named distribution or a trace.

Named distributions:

``balanced``
    Every expert gets the same number of tokens, as near as whole tokens allow; where there are
    fewer token copies than experts, they are spread evenly over the devices.
``uniform``
    Every token draws its experts evenly and independently.
``zipf:S``
    The expert of rank r is drawn with probability ∝ r^-S; ranks are in random order.
``power-law:A``
    Each expert draws a weight from x^-A on [1, 0.8 tokens], as the benchmarks behind NVIDIA's
    measured tables do (collector/helper of ai-dynamo/aiconfigurator 0.12).

The order of experts is random in every draw, so that the slowest device is the expected one
without placement. With redundant slots, the likeliest experts get them and slots are packed so that
every device expects about as much (as EPLB does from past loads). A draw stands for one layer of
one step.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from heapq import heapify, heappop, heappush, heapreplace
from math import ceil

import numpy as np

from moesim.errors import UsageError
from moesim.model import ModelSpec

__all__ = [
    "DRAWS",
    "Distribution",
    "draw_layer_tokens",
    "draw_slot_tokens",
    "layer_tokens",
    "pack_slots",
    "parse_distribution",
]

DRAWS = 8
"""Draws per step: the mean of the slowest device then errs by about a third of its own spread."""

NAMES = ("balanced", "uniform", "zipf", "power-law")


@dataclass(frozen=True)
class Distribution:
    """A named distribution of tokens over experts."""

    name: str
    exponent: float = 0.0

    def __str__(self) -> str:
        return f"{self.name}:{self.exponent:g}" if self.name in ("zipf", "power-law") else self.name


def parse_distribution(text: str) -> Distribution:
    """A distribution by name.

    Raises:
        UsageError: If there is none of that name, or its exponent is no number of at least 0.
    """
    name, _, number = text.partition(":")
    if name not in NAMES or (name in ("zipf", "power-law")) != bool(number):
        raise UsageError(
            f"--routing {text!r} is no distribution we know\n"
            "fix: choose from balanced, uniform, zipf:S or power-law:A, such as power-law:1.2"
        )
    if not number:
        return Distribution(name)
    if not re.fullmatch(r"\d{1,2}(\.\d{1,6})?", number):
        raise UsageError(
            f"--routing {text!r}: the exponent must be a number from 0 to 99\n"
            f"fix: pass e.g. {name}:1.2"
        )
    return Distribution(name, float(number))


def layer_tokens(model: ModelSpec, tokens: int) -> int:
    """Tokens that pass a layer: all, or fewer where some skip it, or more where all pass twice."""
    share = model.variant.token_share
    return tokens if share == 1 else max(1, ceil(tokens * share - 1e-9))


def draw_layer_tokens(
    model: ModelSpec,
    distribution: Distribution,
    tokens: int,
    ranks: int,
    seed: int,
    redundant: int = 0,
) -> np.ndarray:
    """:func:`draw_slot_tokens` of one round of one MoE layer of a model; none in a dense model.

    Args:
        model: Experts, copies per token, groups that get equally many.
        distribution: Of tokens over experts.
        tokens: Of the expert-parallel group, in the step.
        ranks: R.
        seed: Same seed, same draws.
        redundant: Expert slots beyond one for each expert, over all ranks.
    """
    if not model.moe_layers:
        return np.zeros((1, ranks, 0))
    groups = model.routing_groups if model.variant.equal_groups else 1
    tokens, copies = layer_tokens(model, tokens), model.copies_per_token
    top_k = model.top_k if copies == model.top_k else copies
    return draw_slot_tokens(
        distribution, tokens, top_k, model.experts, ranks, seed, groups, redundant
    )


@lru_cache(maxsize=4096)
def draw_slot_tokens(
    distribution: Distribution,
    tokens: int,
    top_k: float,
    experts: int,
    ranks: int,
    seed: int,
    groups: int = 1,
    redundant: int = 0,
) -> np.ndarray:
    """[W, R, S / R] float64 tokens of the slots of each of R ranks; W is 1 for ``balanced``.

    Draws add up to ``tokens · top_k``, rounded. Copies of an expert share its tokens evenly.

    Args:
        distribution: Of tokens over experts.
        tokens: Of the expert-parallel group.
        top_k: Experts per token, mean.
        experts: E.
        ranks: R, divides S = E + redundant.
        seed: Same seed, same draws.
        groups: Of experts in order; every token chooses equally many of each.
        redundant: Slots beyond one for each expert; none with groups.
    """
    slots = experts + redundant
    if groups > 1:
        own, size = top_k / groups, experts // groups
        drawn = [
            draw_slot_tokens(distribution, tokens, own, size, 1, seed + group)
            for group in range(groups)
        ]
        found = np.concatenate(drawn, axis=-1).reshape(-1, ranks, experts // ranks)
        found.setflags(write=False)
        return found
    copies = round(tokens * top_k)
    if distribution.name == "balanced":
        counts = np.full(slots, copies // slots)
        # What is left over goes round the ranks.
        order = np.arange(slots).reshape(ranks, -1).T.ravel()
        counts[order[: copies % slots]] += 1
        found = counts[None].astype(float)
    else:
        rng = np.random.default_rng((seed, tokens, ceil(top_k), experts))
        draws = []
        for _ in range(DRAWS):
            probability = _probability(distribution, rng, tokens, top_k, experts)
            counts = _capped(rng.multinomial(copies, probability), probability, tokens)
            if redundant:
                held = pack_slots(probability, slots, ranks)
                draws.append((counts / np.bincount(held, minlength=experts))[held])
            else:
                draws.append(counts.astype(float))
        found = np.stack(draws)
    result = found.reshape(len(found), ranks, slots // ranks)
    result.setflags(write=False)
    return result


def pack_slots(load: np.ndarray, slots: int, ranks: int) -> np.ndarray:
    """The expert of every slot, rank by rank.

    Each further slot goes to the expert with the most load per slot; then slots go, heaviest first,
    to the rank with the least load that has room.

    Args:
        load: [E] expected of every expert.
        slots: S ≥ E.
        ranks: R, divides S.

    Returns:
        [S] experts, S / R for each rank in turn.
    """
    copies = np.ones(len(load), np.int64)
    heaviest = [(-value, expert) for expert, value in enumerate(load.tolist())]
    heapify(heaviest)
    for _ in range(slots - len(load)):
        expert = heaviest[0][1]
        copies[expert] += 1
        heapreplace(heaviest, (-load[expert] / copies[expert], expert))
    held = np.repeat(np.arange(len(load)), copies)
    each = (load / copies)[held]
    room = [(0.0, rank) for rank in range(ranks)]
    chosen: list[list[int]] = [[] for _ in range(ranks)]
    for slot in np.argsort(-each, kind="stable"):
        total, rank = heappop(room)
        chosen[rank].append(int(held[slot]))
        if len(chosen[rank]) < slots // ranks:
            heappush(room, (total + each[slot], rank))
    return np.array(chosen).ravel()


def _probability(
    distribution: Distribution, rng: np.random.Generator, tokens: int, top_k: float, experts: int
) -> np.ndarray:
    """[E] with which a token copy goes to every expert, in one draw."""
    if distribution.name == "power-law":
        weight = _power_law(rng, distribution.exponent, tokens, top_k, experts)
    else:
        weight = np.arange(1, experts + 1) ** -distribution.exponent
        rng.shuffle(weight)
    return weight / weight.sum()


def _power_law(
    rng: np.random.Generator, exponent: float, tokens: int, top_k: float, experts: int
) -> np.ndarray:
    """[E] weights out of x^-A by the inverse of its distribution function."""
    least, most = (0.01, 2.0) if tokens * top_k <= experts else (1.0, max(0.8 * tokens, 1.0 + 1e-9))
    share = rng.random(experts)
    power = 1 - exponent
    if abs(power) < 1e-9:
        return least * (most / least) ** share
    return (least**power + share * (most**power - least**power)) ** (1 / power)


def _capped(counts: np.ndarray, probability: np.ndarray, tokens: int) -> np.ndarray:
    """Counts of at most ``tokens`` each; what is over goes to the others by their probability."""
    while (over := int(np.maximum(counts - tokens, 0).sum())) > 0:
        counts = np.minimum(counts, tokens)
        room = tokens - counts
        free = np.where(room > 0, np.maximum(probability, 1e-12), 0.0)
        share = np.minimum(np.floor(free / free.sum() * over).astype(np.int64), room)
        if share.sum() == 0:
            # Fewer than one each: one by one to the likeliest.
            order = np.argsort(-free, kind="stable")[: min(over, int((room > 0).sum()))]
            share[order] = 1
        counts = counts + share
        left = over - int(share.sum())
        if left > 0:
            counts[np.argmax(tokens - counts)] += left
    return counts
