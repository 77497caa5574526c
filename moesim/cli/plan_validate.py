"""``moesim plan --validate``: its options, checked before anything is planned."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from moesim.errors import InfeasibleError, PartialResultError

if TYPE_CHECKING:
    from moesim.calibrate.validate_plan import ValidateOptions
    from moesim.planners.outcome import PlanOutcome

__all__ = ["INTERRUPTED", "beside", "options", "validated"]

INTERRUPTED = 130


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
) -> tuple[PlanOutcome, int, str]:
    """The outcome with what running its experts showed, or without it: the plan is worth keeping.

    Returns:
        The outcome, the exit code that the runs ask for, and what went wrong with them.
    """
    from moesim.calibrate.validate_plan import validate_plan

    def progress(share: float, text: str) -> None:
        say(f"running {share:.0%} {text}")

    try:
        found = validate_plan(outcome, runs, progress)
    except KeyboardInterrupt:
        return outcome, INTERRUPTED, "interrupted before anything was run"
    except InfeasibleError as error:
        return outcome, PartialResultError.exit_code, f"not validated: {error}"
    if found.interrupted:
        return replace(outcome, validation=found), INTERRUPTED, "the runs were interrupted"
    return replace(outcome, validation=found), 0, ""
