"""Measured tables made from a model with known coefficients."""

import numpy as np

from moesim.calibrate.frame import Frame
from moesim.calibrate.hygiene import HygieneReport
from moesim.calibrate.measured_rows import MeasuredRows
from moesim.operators.processor import Processor

H200 = Processor(peak_flop_per_s=989.4e12, memory_bytes_per_s=4.8e12, cores=132)
H200_FP8 = Processor(peak_flop_per_s=1979e12, memory_bytes_per_s=4.8e12, cores=132)


def table(operator, columns, seconds, *, noise=0.0, **labels):
    """Rows of one kernel of one system; text columns as ``name="label"``."""
    rows = len(seconds)
    text = {"system": "h200_sxm", "engine": "vllm", "version": "1.0", "kernel": "k"}
    text |= {"device": "NVIDIA H200", "dtype": "bfloat16"} | labels
    values = {name: np.zeros(rows, np.int32) for name in text} | dict(columns)
    factor = np.exp(noise * np.random.default_rng(0).standard_normal(rows))
    values["latency_s"] = seconds * factor
    frame = Frame(operator, values, {name: (label,) for name, label in text.items()})
    return MeasuredRows(frame, HygieneReport(rows, rows, (), ()))


def grid(**axes):
    """All combinations of some axes, as columns."""
    arrays = np.meshgrid(*axes.values(), indexing="ij")
    return {name: array.ravel() for name, array in zip(axes, arrays, strict=True)}


def held_out(operator, rows, part=3):
    """Errors on shapes that the fit has not seen, and the fit."""
    hidden = operator.shape_key(rows) % part == 0
    fitted = operator.fit(rows, ~hidden)
    predicted = operator.predict(rows, fitted)
    errors = np.abs(predicted / rows.frame["latency_s"] - 1)
    return errors[hidden], list(fitted.values())
