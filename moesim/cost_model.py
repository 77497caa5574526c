"""What prices rest on, as ``--cost`` names it."""

from __future__ import annotations

from typing import Literal

from moesim.errors import UsageError
from moesim.hardware import looks_like_file
from moesim.measured_kernels import MeasuredKernels, load_measured
from moesim.model import ModelSpec

__all__ = ["CostModel", "cost_in_words", "cost_model"]

CostModel = Literal["fitted", "roofline"] | MeasuredKernels
"""What prices rest on: kernels that come with moesim, data sheets, or a file of one's own."""


def cost_model(text: str) -> CostModel:
    """What ``--cost`` names: ``fitted``, ``roofline``, or a file of ``moesim calibrate fit``.

    Raises:
        UsageError: If it is neither of the words nor looks like a file.
        InputError: If the file cannot be used.
    """
    words: dict[str, CostModel] = {"fitted": "fitted", "roofline": "roofline"}
    if text in words:
        return words[text]
    if looks_like_file(text) or ".json:" in text:
        return load_measured(text)
    raise UsageError(
        f"--cost {text!r} is not known\n"
        "fix: pass fitted, roofline, or a file of moesim calibrate fit"
    )


def cost_in_words(cost: CostModel, model: ModelSpec, dtype: str, engine: str) -> str:
    """What prices rest on; of a file of one's own, which of its kernels runs the experts.

    Args:
        cost: As asked for.
        model: What is priced.
        dtype: Format of the experts.
        engine: Whose kernels run.
    """
    if not isinstance(cost, MeasuredKernels):
        return cost
    if model.stores_experts_otherwise:
        return f"fitted ({cost} measures no experts that are stored in this form)"
    fit = cost.kernel_for(dtype, engine)
    if fit is None:
        return f"fitted ({cost} measures no experts in {dtype})"
    return (
        f"fitted, experts' products by {fit.kernel} ({fit.dtype}) as measured on "
        f"{cost.fits.processor}, {cost}"
    )
