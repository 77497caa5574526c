"""Probabilities behind a synthetic trace: popularity, preferences, and tables to sample from.

One choice of an expert in a layer has probability proportional to

    popularity[e] · ((1 − δ) + δ · domain[d, e]) · ((1 − a) + a · topic[z, e])

with domain shift δ and affinity a. Both preferences are balanced (:func:`balanced_preference`), so
that they average to 1 over domains and over topics: they move choices between contexts and leave
the overall popularity of the experts as the skew made it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moesim.traces.synthetic_sampler import alias_tables
from moesim.traces.synthetic_spec import GeneratorSpec

__all__ = ["LayerTables", "balanced_preference", "layer_tables", "random_popularity"]

# A topic prefers about as many experts as a token takes, at most half of all: assumed, there is no
# published figure. At affinity 1 the generator then reaches the inter-layer mutual information of
# the bundled sample of real routing.
PREFERRED_PER_CHOICE = 1
# Domains differ less sharply than topics. Two Gamma(1/2) variates of mean 1 differ by 4 / π on
# average, half of which (0.64) is the total variation distance of two domains at shift 1 before
# choosing without replacement evens it out; the bundled sample shows 0.40.
DOMAIN_SHAPE = 0.5
# Nothing is ever impossible; it also makes the balancing below converge.
PREFERENCE_FLOOR = 1e-3


@dataclass(frozen=True)
class LayerTables:
    """What the sampler needs to know of one layer; C contexts are pairs of domain and topic.

    Attributes:
        probability: [C, E] float64, of every expert as a first choice; rows sum to 1.
        threshold: [C, E] uint32, alias table: keep the column if 32 random bits are below.
        alias: [C, E] uint16, alias table: the expert to take otherwise.
        group_mass: [C, groups] float64, probability of each group of experts.
    """

    probability: np.ndarray
    threshold: np.ndarray
    alias: np.ndarray
    group_mass: np.ndarray


def random_popularity(
    rng: np.random.Generator, experts: int, skew: float, law: str = "zipf"
) -> np.ndarray:
    """[E] float64 summing to 1: rank^−skew, or exp(−skew · rank), ranks in random order."""
    rank = np.arange(1, experts + 1, dtype=np.float64)
    weight = np.exp(-skew * rank) if law == "exponential" else rank**-skew
    popularity: np.ndarray = rng.permutation(weight)
    popularity /= popularity.sum()
    return popularity


def balanced_preference(
    rng: np.random.Generator, popularity: np.ndarray, kinds: int, shape: float
) -> np.ndarray:
    """How much each kind of token (domain or topic) likes each expert, fair to every expert.

    Gamma variates, scaled by alternating normalisation (Sinkhorn) until every kind has mean 1
    over experts weighted by popularity, and every expert has mean 1 over kinds.

    Args:
        rng: Source of randomness.
        popularity: [E] float64, sums to 1.
        kinds: Number of kinds of token, equally frequent.
        shape: Of the Gamma distribution; the smaller, the fewer experts a kind prefers.

    Returns:
        [kinds, E] float64.
    """
    preference = rng.gamma(shape, 1 / shape, (kinds, popularity.size)) + PREFERENCE_FLOOR
    for _ in range(2000):
        preference /= preference.mean(axis=0)
        mass = preference @ popularity
        preference /= mass[:, None]
        if np.abs(mass - 1).max() < 1e-9:
            break
    return preference


def layer_tables(spec: GeneratorSpec, seed: int, layer: int) -> LayerTables:
    """Tables of one layer; they depend on the seed and the layer only."""
    rng = np.random.default_rng([seed, layer])
    popularity = random_popularity(rng, spec.experts, spec.skew, spec.popularity)
    preferred = min(0.5, PREFERRED_PER_CHOICE * spec.top_k / spec.experts)
    # Participation ratio of Gamma(α) variates is α / (1 + α).
    topic_shape = preferred / (1 - preferred)
    domain = balanced_preference(rng, popularity, spec.domains, DOMAIN_SHAPE)
    topic = balanced_preference(rng, popularity, spec.topic_count, topic_shape)
    weight = (
        popularity
        * (1 - spec.domain_shift + spec.domain_shift * domain)[:, None, :]
        * (1 - spec.affinity + spec.affinity * topic)[None, :, :]
    ).reshape(-1, spec.experts)
    probability = weight / weight.sum(axis=1, keepdims=True)
    threshold, alias = alias_tables(probability)
    group_mass = probability.reshape(len(probability), spec.groups, -1).sum(axis=2)
    return LayerTables(probability, threshold, alias, group_mass)
