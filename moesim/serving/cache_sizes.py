"""How many tokens the cache of an attention group holds."""

from __future__ import annotations

from moesim.errors import InfeasibleError
from moesim.forward.step_tables import StepTables
from moesim.serving.engines import EnginePolicy
from moesim.units import format_bytes

__all__ = ["cache_sizes"]

STATE_SHARE = 0.9 / 1.9
"""Of the cache's memory that states of a fixed size (recurrences, full windows) may take: SGLang's
``--mamba-full-memory-ratio`` gives them 0.9 of what tokens get (srt/server_args.py)."""

UNBOUNDED = 2**40
"""Tokens where none takes memory."""


def cache_sizes(
    tables: StepTables, policy: EnginePolicy, sequences: int, what: str
) -> tuple[int, int]:
    """Divide a group's memory between tokens and states.

    Args:
        tables: What weights, activations, tokens and states take.
        policy: Share of memory in use, most sequences at work.
        sequences: That come to a group at most.
        what: Model and machine, for the error.

    Returns:
        Tokens that the cache holds, and most sequences at work.

    Raises:
        InfeasibleError: If weights and activations leave no room.
    """
    room = tables.cache_bytes(policy.memory_share)
    if room <= 0:
        raise InfeasibleError(
            f"{what} does not fit: weights and activations of a device take "
            f"{format_bytes(tables.memory.total)}, and engines plan with "
            f"{format_bytes(tables.memory_bytes * policy.memory_share)}\n"
            "fix: use more devices, another layout, narrower formats, a smaller --token-budget or "
            "a larger --memory-share"
        )
    most = policy.max_sequences
    state = tables.state_bytes_per_sequence
    if state > 0:
        most = max(1, min(most, int(room * STATE_SHARE / state)))
        room -= min(most, sequences) * state
    if tables.cache_bytes_per_token <= 0:
        return UNBOUNDED, most
    return max(0, int(room / tables.cache_bytes_per_token)), most
