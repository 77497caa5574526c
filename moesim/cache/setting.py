"""The conventions of a replay, without which no hit rate means anything."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from moesim.errors import UsageError

__all__ = ["CacheSetting", "Cold", "Contract", "Reset", "Scope"]

Contract = Literal["event-atomic", "sequential"]
Cold = Literal["miss", "hit"]
Scope = Literal["per-layer", "pooled", "pooled-token"]
Reset = Literal["never", "sequence"]


@dataclass(frozen=True, kw_only=True)
class CacheSetting:
    """How a trace is replayed; :mod:`moesim.cache` explains the words.

    Attributes:
        contract: When the accesses of an event are classified.
        cold: What the first access to an expert counts as.
        scope: Which layers share slots.
        reset: When the cache is emptied.
        batch: Sequences that run together. Without resets, the next sequence takes the place of one
            that ends; with resets, ``batch`` sequences start and end together.
        step_tokens: Consecutive tokens of a sequence that one step holds: 1 is decoding, more is
            prefill in chunks.
        sample_tokens: Sequences are cut into samples of so many tokens; None leaves requests whole.
    """

    contract: Contract = "event-atomic"
    cold: Cold = "miss"
    scope: Scope = "per-layer"
    reset: Reset = "never"
    batch: int = 1
    step_tokens: int = 1
    sample_tokens: int | None = None

    def __post_init__(self) -> None:
        for name, allowed in (
            ("contract", get_args(Contract)),
            ("cold", get_args(Cold)),
            ("scope", get_args(Scope)),
            ("reset", get_args(Reset)),
        ):
            if (found := getattr(self, name)) not in allowed:
                raise UsageError(
                    f"unknown {name} {found!r}\nfix: choose from {', '.join(map(str, allowed))}"
                )
        for name in ("batch", "step_tokens", "sample_tokens"):
            if (found := getattr(self, name)) is not None and found < 1:
                raise UsageError(f"{name} must be at least 1; found {found}")

    @property
    def atomic(self) -> bool:
        """Whether the contract is event-atomic."""
        return self.contract == "event-atomic"

    def to_dict(self) -> dict[str, Any]:
        """The conventions as they stand in every output."""
        return asdict(self)


PUBLISHED = CacheSetting(cold="hit", reset="sequence", sample_tokens=512)
"""The conventions of arXiv 2505.16056 (code: github.com/ljcleo/moe-lrc)."""
