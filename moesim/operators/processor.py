"""What the operators need to know of the device that runs them."""

from __future__ import annotations

from pydantic import Field

from moesim.schema import Document

__all__ = ["Processor"]


class Processor(Document):
    """Peaks of one device for one number format.

    Efficiencies are shares of these, so that coefficients fitted on one device can be read with
    the peaks of another.
    """

    peak_flop_per_s: float = Field(gt=0)
    """Dense; a multiply-add counts two."""
    memory_bytes_per_s: float = Field(gt=0)
    cores: int = Field(gt=0)
    """Streaming multiprocessors of a GPU, or what else runs one tile at a time."""

    @property
    def core_flop_per_s(self) -> float:
        """Peak of one core."""
        return self.peak_flop_per_s / self.cores
