"""Experts by kernels that were measured on one's own GPU: ``moesim kernels bench``, then ``fit``.

A file of ``moesim calibrate fit`` takes the place of the word after ``--cost``. It prices the
products of routed experts; what it does not measure (other number formats, attention,
communication, sorting) keeps the price that it has without the file.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moesim.calibrated_cost import CalibratedCost
from moesim.cost import ExpertTime
from moesim.operators.grouped_gemm import (
    GroupedCoefficients,
    GroupedFit,
    grouped_s,
    grouped_work,
)
from moesim.operators.moe import overhead_parts_s
from moesim.operators.moe_fits import token_regime
from moesim.schema import Evidence, weakest

__all__ = ["MeasuredCost"]

LAYERS: dict[tuple[str, bool], dict[str, tuple[float, float]]] = {
    ("vllm", False): {"decode": (0.90, 1.31), "mixed": (0.94, 1.25), "prefill": (0.76, 1.20)},
    ("vllm", True): {"decode": (0.97, 1.26), "mixed": (0.63, 1.28), "prefill": (0.20, 1.07)},
    ("sglang", False): {"decode": (0.97, 1.61), "mixed": (0.96, 1.67), "prefill": (0.80, 1.78)},
    ("sglang", True): {"decode": (1.08, 2.33), "mixed": (1.04, 2.26), "prefill": (0.53, 2.23)},
}
"""Central 80 % of an engine's whole layers, in NVIDIA's tables of H100 and H200, over the same by
vLLM's kernel out of the bundled benchmarks (``python -m tests.benchmarks.measured_layers``): by
engine, and whether the kernel is given the tokens of several ranks. SGLang runs the kernel in other
configurations there."""

UNSEEN = {"trtllm": ("vllm", "sglang")}
"""Engines that take the errors of others, as they have none of their own."""

NO_LIMIT = 1e30
"""FLOP/s or bytes/s beyond any device's."""


@dataclass(frozen=True)
class MeasuredCost:
    """:class:`~moesim.cost.ExpertCost` of a kernel that was measured on the device.

    The two products of a layer come from the file: weights, arithmetic, and the time of every
    active expert. Launches, sorting, what lies between the products, and adding up a token's
    copies were not measured; they come from the fused layer that prices the device otherwise.

    Attributes:
        fit: Of a grouped product.
        element_bytes: Of weights.
        processor: That was measured.
        around: What prices the layer without the file.
    """

    fit: GroupedFit
    element_bytes: float
    processor: str
    around: CalibratedCost

    @property
    def evidence(self) -> Evidence:
        """The products were measured on the device; what lies around them may not be."""
        return weakest(Evidence.FITTED, self.around.evidence)

    @property
    def name(self) -> str:
        """See :attr:`moesim.cost.ExpertCost.name`."""
        return (
            f"{self.fit.kernel}, {self.fit.dtype}, measured on {self.processor}; sorting and "
            f"summing of {self.around.name}"
        )

    def products_s(self, slot_tokens: np.ndarray) -> np.ndarray:
        """[...] seconds of both products for [..., s] tokens, without their launches."""
        return self._products_s(slot_tokens, self.fit.coefficients)

    def time(self, slot_tokens: np.ndarray) -> ExpertTime:
        """See :meth:`moesim.cost.ExpertCost.time`; intervals count from the products."""
        of = self.fit.coefficients
        around_s = self._around_s(slot_tokens)
        products_s = self.products_s(slot_tokens)
        reading = of.model_copy(update={"flop_per_s": NO_LIMIT, "few_rows_flop_per_s": NO_LIMIT})
        memory_s = around_s + self._products_s(slot_tokens, reading)
        copies = np.asarray(slot_tokens, float).sum(axis=-1)
        weights = sum(columns * depth for columns, depth in self.around.gemms())
        compute_s = np.minimum(copies * (2.0 * weights / of.flop_per_s), products_s)
        return ExpertTime(memory_s, compute_s, around_s + products_s, products_s)

    def interval(self, seconds: float, tokens: int, least_s: float) -> tuple[float, float]:
        """See :meth:`moesim.cost.ExpertCost.interval`.

        Both parts err together; and a layer is at least as uncertain as those of engines that were
        put together in the same way.
        """
        if seconds <= 0:
            return 1.0, 1.0
        engine, regime = self.around.fit.engine, token_regime(tokens)
        of_layers = [
            of[regime]
            for (name, several), of in LAYERS.items()
            if several == (self.around.devices > 1) and name in (engine, *UNSEEN.get(engine, ()))
        ]
        share = min(least_s / seconds, 1.0)
        low, high = self.around.interval(seconds, tokens, seconds)
        own_low, own_high = self.fit.interval
        low = share * min(own_low, 1.0) + (1 - share) * low
        high = share * max(own_high, 1.0) + (1 - share) * high
        return min(low, *(ends[0] for ends in of_layers)), max(
            high, *(ends[1] for ends in of_layers)
        )

    def lower_bound_s(
        self, expert_tokens: np.ndarray, speed: float, devices: int = 1
    ) -> np.ndarray:
        """See :meth:`moesim.cost.ExpertCost.lower_bound_s`.

        Everything on one device, and the launches of the others: p-norms of sums are at most sums
        of p-norms, and an expert that is split is read and padded more than once.
        """
        launches_s = (devices - 1) * self.around.fit.coefficients.launch_s
        products_s = self._products_s(expert_tokens, _one_kernel(self.fit.coefficients))
        return (self._around_s(expert_tokens) + products_s + launches_s) / speed

    def _products_s(self, slot_tokens: np.ndarray, of: GroupedCoefficients) -> np.ndarray:
        """Products alone: their launches and rows are in what lies around them."""
        alone = of.model_copy(update={"call_s": 0.0, "row_bytes_per_s": NO_LIMIT})
        rows = np.asarray(slot_tokens, float)
        flat = rows.reshape(-1, rows.shape[-1])
        ones = np.ones(len(flat))
        seconds = np.zeros(len(flat))
        for columns, depth in self.around.gemms():
            sizes = (columns, depth, 0, self.element_bytes)
            seconds += grouped_s(alone, grouped_work(flat, *(ones * size for size in sizes)))
        return seconds.reshape(rows.shape[:-1])

    def _around_s(self, slot_tokens: np.ndarray) -> np.ndarray:
        """Everything but the products; the time of active experts is theirs."""
        rows = np.asarray(slot_tokens, float)
        shapes = self.around.shapes(rows.reshape(-1, rows.shape[-1]))
        parts = overhead_parts_s(shapes, self.around.device, self.around.fit.coefficients)
        seconds = sum(part for name, part in parts.items() if name != "active_expert_s")
        return np.asarray(seconds).reshape(rows.shape[:-1])


def _one_kernel(fitted: GroupedCoefficients) -> GroupedCoefficients:
    """Nowhere slower, and one kernel for any number of rows: splitting experts gains nothing."""
    if not fitted.few_rows:
        return fitted
    rate = max(fitted.flop_per_s, fitted.few_rows_flop_per_s or 0.0)
    return fitted.model_copy(update={"flop_per_s": rate, "few_rows": 0, "pack_bytes_per_s": None})
