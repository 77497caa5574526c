"""Element-by-element kernels: norms, activations, conversions, gathers, cache writes.

A launch, and bytes over a share of the memory's bandwidth. What was measured is the conversion of a
matrix to FP8 (2 bytes read, 1 written per element); other kernels of the kind differ in their
bytes and hardly in the rest.
"""

from __future__ import annotations

from typing import ClassVar, Self

import numpy as np
from pydantic import Field

from moesim.hardware import Device
from moesim.operators.fitted import Estimate, KernelFit

__all__ = ["ElementwiseKernel", "elementwise_seconds"]


class ElementwiseKernel(KernelFit):
    """One kernel of an engine version on a system, with its fit.

    Attributes:
        dtype: What was converted to.
        launch_s: Fixed time.
        memory_share: Of the bandwidth.
        memory_bytes_per_s: The bandwidth.
    """

    ORDER: ClassVar[tuple[str, ...]] = ("system", "engine", "dtype", "kernel", "version")

    dtype: str
    launch_s: float = Field(ge=0)
    memory_share: float = Field(gt=0)
    memory_bytes_per_s: float = Field(gt=0)

    def time(self, moved_bytes: np.ndarray, kernels: np.ndarray | int = 1) -> Estimate:
        """Time of calls, ``[rows]``.

        Args:
            moved_bytes: Read and written.
            kernels: Launches of a call.
        """
        rate = self.memory_share * self.memory_bytes_per_s
        return self.estimate(elementwise_seconds(moved_bytes, self.launch_s, rate, kernels))

    def on_device(self, device: Device) -> Self:
        """See :meth:`KernelFit.on_device`."""
        return self.model_copy(update={"memory_bytes_per_s": device.memory_bytes_per_s})


def elementwise_seconds(
    moved_bytes: np.ndarray, launch_s: float, bytes_per_s: float, kernels: np.ndarray | int = 1
) -> np.ndarray:
    """``[rows]`` seconds."""
    return np.asarray(kernels) * launch_s + np.asarray(moved_bytes, float) / bytes_per_s
