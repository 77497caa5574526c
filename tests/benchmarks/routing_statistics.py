"""Statistics of routing as the publications that presets are fitted to define them."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from moesim.traces.balance import imbalance
from moesim.traces.synthetic_measures import (
    adjacent_overlap,
    domain_distance,
    interlayer_mutual_information_bits,
)

SRP_TOKENS = 16
# moe-trace replays 3,225 decode positions of 25 prompts.
LRU_TOKENS = 129
RANKS = 32


@dataclass(frozen=True)
class Routing:
    """Whole requests of one length: experts [L, T, K], domain [T] int64, E."""

    experts: np.ndarray
    domain: np.ndarray
    request_tokens: int
    width: int

    def loads(self) -> np.ndarray:
        """[L, D, E] int64 token assignments."""
        bins = (int(self.domain.max()) + 1) * self.width
        cells = self.domain[:, None] * self.width + self.experts
        return np.stack([np.bincount(c.ravel(), minlength=bins) for c in cells]).reshape(
            len(cells), -1, self.width
        )

    def requests(self) -> np.ndarray:
        """[L · R, tokens of a request, K] int64."""
        return self.experts.reshape(-1, self.request_tokens, self.experts.shape[2]).astype(np.int64)


def load_deviation(routing: Routing) -> float:
    """Standard deviation of the experts' activation frequency (mean K/E), in per cent."""
    frequency = routing.loads().sum(axis=1) / routing.experts.shape[1]
    return float(100 * frequency.std())


def srp(routing: Routing) -> float:
    """Segment routing best performance, in per cent (arXiv 2505.16056, appendix C).

    A router that says once per window of 16 tokens whether an expert is on has its best F1 where
    it says yes from some count of activations on. All windows within a request, all experts.
    """
    window = SRP_TOKENS
    histogram = np.zeros(window + 1)
    for request in routing.requests():
        count = np.zeros((len(request), routing.width), dtype=np.uint8)
        np.put_along_axis(count, request, 1, axis=1)
        for shift in (1, 2, 4, 8):  # sums over 2, 4, 8, 16 tokens
            count = count[shift:] + count[:-shift]
        histogram += [np.count_nonzero(count == n) for n in range(window + 1)]
    activations = (np.arange(window + 1) * histogram)[::-1].cumsum()[::-1]
    switched_on = window * histogram[::-1].cumsum()[::-1]
    return float(100 * (2 * activations / (switched_on + activations[0])).max())


def lru(routing: Routing, capacity: int) -> float:
    """Hit rate in per cent of one LRU cache per layer, empty before each request.

    As in moe-trace: the decode positions only (here the second half of a request), all experts of a
    token are looked up before any is loaded, ties go to the higher id, first uses are misses.
    """
    decode = routing.requests()[:, routing.request_tokens // 2 :][:, :LRU_TOKENS]
    used = np.full((len(decode), routing.width), -1)  # when last, with the id to break ties
    row = np.arange(len(decode))[:, None]
    hits = 0
    for t in range(decode.shape[1]):
        wanted = decode[:, t]
        last = used[row, wanted]
        later = np.count_nonzero(used[:, None, :] > last[:, :, None], axis=2)
        hits += np.count_nonzero((last >= 0) & (later < capacity))
        used[row, wanted] = t * routing.width + wanted
    return 100 * hits / decode.size


def ranks(routing: Routing, measure: Callable[[np.ndarray], np.ndarray]) -> float:
    """Mean over layers and domains of a measure of the loads [L, D, 32] of equal ranks."""
    loads = routing.loads()
    return float(measure(loads.reshape(*loads.shape[:2], RANKS, -1).sum(axis=3)).mean())


def overlap(routing: Routing) -> float:
    first = np.arange(routing.experts.shape[1]) % routing.request_tokens == 0
    return 100 * adjacent_overlap(routing.experts, first, routing.width)


def mutual_information(routing: Routing) -> float:
    rng = np.random.default_rng(0)
    return interlayer_mutual_information_bits(routing.experts, routing.width, rng)


STATISTICS: dict[str, Callable[[Routing], float]] = {
    "load deviation %": load_deviation,
    "SRP 16 %": srp,
    "LRU 8 %": lambda r: lru(r, 8),
    "LRU 16 %": lambda r: lru(r, 16),
    "LRU 32 %": lambda r: lru(r, 32),
    "LRU 64 %": lambda r: lru(r, 64),
    "rank imbalance": lambda r: ranks(r, lambda loads: imbalance(loads).imbalance_ratio),
    "rank deviation": lambda r: ranks(r, lambda n: n.std(axis=2) / n.mean(axis=2)),
    "adjacent overlap %": overlap,
    "layer MI bits": mutual_information,
    "domain distance": lambda r: domain_distance(r.loads()),
}
