"""What a fitted sum leaves over, as a smooth function of a few descriptors.

A Gaussian process (Rasmussen and Williams, Gaussian Processes for Machine Learning, algorithm 2.1)
on logarithms of ratios, with one length per descriptor. Far from everything it has seen it predicts
nothing (a ratio of 1) and its interval widens to the spread of the residuals; so an unknown model
gets the physics alone.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from pydantic import Field

from moesim.schema import Document

__all__ = ["SmoothResidual", "fit_residual"]

QUANTILE = 1.2816
"""Half the width of a central 80 % interval, in standard deviations of a normal distribution."""


class SmoothResidual(Document):
    """A fitted process.

    Attributes:
        lengths: [D] distance along each descriptor at which rows cease to be alike.
        amplitude: Spread of the residuals, in logarithms.
        noise: Spread between runs of one set-up.
        widening: Factor on the standard deviation that makes 80 % intervals hold 80 %.
        values: [N] logarithms of measured over predicted.
        weights: [N] at most 1; rows that stand alone count less.
    """

    lengths: tuple[float, ...]
    amplitude: float = Field(gt=0)
    noise: float = Field(gt=0)
    widening: float = Field(gt=0)
    values: tuple[float, ...]
    weights: tuple[float, ...]

    def predict(self, known: np.ndarray, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and half the width of the 80 % interval, both [M], in logarithms.

        Args:
            known: [N, D] descriptors of the fitted rows.
            points: [M, D].
        """
        lengths = np.array(self.lengths)
        inverse = _inverse(known, lengths, self.amplitude, self.noise, np.array(self.weights))
        near = _kernel(np.asarray(points, float), known, lengths, self.amplitude)
        variance = self.amplitude**2 - np.einsum("ij,jk,ik->i", near, inverse, near)
        spread = np.sqrt(np.maximum(variance, 0.0) + self.noise**2)
        return near @ (inverse @ np.array(self.values)), QUANTILE * self.widening * spread


def fit_residual(
    points: np.ndarray,
    values: np.ndarray,
    lengths: np.ndarray,
    *,
    amplitude: float,
    noise: float,
    outlier: float,
    together: Sequence[object] | None = None,
) -> SmoothResidual:
    """Fit a process; rows far from their neighbours lose weight.

    Args:
        points: [N, D].
        values: [N] logarithms of measured over predicted.
        lengths: [D].
        amplitude: Spread of the values.
        noise: Spread between repeats.
        outlier: Distance from the process beyond which a row loses weight.
        together: By row, what it shares with its repeats; intervals are widened until they hold
            rows that are predicted without their repeats.
    """
    weights = np.ones(len(values))
    for _ in range(2):
        inverse = _inverse(points, lengths, amplitude, noise, weights)
        fitted = values - noise**2 / weights * (inverse @ values)
        weights = 1 / np.maximum(1.0, np.abs(values - fitted) / outlier) ** 2
    inverse = _inverse(points, lengths, amplitude, noise, weights)
    left_out = _left_out(inverse, values, weights, noise, together or range(len(values)))
    widening = float(np.quantile(left_out, 0.8)) / QUANTILE if len(values) > 4 else 1.0
    return SmoothResidual(
        lengths=tuple(lengths.tolist()),
        amplitude=amplitude,
        noise=noise,
        widening=max(widening, 1e-3),
        values=tuple(np.round(values, 5).tolist()),
        weights=tuple(np.round(np.maximum(weights, 1e-4), 4).tolist()),
    )


def _left_out(
    inverse: np.ndarray,
    values: np.ndarray,
    weights: np.ndarray,
    noise: float,
    together: Sequence[object],
) -> np.ndarray:
    """[N] distances from what all other rows predict, in standard deviations.

    Rasmussen and Williams, eq. 5.12, for blocks of rows that are left out together.
    """
    blocks: dict[object, list[int]] = defaultdict(list)
    for place, name in enumerate(together):
        blocks[name].append(place)
    alpha, found = inverse @ values, np.empty(len(values))
    for places in blocks.values():
        covariance = np.linalg.inv(inverse[np.ix_(places, places)])
        variance = np.diag(covariance) + noise**2 * (1 - 1 / weights[places])
        found[places] = np.abs(covariance @ alpha[places]) / np.sqrt(np.maximum(variance, 1e-12))
    return found


def _kernel(a: np.ndarray, b: np.ndarray, lengths: np.ndarray, amplitude: float) -> np.ndarray:
    apart = (a[:, None, :] - b[None, :, :]) / lengths
    found: np.ndarray = amplitude**2 * np.exp(-0.5 * (apart**2).sum(-1))
    return found


def _inverse(
    points: np.ndarray, lengths: np.ndarray, amplitude: float, noise: float, weights: np.ndarray
) -> np.ndarray:
    covariance = _kernel(points, points, lengths, amplitude) + np.diag(noise**2 / weights)
    found: np.ndarray = np.linalg.inv(covariance)
    return found
