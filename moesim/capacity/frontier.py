"""Throughput against interactivity: what no other layout and batch beats in both."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moesim.capacity.candidates import Candidate
from moesim.capacity.deployments import Plan, Played, play
from moesim.capacity.estimate import Curve
from moesim.capacity.question import Question
from moesim.capacity.search import Answer

__all__ = ["Crossover", "crossovers", "frontier", "undominated"]

MOST_POINTS = 12
"""Points of the frontier that are played."""


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
        for _, _, candidate, concurrency in points
        if (one := play(Plan(candidate, 1), question, concurrency)) is not None
    ]
    played += found.kept
    played = [one for one in played if one.tpot_s > 0 and _starts_in_time(one.ttft_s, question)]
    if not played:
        return []
    rates = np.array([one.tokens_per_s_per_device for one in played])
    users = np.array([1 / one.tpot_s for one in played])
    return [played[place] for place in undominated(rates, users)]


def _points(found: Answer) -> list[tuple[float, float, Candidate, float]]:
    """Tokens per second per device and per user, by replica and concurrency, estimated."""
    question = found.question
    points = []
    for candidate, curve in found.curves:
        rate = curve.requests_per_s * question.osl / candidate.devices
        for place, concurrency in enumerate(curve.concurrency):
            if _starts_in_time(float(curve.ttft_s[place]), question):
                user = 1 / float(curve.tpot_s[place])
                points.append((float(rate[place]), user, candidate, float(concurrency)))
    return points


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
