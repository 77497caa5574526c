"""How local a trace is, in the measures of arXiv 2505.16056, and what policies make of it.

SRP, the segment routing best performance, is of :mod:`moesim.traces.locality`. SCH, the segment
cache best hit rate, is the hit rate of a cache whose oracle evicts the expert that the next m
tokens use least often (:mod:`moesim.cache.policies.sch`); the cache holds ρ times the experts that
a token uses. At layer level, every layer has a cache of ρ · K slots; at model level, all layers
share ρ · K · L slots and a token is one event. Rates are means over samples.

Axes: L MoE layers, K top-k, R samples, W windows, Z sizes, D domains.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from moesim.cache.accesses import cache_accesses
from moesim.cache.policies.sch import SCH
from moesim.cache.policy import Policy
from moesim.cache.registry import find_policy
from moesim.cache.replay import segment_hits
from moesim.cache.setting import PUBLISHED, CacheSetting
from moesim.errors import UsageError
from moesim.traces.bundle import Trace
from moesim.traces.locality import SegmentRouting, segment_counts, segment_routing
from moesim.traces.sequences import Sequences, trace_sequences

__all__ = ["Interval", "LocalityOptions", "TraceLocality", "bootstrap", "locality", "sample_rates"]

_LAYER_LEVEL_ACCESSES = 2**24
_MODEL_LEVEL_ACCESSES = 2**22
"""What is replayed where no stride is given: some seconds for the usual windows and ratios."""


@dataclass(frozen=True, kw_only=True)
class LocalityOptions:
    """What to measure, and by which conventions.

    Attributes:
        windows: [W] lengths m in tokens.
        ratios: [Z] slots per expert used, ρ.
        policies: Replayed beside the oracle, at layer level.
        setting: Contract, cold convention and length of the samples; the scope, the batch and the
            reset before every sample are fixed.
        layer_stride: At layer level, SCH and policies take every so-manieth sample of a domain; 0
            for as few left out as a trace of its size allows in seconds.
        model_stride: The same at model level.
        bootstraps: Resamples of the samples for an interval of 95 %; 0 for none.
        seed: Of the resamples.
    """

    windows: tuple[int, ...] = (4, 16, 64, 256)
    ratios: tuple[float, ...] = (1.0, 1.5, 2.0, 3.0)
    policies: tuple[str, ...] = ("lru", "lfu", "belady")
    setting: CacheSetting = PUBLISHED
    layer_stride: int = 0
    model_stride: int = 0
    bootstraps: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.windows or min(self.windows) < 1:
            raise UsageError(f"windows must be at least 1 token long; found {list(self.windows)}")
        if not self.ratios or not all(0 < ratio < 1e6 for ratio in self.ratios):
            raise UsageError(f"ratios must be positive; found {list(self.ratios)}")
        if min(self.layer_stride, self.model_stride, self.bootstraps) < 0:
            raise UsageError("strides and bootstraps must be at least 0")
        for policy in self.policies:
            find_policy(policy)  # refuse before the trace is read, not after

    def with_strides(self, assignments: int) -> LocalityOptions:
        """The same, with strides in place of 0.

        Args:
            assignments: Token assignments of the trace, T · L · K.
        """
        return replace(
            self,
            layer_stride=self.layer_stride or -(-assignments // _LAYER_LEVEL_ACCESSES),
            model_stride=self.model_stride or -(-assignments // _MODEL_LEVEL_ACCESSES),
        )

    def slots(self, used: int, objects: int) -> np.ndarray:
        """[Z] slots of a cache for tokens that use so many experts."""
        slots = np.round(np.array(self.ratios) * used).astype(np.int64)
        return np.clip(slots, 1, objects)


@dataclass(frozen=True)
class Interval:
    """Ends of a 95 % interval from resampled samples, of the shape of what it belongs to."""

    lo: np.ndarray
    hi: np.ndarray


@dataclass(frozen=True)
class TraceLocality:
    """Measures of one trace; rates are fractions, NaN where no sample is long enough.

    Attributes:
        options: What was asked, with the strides that were taken.
        samples: R.
        domains: [D] names; empty if the trace has none.
        srp: [W] of the whole model.
        srp_layers: [W, L].
        srp_domains: [W, D] of the whole model.
        layer_slots: [Z] of each layer.
        model_slots: [Z] of the cache that all layers share.
        sch: [W, Z] at model level.
        sch_layers: [W, L, Z].
        sch_domains: [W, D, Z] at model level.
        policies: Policy label to [L, Z] hit rates at layer level.
        srp_interval: [W], if asked for.
        sch_interval: [W, Z], if asked for.
    """

    options: LocalityOptions
    samples: int
    domains: tuple[str, ...]
    srp: SegmentRouting
    srp_layers: SegmentRouting
    srp_domains: SegmentRouting
    layer_slots: np.ndarray
    model_slots: np.ndarray
    sch: np.ndarray
    sch_layers: np.ndarray
    sch_domains: np.ndarray
    policies: dict[str, np.ndarray]
    srp_interval: Interval | None
    sch_interval: Interval | None


def locality(
    trace: Trace,
    options: LocalityOptions | None = None,
    on_step: Callable[[str], None] = lambda _: None,
) -> TraceLocality:
    """Measure a trace.

    Args:
        trace: The trace; it is read layer by layer.
        options: What to measure.
        on_step: Told what is being measured.

    Raises:
        InputError: If the trace is not sound.
        UsageError: If an option makes no sense for it.
    """
    options = (options or LocalityOptions()).with_strides(trace.routing.size)
    setting = replace(options.setting, scope="per-layer", batch=1, reset="sequence")
    sequences = trace_sequences(trace, setting.sample_tokens)
    domain = _domain_of(sequences)
    names = sequences.domains or ("all",)
    manifest = trace.manifest
    on_step("SRP")
    counts = segment_counts(trace, options.windows, sequences=sequences, groups=domain)
    srp_interval = None
    if options.bootstraps:
        on_step("intervals of SRP")
        srp_interval = _srp_interval(trace, options, sequences)

    part = _every(sequences, domain, options.layer_stride)
    layer_slots = options.slots(manifest.top_k, manifest.experts)
    oracles = [SCH(window) for window in options.windows]
    layer_rates = []
    for policy in (*oracles, *map(find_policy, options.policies)):
        on_step(f"layer level: {policy.label}")
        rates = sample_rates(trace, policy, layer_slots, setting, part)
        layer_rates.append(_mean(rates, axis=1))

    part = _every(sequences, domain, options.model_stride)
    rows = domain if part is sequences else _domain_of(part)
    used = manifest.top_k * manifest.layers
    model_slots = options.slots(used, manifest.experts * manifest.layers)
    model_setting = replace(setting, scope="pooled-token")
    sch, sch_domains, ends = [], [], []
    for oracle in oracles:
        on_step(f"model level: {oracle.label}")
        rates = sample_rates(trace, oracle, model_slots, model_setting, part)[0]
        sch.append(_mean(rates, axis=0))
        sch_domains.append([_mean(rates[rows == d], axis=0) for d in range(len(names))])
        if options.bootstraps:
            ends.append(_sch_interval(rates, options))
    labels = [find_policy(name).label for name in options.policies]
    return TraceLocality(
        options=options,
        samples=sequences.count,
        domains=sequences.domains,
        srp=_stacked([segment_routing(c.sum(axis=(0, 1))) for c in counts]),
        srp_layers=_stacked([segment_routing(c.sum(axis=1)) for c in counts]),
        srp_domains=_stacked([segment_routing(c.sum(axis=0)) for c in counts]),
        layer_slots=layer_slots,
        model_slots=model_slots,
        sch=np.array(sch),
        sch_layers=np.array(layer_rates[: len(oracles)]),
        sch_domains=np.array(sch_domains),
        policies=dict(zip(labels, layer_rates[len(oracles) :], strict=True)),
        srp_interval=srp_interval,
        sch_interval=Interval(*np.stack(ends, axis=1)) if ends else None,
    )


def sample_rates(
    trace: Trace,
    policy: Policy,
    slots: np.ndarray,
    setting: CacheSetting,
    sequences: Sequences,
) -> np.ndarray:
    """Hit rates sample by sample.

    Args:
        trace: The trace.
        policy: A policy.
        slots: [Z] sizes.
        setting: How to replay; one sequence at a time, with a reset before each.
        sequences: The samples.

    Returns:
        [L, R, Z] hits per access, L being 1 of a pooled cache; NaN of a sample without accesses.
    """
    if setting.reset != "sequence" or setting.batch != 1:
        raise UsageError("rates of single samples need a reset before each, and no batches")
    policy = policy.fitted(trace)
    rates: dict[tuple[int, ...], list[np.ndarray]] = {}
    for accesses in cache_accesses(
        trace, setting, sequences=sequences, weights=policy.needs_weights
    ):
        hits = segment_hits(accesses, policy, slots, setting)
        with np.errstate(invalid="ignore"):
            rate = hits / np.diff(accesses.segments)[:, None]
        rates.setdefault(accesses.layers, []).append(rate)
    return np.stack([np.concatenate(parts) for parts in rates.values()])


def bootstrap(
    statistic: Callable[[np.ndarray], np.ndarray], samples: int, resamples: int, seed: int
) -> Interval:
    """The basic bootstrap interval of 95 %: 2 · estimate − quantiles of the resamples.

    Args:
        statistic: From [R] weights (how often each sample counts) to any array.
        samples: R.
        resamples: How often to draw R samples with replacement.
        seed: Of the draws.
    """
    rng = np.random.default_rng(seed)
    estimate = statistic(np.ones(samples))
    share = np.full(samples, 1 / samples)
    drawn = np.stack([statistic(rng.multinomial(samples, share)) for _ in range(resamples)])
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
    return Interval(2 * estimate - high, 2 * estimate - low)


def _srp_interval(trace: Trace, options: LocalityOptions, sequences: Sequences) -> Interval:
    """[W] ends at model level."""
    tables = segment_counts(
        trace,
        options.windows,
        sequences=sequences,
        groups=np.arange(sequences.count),
        pool_layers=True,
    )
    ends = [
        bootstrap(
            lambda weights, table=table[0]: segment_routing(weights @ table).srp,  # type: ignore[misc]
            sequences.count,
            options.bootstraps,
            options.seed,
        )
        for table in tables
    ]
    return Interval(np.array([end.lo for end in ends]), np.array([end.hi for end in ends]))


def _sch_interval(rates: np.ndarray, options: LocalityOptions) -> np.ndarray:
    """[2, Z] ends of the mean of [R, Z]."""
    found = rates[~np.isnan(rates).any(axis=1)]
    interval = bootstrap(
        lambda weights: weights @ found / max(weights.sum(), 1),
        len(found),
        options.bootstraps,
        options.seed,
    )
    return np.stack([interval.lo, interval.hi])


def _every(sequences: Sequences, domain: np.ndarray, stride: int) -> Sequences:
    """Every so-manieth sample of each domain."""
    if stride == 1:
        return sequences
    chosen = np.zeros(sequences.count, bool)
    for d in np.unique(domain):
        chosen[np.flatnonzero(domain == d)[::stride]] = True
    return sequences.select(chosen)


def _domain_of(sequences: Sequences) -> np.ndarray:
    """[R] int64; without domains, all are in the first."""
    if sequences.domain is None:
        return np.zeros(sequences.count, np.int64)
    return sequences.domain.astype(np.int64)


def _mean(rates: np.ndarray, axis: int) -> np.ndarray:
    """Mean over samples that have any accesses."""
    known = ~np.isnan(rates)
    with np.errstate(invalid="ignore"):
        mean: np.ndarray = np.where(known, rates, 0).sum(axis=axis) / known.sum(axis=axis)
    return mean


def _stacked(parts: Sequence[SegmentRouting]) -> SegmentRouting:
    return SegmentRouting(
        np.stack([part.srp for part in parts]),
        np.stack([part.size_ratio for part in parts]),
        np.stack([part.threshold for part in parts]),
    )
