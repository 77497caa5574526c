"""Throughput against interactivity: what no other layout and batch beats in both."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil

import numpy as np

from moesim.capacity.candidates import Candidate
from moesim.capacity.deployments import Plan, Played, play
from moesim.capacity.estimate import Curve, decode_curve
from moesim.capacity.question import Question
from moesim.capacity.search import Answer, prefill_workers

__all__ = ["Crossover", "crossovers", "frontier", "undominated"]

MOST_POINTS = 12
"""Points of the frontier that are played."""

MOST_DECODERS = 4
"""Of a point, beside prefill workers: enough for ratios of both."""

BUSY = 0.9
"""Share of their time that prefill workers may work without a long queue."""


@dataclass(frozen=True)
class Crossover:
    """Where spreading experts overtakes cutting everything, on replicas of one size.

    Attributes:
        device: Profile.
        devices: Of a replica.
        tensor: The layout that cuts all.
        expert: The layout that spreads attention by sequence, and experts whole.
        concurrency: Requests in flight per replica from which the latter serves more per second;
            None if it never does within memory, 1 if it always does.
    """

    device: str
    devices: int
    tensor: str
    expert: str
    concurrency: float | None


def undominated(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """[K] places of points that no other beats in one without losing in the other.

    Args:
        first: [N], more is better.
        second: [N], more is better.

    Returns:
        Ascending in ``second``.
    """
    order = np.lexsort((-second, -first))
    best = -np.inf
    kept = []
    for place in order:
        if second[place] > best:
            kept.append(int(place))
            best = second[place]
    return np.array(kept, np.int64)


def frontier(found: Answer) -> list[Played]:
    """Points of the best curves, played, and deployments that keep the targets.

    What misses the target of the time to first token is left out: it may have any throughput.
    Ascending in tokens per second of one user.
    """
    question = found.question
    points = _points(found)
    if points:
        rates, users = (np.array(column) for column in list(zip(*points, strict=True))[:2])
        places = undominated(rates, users)
        # Evenly over the logarithm of a user's rate.
        logs = np.log(users[places])
        even = np.linspace(logs[0], logs[-1], MOST_POINTS)
        chosen = np.unique(np.abs(logs[:, None] - even).argmin(axis=0))
        points = [points[place] for place in places[chosen]]
    played = [
        one
        for _, _, plan, concurrency in points
        if (one := play(plan, question, concurrency)) is not None
    ]
    played += found.kept
    played = [one for one in played if one.tpot_s > 0 and _starts_in_time(one.ttft_s, question)]
    if not played:
        return []
    rates = np.array([one.tokens_per_s_per_device for one in played])
    users = np.array([1 / one.tpot_s for one in played])
    return [played[place] for place in undominated(rates, users)]


_Point = tuple[float, float, Plan, float]
"""Tokens per second per device and per user, of a deployment and requests in flight; estimated."""


def _points(found: Answer) -> list[_Point]:
    points: list[_Point] = []
    if "aggregated" in found.question.modes:
        points += _one_pool(found)
    if "disaggregated" in found.question.modes:
        points += _two_pools(found)
    return points


def _one_pool(found: Answer) -> Iterator[_Point]:
    """Every replica at every concurrency."""
    question = found.question
    for candidate, curve in found.curves:
        rate = curve.requests_per_s * question.osl / candidate.devices
        for place, concurrency in enumerate(curve.concurrency):
            if _starts_in_time(float(curve.ttft_s[place]), question):
                user = 1 / float(curve.tpot_s[place])
                yield float(rate[place]), user, Plan(candidate, 1), float(concurrency)


def _two_pools(found: Answer) -> Iterator[_Point]:
    """Every decode worker at every concurrency, fed by enough of the best prefill workers."""
    question = found.question
    firsts: dict[str, tuple[Candidate, float, float]] = {}
    for one in prefill_workers(found.candidates, question):
        firsts.setdefault(one[0].machine.device.name, one)
    for second in found.candidates:
        curve = decode_curve(second, question)
        if curve is not None and second.machine.device.name in firsts:
            first, rate, alone_s = firsts[second.machine.device.name]
            for place, concurrency in enumerate(curve.concurrency):
                per_s, tpot_s = float(curve.requests_per_s[place]), float(curve.tpot_s[place])
                counts = _matched(question, (first.devices, rate), (second.devices, per_s))
                if counts is None:
                    continue
                decoders, prefills = counts
                plan = Plan(second, decoders, first, prefills)
                tokens = decoders * per_s * question.osl
                # Little's law: those in prefill are in flight too.
                in_flight = decoders * (float(concurrency) + per_s * alone_s)
                yield tokens / plan.devices, 1 / tpot_s, plan, in_flight


def _matched(
    question: Question, prefill: tuple[int, float], decode: tuple[int, float]
) -> tuple[int, int] | None:
    """Decode and prefill workers on fewest devices per request, within those that there are."""
    best = None
    for decoders in range(1, MOST_DECODERS + 1):
        prefills = ceil(decoders * decode[1] / prefill[1] / BUSY)
        devices = decoders * decode[0] + prefills * prefill[0]
        if devices > question.max_devices:
            break
        if best is None or devices / decoders < best[0]:
            best = devices / decoders, (decoders, prefills)
    return None if best is None else best[1]


def _starts_in_time(ttft_s: float, question: Question) -> bool:
    return question.ttft_s is None or ttft_s <= question.ttft_s


def crossovers(found: Answer) -> list[Crossover]:
    """For every device and size of replica that has both layouts."""
    pairs: dict[tuple[str, int], dict[str, tuple[Candidate, Curve]]] = {}
    for candidate, curve in found.curves:
        layout = candidate.layout
        if layout.pp > 1 or layout.devices == 1 or layout.redundant:
            continue
        key = (candidate.machine.device.name, layout.devices)
        if layout.dp == 1 and layout.ep == 1:
            pairs.setdefault(key, {}).setdefault("tensor", (candidate, curve))
        elif layout.dp == layout.ep == layout.devices:
            pairs.setdefault(key, {}).setdefault("expert", (candidate, curve))
    result = []
    for (device, devices), both in sorted(pairs.items()):
        if len(both) < 2:
            continue
        (tensor, slow), (expert, fast) = both["tensor"], both["expert"]
        most = min(slow.concurrency[-1], fast.concurrency[-1])
        at = slow.concurrency[slow.concurrency <= most]
        ahead = [n for n in at if fast.at(float(n))[2] > slow.at(float(n))[2]]
        first = float(ahead[0]) if ahead else None
        result.append(Crossover(device, devices, str(tensor.layout), str(expert.layout), first))
    return result
