"""Communication behind computation, as MegaScale-MoE does it on two levels (arXiv 2505.11432, §4).

*Inter-operator*: operators that do not depend on what is being sent run beside it: shared experts
beside dispatch and combine, weight gradients and recomputed operators beside the gradients' way.
*Intra-operator*: an operator and the transfer that it feeds or waits for are cut into tiles; one
tile of the transfer is left at an end.

Kernels that communicate take some of the device's multiprocessors from those that compute.
"""

from __future__ import annotations

from dataclasses import dataclass

from moesim.training.layout import Overlap

__all__ = ["CORE_SHARE", "Exchange", "Pass", "fused_s", "hidden_s"]

CORE_SHARE = 20 / 132
"""Of the multiprocessors: 20 of 132 carry the all-to-alls of DeepSeek-V3's training on H800 (arXiv
2412.19437, section 3.2.2)."""


@dataclass(frozen=True)
class Exchange:
    """A transfer and the operator that it is fused with.

    Attributes:
        time_s: Of the transfer alone.
        partner_s: Of the operator that needs or makes what is sent, alone.
        ranks: Devices: the transfer is cut into as many parts.
    """

    time_s: float
    partner_s: float
    ranks: int


@dataclass(frozen=True)
class Pass:
    """One way through a layer.

    Attributes:
        compute_s: Of all operators.
        independent_s: Of those that no transfer of the pass depends on, and that depend on none.
        exchanges: Its transfers.
    """

    compute_s: float
    independent_s: float
    exchanges: tuple[Exchange, ...]

    @property
    def communication_s(self) -> float:
        """Of all transfers, one after the other."""
        return sum(exchange.time_s for exchange in self.exchanges)

    def time_s(self, overlap: Overlap, core_share: float = CORE_SHARE) -> float:
        """Seconds of the pass; at least those of its operators and of its transfers.

        Args:
            overlap: What hides what.
            core_share: Of the multiprocessors, busy with communication while there is some.
        """
        communication = self.communication_s
        if overlap == "none" or communication == 0:
            return self.compute_s + communication
        hidden = min(communication, self.independent_s)
        total = self.compute_s + communication - hidden_s(hidden, core_share)
        if overlap == "inter":
            return total
        left = 1 - hidden / communication
        for exchange in self.exchanges:
            exposed = exchange.time_s * left
            together = fused_s(exchange.partner_s, exposed, exchange.ranks, core_share)
            total -= exchange.partner_s + exposed - together
        return total


def hidden_s(overlapped_s: float, core_share: float) -> float:
    """What a transfer saves behind independent operators that lose cores to it."""
    return overlapped_s * (1 - core_share)


def fused_s(compute_s: float, transfer_s: float, parts: int, core_share: float) -> float:
    """An operator and its transfer in one, tile by tile: never slower than one after the other.

    The longer of the two, the operator on the cores that are left, and one part of the transfer
    that nothing is there to hide.
    """
    together = max(compute_s / (1 - core_share), transfer_s) + transfer_s / parts
    return min(together, compute_s + transfer_s)
