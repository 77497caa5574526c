"""``moesim plan --validate``: its options, checked before anything is planned."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from moesim.calibrate.validate_plan import ValidateOptions
    from moesim.planners.outcome import PlanOutcome

__all__ = ["beside", "options", "validated"]


def beside() -> tuple[str, ...]:
    """Planners that are run for comparison, whichever one is asked for."""
    from moesim.calibrate.validate_plan import COMPARED

    return COMPARED


def options(minutes: float, device: str | None, profile: Path | None, seed: int) -> ValidateOptions:
    """The options, refused before minutes are spent on planning.

    Raises:
        MissingExtraError: If torch or scipy are not installed.
        UsageError: If one does not fit.
        InputError: If the profile cannot be read.
    """
    from moesim.calibrate.validate_plan import ValidateOptions, check_options

    found = ValidateOptions(device=device, minutes=minutes, seed=seed, profile=profile)
    check_options(found)
    return found


def validated(
    outcome: PlanOutcome, runs: ValidateOptions, say: Callable[[str], object]
) -> PlanOutcome:
    """The outcome with what running its experts showed; without, if Ctrl-C came too early."""
    from moesim.calibrate.validate_plan import validate_plan

    def progress(share: float, text: str) -> None:
        say(f"running {share:.0%} {text}")

    found = validate_plan(outcome, runs, progress)
    return replace(outcome, validation=found)
