"""Rows that are no measurement of what their key says, found without any cost model.

Seven rules, each named, counted and shown with examples. What they rest on is that a disturbed
run (another process, a throttled clock) only adds time, and that one engine version behaves alike
on systems of one kind. Thresholds come from the distributions in aiconfigurator-core 0.12.0:

- Repeats of one key differ by 0.8 % in the median, 4 % at p90 and 13 % at p99 (245 000 pairs).
- Over 275 000 keys that H100 and H200 share, the ratio H100/H200 lies in 0.84–1.51 from p1 to
  p99. Beyond that the histogram thins out to a gap at twice the median ratio (100 rows in
  2.0–2.25, 82 in 2.25–2.5) and swells again at 3 to 7, the disturbed runs. ``FACTOR`` = 2 lies in
  that gap.

What siblings share is kept, however odd: the cutlass MoE of TensorRT-LLM 1.3.0rc20 has runs of up
to five token counts that take 4 to 10 times as long, at power-law loads and at the same places on
H100 and H200 (343 rows). That is the kernel's own, probably its choice of tactic.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from moesim.calibrate.frame import Frame, concatenate, dense_groups
from moesim.calibrate.operators import OPERATORS, Operator
from moesim.calibrate.partitions import SERIES_FACTOR, slower_than_parts

__all__ = ["RULES", "Finding", "HygieneReport", "clean", "repeat_noise"]

FACTOR = 2.0
"""A row this many times slower than its siblings or its neighbours is disturbed."""
TABLE_FACTOR = 3.0
"""A table whose median is this far from its siblings was measured under other conditions."""
SPREADS = 6.0
"""Where honest ratios spread widely (unlike systems), a row must lie this many robust standard
deviations off; 6 is far beyond the 3.7 at which a normal tail holds one row in 5 000."""
MIN_COMMON = 50
"""Keys that two tables must share before their medians are compared."""
MIN_GROUP = 20
"""Rows that a reference ratio needs."""
RUN = 4
"""Longest run of neighbouring points that the series rule takes for a disturbance."""
EXAMPLES = 3

RULES = {
    "non-positive": "latency is not a positive finite number",
    "device": "the row names the GPU of another system than its folder",
    "repeat": "the key occurs more than once; the row of median latency stays",
    "broken-table": f"the table's median is {TABLE_FACTOR:g} times off all its sibling tables",
    "sibling-outlier": f"{FACTOR:g} times slower than the same key on sibling systems",
    "spike": f"{FACTOR:g} times slower than the points before and after it in its series",
    "untuned": f"the series is {SERIES_FACTOR:g} times slower than its own parts allow",
}
"""Name of each rule, in the order they run, and what a dropped row did."""


@dataclass(frozen=True)
class Finding:
    """What one rule dropped.

    Attributes:
        rule: A name out of ``RULES``.
        rows: Indices into the frame that came in, ``[dropped] int64``.
        by_table: Dropped rows by ``system/engine/version``.
        examples: The worst few rows, decoded, with ``times_too_slow`` where the rule has one.
    """

    rule: str
    rows: np.ndarray
    by_table: dict[str, int]
    examples: tuple[dict[str, Any], ...]

    def to_dict(self) -> dict[str, Any]:
        """For JSON; the row indices are left out."""
        return {
            "rule": self.rule,
            "meaning": RULES[self.rule],
            "rows": len(self.rows),
            "by_table": self.by_table,
            "examples": list(self.examples),
        }


@dataclass(frozen=True)
class HygieneReport:
    """Everything that was dropped, and what was noticed and kept."""

    rows: int
    kept: int
    findings: tuple[Finding, ...]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """For JSON; ``faulty_share`` leaves out repeats, which are no fault."""
        faulty = sum(len(found.rows) for found in self.findings if found.rule != "repeat")
        return {
            "rows": self.rows,
            "kept": self.kept,
            "dropped_share": 1 - self.kept / self.rows if self.rows else 0.0,
            "faulty_share": faulty / self.rows if self.rows else 0.0,
            "rules": [finding.to_dict() for finding in self.findings],
            "notes": list(self.notes),
        }


def clean(frame: Frame, siblings: Frame | None = None) -> tuple[Frame, HygieneReport]:
    """Drop the rows that break a rule.

    Args:
        frame: Rows of one operator, of any tables.
        siblings: Rows of further systems or versions that only serve for comparison.

    Returns:
        The rows that stay, in their order, and the report.
    """
    spec = OPERATORS[frame.operator]
    whole = frame if siblings is None else concatenate([frame, siblings])
    alive = np.ones(len(whole), bool)
    scores: dict[str, np.ndarray] = {}
    notes: list[str] = list(frame.notes)

    def drop(rule: str, score: np.ndarray) -> None:
        """Take out the rows whose score is above zero."""
        alive[score > 0] = False
        scores[rule] = score

    latency = whole["latency_s"]
    bad = ~np.isfinite(latency) | ((latency < 0) if spec.may_be_zero else (latency <= 0))
    drop("non-positive", bad.astype(float))
    drop("device", _wrong_device(whole) * alive)
    drop("repeat", _on(alive, whole, lambda part: _repeats(part, spec)))
    positive = alive & (np.nan_to_num(latency, nan=0.0) > 0)  # ratios need logarithms
    broken, table_notes = _broken_tables(whole.take(positive), spec)
    notes += table_notes
    drop("broken-table", _spread(positive, broken))
    positive &= alive
    slower, compared = _against_siblings(whole.take(positive), spec)
    drop("sibling-outlier", _spread(positive, slower))
    compared = _spread(positive, compared.astype(float)) > 0
    positive &= alive
    spikes = _spread(positive, _spikes(whole.take(positive), spec))
    # A shape that siblings show as well is the kernel's own.
    confirmed = np.count_nonzero((spikes[: len(frame)] > 0) & compared[: len(frame)])
    if confirmed:
        notes.append(f"{confirmed} rows look like spikes, but their siblings agree: kept")
    drop("spike", np.where(compared, 0.0, spikes))
    positive &= alive
    if {"moe_tp", "moe_ep"} <= set(whole.columns):
        drop("untuned", _spread(positive, slower_than_parts(whole.take(positive))))
    else:
        drop("untuned", np.zeros(len(whole)))

    count = len(frame)
    findings = tuple(_finding(frame, rule, score[:count]) for rule, score in scores.items())
    kept = frame.take(alive[:count])
    return kept, HygieneReport(count, len(kept), findings, tuple(notes))


def repeat_noise(frame: Frame) -> dict[str, float]:
    """How far repeats of one measurement lie apart: the noise that no model can beat.

    Returns:
        ``keys`` that were measured more than once and the median, p90 and p99 of slowest over
        fastest minus one; empty if no key repeats.
    """
    spec = OPERATORS[frame.operator]
    ids = frame.groups(_identity(spec, frame))
    order = np.lexsort((frame["latency_s"], ids))
    starts, ends = _runs(ids[order])
    many = (ends - starts > 1) & (frame["latency_s"][order][starts] > 0)
    if not many.any():
        return {}
    latency = frame["latency_s"][order]
    spread = latency[ends[many] - 1] / latency[starts[many]] - 1
    quantiles = np.quantile(spread, [0.5, 0.9, 0.99])
    names = ("median", "p90", "p99")
    found = {name: float(value) for name, value in zip(names, quantiles, strict=True)}
    return {"keys": float(many.sum())} | found


def _identity(spec: Operator, frame: Frame, *without: str) -> tuple[str, ...]:
    """Columns that tell measurements apart, less some."""
    names = (*spec.key, "kernel", "system", "engine", "version")
    return tuple(name for name in names if name not in without and name in frame.columns)


def _wrong_device(frame: Frame) -> np.ndarray:
    """1.0 where the device's name has the model word of another system and not its own's.

    A system's model word is the first part of its name: ``h200`` of ``h200_sxm``.
    """
    words = {system: system.partition("_")[0] for system in frame.labels["system"]}
    known = {"a100", "a30", "b200", "b300", "gb200", "gb300", "h100", "h200", "l4", "l40s"}
    known |= set(words.values())
    wrong = np.zeros((len(frame.labels["system"]), len(frame.labels["device"])))
    for i, system in enumerate(frame.labels["system"]):
        for j, device in enumerate(frame.labels["device"]):
            named = set(device.lower().replace("-", " ").split()) & known
            wrong[i, j] = bool(named) and words[system] not in named
    return wrong[frame["system"], frame["device"]]


def _repeats(frame: Frame, spec: Operator) -> np.ndarray:
    """1.0 for every row of a repeated key but the (lower) median one."""
    ids = frame.groups(_identity(spec, frame))
    order = np.lexsort((frame["latency_s"], ids))
    starts, ends = _runs(ids[order])
    score = np.ones(len(frame))
    score[order[(starts + ends - 1) // 2]] = 0.0
    return score


def _broken_tables(frame: Frame, spec: Operator) -> tuple[np.ndarray, list[str]]:
    """How many times off a row's table is, for tables beyond ``TABLE_FACTOR``; else 0.

    Tables of one engine are compared key by key (the kernel included), where they share the system
    or the version. Between two systems the usual ratio is the median over all pairs of their
    tables, so a slower GPU is not a broken table.
    """
    tables = frame.groups(("system", "engine", "version"))
    count = int(tables.max()) + 1 if len(frame) else 0
    first = np.zeros(count, np.int64)
    first[tables] = np.arange(len(frame))
    system, engine, version = (frame[name][first] for name in ("system", "engine", "version"))
    keys = frame.groups(_identity(spec, frame, "system", "engine", "version"))
    log_s = np.log(frame["latency_s"])
    members = [np.flatnonzero(tables == table) for table in range(count)]
    ratios: dict[tuple[int, int], float] = {}
    for a, b in combinations(range(count), 2):
        if engine[a] == engine[b] and (system[a] == system[b] or version[a] == version[b]):
            left, right = _matched(keys[members[a]], keys[members[b]])
            if len(left) >= MIN_COMMON:
                ratio = log_s[members[a][left]] - log_s[members[b][right]]
                ratios[a, b] = float(np.median(ratio))
    score, notes = np.zeros(len(frame)), []
    off, alone = _off_tables(ratios, system)
    for table, value in off.items():
        score[members[table]] = np.exp(abs(value))
    for a, b in alone:
        notes.append(
            f"{_table_name(frame, first[a])} and {_table_name(frame, first[b])} differ by a factor "
            f"of {np.exp(abs(ratios[a, b])):.1f}, which is not usual between their systems, and "
            "nothing tells which is right: both kept"
        )
    return score, notes


def _off_tables(
    ratios: dict[tuple[int, int], float], system: np.ndarray
) -> tuple[dict[int, float], list[tuple[int, int]]]:
    """Tables off from all of theirs (log factor), and pairs that nothing else decides.

    From all: two systems may honestly differ more in one engine than in others, but then a table
    still agrees with its like. One at a time, the slowest first, since a broken table also blurs
    what is usual between two systems; a table with a single comparison is never blamed.
    """
    off: set[int] = set()
    limit = np.log(TABLE_FACTOR)
    while True:
        kept = {pair: ratio for pair, ratio in ratios.items() if not off & set(pair)}
        usual = _usual_ratios(kept, system)
        far = {
            table: float(np.median(found))
            for table, found in _off_by(kept, usual, system).items()
            if len(found) > 1 and (min(found) > limit or max(found) < -limit)
        }
        if not far:
            break
        off.add(max(far, key=lambda table: far[table]))
    # How far they are off is told by the tables that stay.
    seen = {pair: ratio for pair, ratio in ratios.items() if len(off & set(pair)) == 1}
    factors = {t: float(np.median(found)) for t, found in _off_by(seen, usual, system).items()}
    contradictions = [
        (a, b)
        for (a, b), ratio in kept.items()
        if abs(ratio - _expected(usual, system, a, b)) > limit
    ]
    return {table: factors.get(table, limit) for table in off}, contradictions


def _off_by(
    ratios: dict[tuple[int, int], float],
    usual: dict[tuple[int, int], float],
    system: np.ndarray,
) -> dict[int, list[float]]:
    """Log factors by which each table is off from those that it is compared with."""
    found: dict[int, list[float]] = {}
    for (a, b), ratio in ratios.items():
        deviation = ratio - _expected(usual, system, a, b)
        found.setdefault(a, []).append(deviation)
        found.setdefault(b, []).append(-deviation)
    return found


def _usual_ratios(
    ratios: dict[tuple[int, int], float], system: np.ndarray
) -> dict[tuple[int, int], float]:
    """Median log ratio of each two systems over all pairs of their tables."""
    found: dict[tuple[int, int], list[float]] = {}
    for (a, b), ratio in ratios.items():
        one, other = int(system[a]), int(system[b])
        if one != other:
            found.setdefault((one, other), []).append(ratio)
            found.setdefault((other, one), []).append(-ratio)
    return {pair: float(np.median(values)) for pair, values in found.items()}


def _expected(usual: dict[tuple[int, int], float], system: np.ndarray, a: int, b: int) -> float:
    """The log ratio that two tables should have: none on one system."""
    return usual.get((int(system[a]), int(system[b])), 0.0)


def _against_siblings(frame: Frame, spec: Operator) -> tuple[np.ndarray, np.ndarray]:
    """How many times too slow each row is against the same key on other systems, or 0.

    The reference is the median ratio of the two systems over rows of the same engine, version,
    kernel, type and point of the series; the row must be off by ``FACTOR``, and by ``SPREADS``
    where such ratios spread widely. With several siblings, at least half must agree.

    Returns:
        The factor (0 where nothing is wrong), and whether a row had a sibling.
    """
    keys = frame.groups(_identity(spec, frame, "system"))
    alike = [name for name in ("engine", "version", "kernel", "dtype", spec.series)]
    alike = [name for name in alike if name in frame.columns]
    coarse = frame.groups(alike[:3])
    fine = frame.groups(alike)
    log_s = np.log(frame["latency_s"])
    votes, seen = np.zeros(len(frame)), np.zeros(len(frame))
    worst = np.zeros(len(frame))
    systems = [np.flatnonzero(frame["system"] == code) for code in np.unique(frame["system"])]
    for one, other in combinations(systems, 2):
        left, right = _matched(keys[one], keys[other])
        left, right = one[left], other[right]
        ratio = log_s[left] - log_s[right]
        centre, spread, enough = _group_centres(ratio, fine[left])
        centre_all, spread_all, enough_all = _group_centres(ratio, coarse[left])
        centre = np.where(enough, centre, centre_all)
        spread = np.where(enough, spread, spread_all)
        judged = enough | enough_all
        off = np.where(judged, ratio - centre, 0.0)
        far = np.abs(off) > np.maximum(np.log(FACTOR), SPREADS * spread)
        for rows, sign in ((left, 1.0), (right, -1.0)):
            slow = far & (sign * off > 0)
            seen[rows] += judged
            votes[rows] += slow
            worst[rows] = np.maximum(worst[rows], np.where(slow, np.exp(np.abs(off)), 0.0))
    guilty = (votes > 0) & (2 * votes >= seen)
    return np.where(guilty, worst, 0.0), seen > 0


def _spikes(frame: Frame, spec: Operator) -> np.ndarray:
    """How many times too slow a point is within its series, or 0; needs no sibling.

    Two ways to see it: the line through the nearest points (all of the pairs before and after
    must agree), which finds single spikes on a slope; and a point slower than both an earlier and
    a later one at most ``RUN`` + 1 places apart, which finds runs. The ends are not judged.
    """
    groups = frame.groups(_identity(spec, frame, spec.series))
    order = np.lexsort((frame[spec.series], groups))
    ids = groups[order]
    y = np.log(frame["latency_s"][order])
    x = np.log(np.maximum(frame[spec.series][order], 0.5))  # a series may start at 0
    near: list[np.ndarray] = []
    humps = np.zeros(len(ids))
    for before in range(1, RUN + 1):
        for after in range(1, RUN + 2 - before):
            left, right, inside = _neighbours(ids, before, after)
            hump = y - np.maximum(y[left], y[right])
            humps = np.maximum(humps, np.where(inside, hump, 0.0))
            if before + after <= 3:
                with np.errstate(invalid="ignore", divide="ignore"):
                    slope = (y[right] - y[left]) / (x[right] - x[left])
                    line = y[left] + slope * (x - x[left])
                near.append(np.where(inside, y - line, np.nan))
    on_slope = np.fmin.reduce(near)
    judged = np.sum(np.isfinite(near), axis=0) >= 2
    excess = np.maximum(humps, np.where(judged, on_slope, 0.0))
    score = np.zeros(len(ids))
    score[order] = np.where(excess > np.log(FACTOR), np.exp(excess), 0.0)
    return score


def _neighbours(
    ids: np.ndarray, before: int, after: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Positions some places before and after each row, and whether both are in its series."""
    places = np.arange(len(ids))
    left, right = np.maximum(places - before, 0), np.minimum(places + after, len(ids) - 1)
    inside = (places - before >= 0) & (places + after < len(ids))
    return left, right, inside & (ids[left] == ids) & (ids[right] == ids)


def _matched(left: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Positions of equal keys in two arrays without repeats."""
    _, at_left, at_right = np.intersect1d(left, right, return_indices=True)
    return at_left, at_right


def _group_centres(
    values: np.ndarray, groups: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Median and robust standard deviation of each row's group, and whether it is large enough."""
    ids = dense_groups([groups], len(groups))
    centre = _medians(values, ids)[ids]
    # 1.4826 makes the median absolute deviation of a normal distribution its standard deviation.
    spread = 1.4826 * _medians(np.abs(values - centre), ids)[ids]
    return centre, spread, np.bincount(ids)[ids] >= MIN_GROUP


def _medians(values: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Lower median of each dense group, ``[groups]``."""
    order = np.lexsort((values, ids))
    starts, ends = _runs(ids[order])
    return values[order[(starts + ends - 1) // 2]]


def _runs(ordered: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Start and end of every run of equal values."""
    if not len(ordered):
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    starts = np.concatenate([[0], np.flatnonzero(np.diff(ordered)) + 1])
    return starts, np.append(starts[1:], len(ordered))


def _on(alive: np.ndarray, frame: Frame, rule: Any) -> np.ndarray:
    """The scores of a rule that sees only the rows still alive."""
    return _spread(alive, rule(frame.take(alive)))


def _spread(mask: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Values of the masked rows put back among all rows, 0 elsewhere."""
    result = np.zeros(len(mask))
    result[mask] = values
    return result


def _table_name(frame: Frame, row: int) -> str:
    shown = frame.describe(int(row))
    return f"{shown['system']}/{shown['engine']}/{shown['version']}"


def _finding(frame: Frame, rule: str, score: np.ndarray) -> Finding:
    rows = np.flatnonzero(score > 0)
    part = frame.take(rows)
    names = [part.text(name) for name in ("system", "engine", "version")]
    tables, counts = np.unique(
        ["/".join(words) for words in zip(*names, strict=True)], return_counts=True
    )
    worst: Sequence[int] = rows[np.argsort(-score[rows], kind="stable")][:EXAMPLES].tolist()
    scored = rule in ("broken-table", "sibling-outlier", "spike", "untuned")
    examples = tuple(
        frame.describe(row) | ({"times_too_slow": round(float(score[row]), 2)} if scored else {})
        for row in worst
    )
    by_table = {str(name): int(count) for name, count in zip(tables, counts, strict=True)}
    return Finding(rule, rows, by_table, examples)
