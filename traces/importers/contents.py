"""What an importer is told and what it returns: routing of tokens, or counts of steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["PHASES", "ImportOptions", "Importer", "Requests", "Routing", "StepCounts"]

PHASES = ("unknown", "prefill", "decode")


@dataclass(frozen=True)
class ImportOptions:
    """What the caller knows of the model and wants of the file.

    Attributes:
        experts: E, logical experts per layer.
        top_k: K, if known; a file that shows another number is refused.
        moe_layers: Model layer indices, if known. They choose among the layers of a format that
            names its layers, and name the layers of one that does not.
        iterations: First and last iteration to take, inclusive (TensorRT-LLM).
        keep_warm_up: Keep the dummy passes that an engine runs before the first request.
    """

    experts: int
    top_k: int | None = None
    moe_layers: tuple[int, ...] | None = None
    iterations: tuple[int, int] | None = None
    keep_warm_up: bool = False


@dataclass(frozen=True)
class Requests:
    """Which request, phase, domain and position each token belongs to.

    Attributes:
        request: [T] int32.
        position: [T] int32, counted from the start of the request.
        phase: [T] uint8 index into ``PHASES``.
        domain: [T] int32 index into ``domains``.
        domains: Names of the domains.
    """

    request: np.ndarray
    position: np.ndarray
    phase: np.ndarray
    domain: np.ndarray
    domains: tuple[str, ...] = ("unknown",)

    def take(self, tokens: np.ndarray) -> Requests:
        """The same for some of the tokens (a mask or indices)."""
        return replace(
            self,
            request=self.request[tokens],
            position=self.position[tokens],
            phase=self.phase[tokens],
            domain=self.domain[tokens],
        )

    def frame(self) -> pd.DataFrame:
        """As the table that a bundle stores."""
        import pandas as pd

        return pd.DataFrame(
            {
                "request": self.request.astype(np.int32),
                "phase": pd.Categorical.from_codes(self.phase.astype(np.int8), pd.Index(PHASES)),
                "domain": pd.Categorical.from_codes(
                    self.domain.astype(np.int32), pd.Index(self.domains)
                ),
                "position": self.position.astype(np.int32),
            }
        )


@dataclass(frozen=True)
class Routing:
    """Routing of every token.

    Attributes:
        routing: [L, T, K] uint8 or uint16, logical expert ids.
        moe_layers: [L] model layer index of each row.
        dialect: The form that was found within the format.
        gates: [L, T, K] float16 or None.
        valid_k: [L, T] uint8 or None.
        requests: One entry per token, or None.
        model: The model that the file names.
        dropped: What was left out, by kind.
        warnings: What the reader of the trace should know.
        extra: Further keys for the manifest.
    """

    routing: np.ndarray
    moe_layers: tuple[int, ...]
    dialect: str
    gates: np.ndarray | None = None
    valid_k: np.ndarray | None = None
    requests: Requests | None = None
    model: str | None = None
    dropped: dict[str, int] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    extra: dict[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class StepCounts:
    """Expert counts of every recorded step: all that a format without token ids can tell.

    Attributes:
        counts: [W, L, E] int64, token assignments.
        moe_layers: [L] model layer index of each row.
        dialect: The form that was found within the format.
        stepwise: Whether W are steps of the recording (else W is 1).
        model: The model that the file names.
        dropped: What was left out, by kind.
        warnings: What the reader of the counts should know.
    """

    counts: np.ndarray
    moe_layers: tuple[int, ...]
    dialect: str
    stepwise: bool
    model: str | None = None
    dropped: dict[str, int] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


Importer = Callable[[Path, ImportOptions], Routing | StepCounts]
