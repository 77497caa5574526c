"""Pure functions on expert loads: how uneven they are, and how they move over time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moesim.errors import InputError, UsageError

__all__ = ["Drift", "Imbalance", "drift", "imbalance", "mutual_information"]


@dataclass(frozen=True)
class Imbalance:
    """Unevenness of loads over their last axis; without any load, that of even loads.

    Attributes:
        mean_over_max: [..] balancedness, 1 is even (what SGLang logs as utilisation rate,
            https://github.com/sgl-project/sglang, eplb/expert_distribution.py).
        max_over_mean: [..] slowdown of the fullest against even loads, ≥ 1.
        gini: [..] Gini coefficient, 0 is even, (n − 1)/n is all load on one of n.
    """

    mean_over_max: np.ndarray
    max_over_mean: np.ndarray
    gini: np.ndarray

    @property
    def imbalance_ratio(self) -> np.ndarray:
        """[..] (max − mean)/mean, 0 is even (TensorRT-LLM, examples/wide_ep/ep_load_balancer)."""
        return self.max_over_mean - 1


def imbalance(loads: np.ndarray) -> Imbalance:
    """Unevenness of loads, of experts or of devices alike.

    Args:
        loads: [.., n] tokens, finite and not negative.

    Raises:
        InputError: If a load is negative or not finite, or there is none.
    """
    values = np.asarray(loads, np.float64)
    if values.ndim == 0 or values.shape[-1] == 0:
        raise InputError("loads of at least one expert are needed", found=f"shape {values.shape}")
    if not np.isfinite(values).all() or (values < 0).any():
        raise InputError("loads must be finite and not negative", field="loads")
    n = values.shape[-1]
    largest = values.max(axis=-1)
    empty = largest == 0
    # Scaling by the largest keeps huge loads from overflowing in their sum.
    scaled = np.where(empty[..., None], 1.0, values / np.where(empty, 1.0, largest)[..., None])
    mean = scaled.mean(axis=-1)
    rank = 2 * np.arange(1, n + 1) - n - 1
    gini = (np.sort(scaled, axis=-1) * rank).sum(axis=-1) / (n * n * mean)
    return Imbalance(mean_over_max=mean, max_over_mean=1 / mean, gini=gini)


@dataclass(frozen=True)
class Drift:
    """How the share of each expert moves; 0 is no change and 1 is nothing in common.

    A window without any load in a layer says nothing: its distances are 0. Distances between short
    windows are never 0, since each is a sample; compare windows of one length.

    Attributes:
        total_variation: [W − 1, L] between each window and the next, ½ Σ |p − q|.
        jensen_shannon: [W − 1, L] square root of the Jensen–Shannon divergence in bits.
        total_variation_from_whole: [W, L] between each window and all windows together.
        jensen_shannon_from_whole: [W, L] likewise.
        top_churn: [W − 1, L] part of a window's ``top`` most loaded experts that the next window's
            lack; ties go to the lower id.
        top: How many experts that is.
    """

    total_variation: np.ndarray
    jensen_shannon: np.ndarray
    total_variation_from_whole: np.ndarray
    jensen_shannon_from_whole: np.ndarray
    top_churn: np.ndarray
    top: int


def drift(windowed: np.ndarray, *, top: int | None = None) -> Drift:
    """Distances between the loads of windows.

    Args:
        windowed: [W, L, E] tokens, as :func:`moesim.traces.statistics.windowed_loads` gives.
        top: How many of the most loaded experts to follow; an eighth of them (rounded up) if not
            given.

    Raises:
        InputError: If the loads are not [W, L, E], or one is negative or not finite.
        UsageError: If ``top`` is not in 1 … E.
    """
    if windowed.ndim != 3 or 0 in windowed.shape:
        raise InputError(
            "windowed loads must be a non-empty [windows, layers, experts] array",
            field="windowed",
            found=f"shape {windowed.shape}",
        )
    windows, layers, experts = windowed.shape
    top = -(-experts // 8) if top is None else top
    if not 1 <= top <= experts:
        raise UsageError(f"top must be in 1 … {experts}; found {top}")
    steps = np.zeros((3, windows - 1, layers))
    whole = np.zeros((2, windows, layers))
    for layer in range(layers):  # one at a time: [W, L, E] in float64 several times over is much
        counts = windowed[:, layer].astype(np.float64)
        if not np.isfinite(counts).all() or (counts < 0).any():
            raise InputError("loads must be finite and not negative", field=f"windowed[:, {layer}]")
        share = _share(counts)
        all_share = np.broadcast_to(_share(counts.sum(axis=0)), share.shape)
        steps[0, :, layer] = _total_variation(share[:-1], share[1:])
        steps[1, :, layer] = _jensen_shannon(share[:-1], share[1:])
        steps[2, :, layer] = _churn(counts, top)
        whole[0, :, layer] = _total_variation(share, all_share)
        whole[1, :, layer] = _jensen_shannon(share, all_share)
    return Drift(steps[0], steps[1], whole[0], whole[1], top_churn=steps[2], top=top)


def mutual_information(pairs: np.ndarray) -> np.ndarray:
    """How much the expert of one layer tells about that of the next, in bits.

    Args:
        pairs: [.., E, E] counts, as :func:`moesim.traces.statistics.transitions` gives.

    Returns:
        [..] bits; 0 where the choices are independent or nothing was counted. Few counts per cell
        make it too large: about (E − 1)²/(2 N ln 2) bits for N independent pairs.
    """
    totals = pairs.sum(axis=(-2, -1), keepdims=True)
    joint = pairs / np.maximum(totals, 1)
    independent = joint.sum(axis=-1, keepdims=True) * joint.sum(axis=-2, keepdims=True)
    bits: np.ndarray = np.maximum(_relative_entropy(joint, independent).sum(axis=-1), 0.0)
    return bits


def _share(counts: np.ndarray) -> np.ndarray:
    totals = counts.sum(axis=-1, keepdims=True)
    share: np.ndarray = np.divide(counts, totals, out=np.zeros_like(counts), where=totals > 0)
    return share


def _either_empty(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    empty: np.ndarray = np.logical_not(np.any(p, axis=-1) & np.any(q, axis=-1))
    return empty


def _total_variation(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    return np.where(_either_empty(p, q), 0.0, 0.5 * np.abs(p - q).sum(axis=-1))


def _jensen_shannon(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    middle = 0.5 * (p + q)
    divergence = 0.5 * (_relative_entropy(p, middle) + _relative_entropy(q, middle))
    # Rounding can leave either end of [0, 1].
    return np.where(_either_empty(p, q), 0.0, np.sqrt(np.clip(divergence, 0.0, 1.0)))


def _relative_entropy(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Σ p log₂(p/q) over the last axis, where q > 0 wherever p > 0."""
    ratio = np.divide(p, q, out=np.ones_like(q), where=p > 0)
    entropy: np.ndarray = (p * np.log2(ratio)).sum(axis=-1)
    return entropy


def _churn(counts: np.ndarray, top: int) -> np.ndarray:
    order = np.argsort(-counts, axis=-1, kind="stable")[:, :top]
    among = np.zeros(counts.shape, bool)
    np.put_along_axis(among, order, values=True, axis=-1)
    loaded = np.asarray(counts.any(axis=-1))
    lost = (among[:-1] & ~among[1:]).sum(axis=-1) / top
    return np.where(loaded[:-1] & loaded[1:], lost, 0.0)
