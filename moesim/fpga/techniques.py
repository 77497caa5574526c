"""The techniques of Edge-MoE (arXiv 2305.18691, section III), each of which can be left out."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace

from moesim.errors import UsageError

__all__ = ["TECHNIQUES", "Techniques"]


@dataclass(frozen=True)
class Techniques:
    """Which are on.

    Attributes:
        expert_reordering: Tokens are queued per expert, so that each expert that any token chose
            is read once per layer; else every token reads its own experts.
        attention_reordering: A row of K or V serves all queries in flight; else each query reads
            all rows.
        unified_unit: One linear unit serves all linear layers; else each shape of layer has a
            unit of its own, which shares the multipliers evenly and idles in others' turns.
        single_pass_softmax: Largest score and sum are kept while scores stream; else two more
            passes over the scores.
    """

    expert_reordering: bool = True
    attention_reordering: bool = True
    unified_unit: bool = True
    single_pass_softmax: bool = True

    def without(self, names: Iterable[str]) -> Techniques:
        """These but for some, named as on the command line (``expert-reordering``).

        Raises:
            UsageError: If a name is none of :data:`TECHNIQUES`.
        """
        found = self
        for name in names:
            if name not in TECHNIQUES:
                raise UsageError(
                    f"--without {name!r} is no technique\nfix: choose from {', '.join(TECHNIQUES)}"
                )
            found = replace(found, **{name.replace("-", "_"): False})
        return found


TECHNIQUES = tuple(field.name.replace("_", "-") for field in fields(Techniques))
"""Names on the command line."""
