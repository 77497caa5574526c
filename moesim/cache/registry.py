"""Every cache policy by name."""

from __future__ import annotations

from dataclasses import fields

from moesim.cache.policies.arc import ARC
from moesim.cache.policies.belady import Belady
from moesim.cache.policies.belady_bypass import BeladyBypass
from moesim.cache.policies.expertflow import ExpertFlow
from moesim.cache.policies.fifo import FIFO
from moesim.cache.policies.lfru import LFRU
from moesim.cache.policies.lfu import LFU
from moesim.cache.policies.lfu_decay import LFUDecay
from moesim.cache.policies.lfu_resident import LFUResident
from moesim.cache.policies.lfu_window import LFUWindow
from moesim.cache.policies.lru import LRU
from moesim.cache.policies.moe_infinity import MoEInfinity
from moesim.cache.policies.mrs import MRS
from moesim.cache.policies.random_eviction import RandomEviction
from moesim.cache.policies.s3_fifo import S3FIFO
from moesim.cache.policies.sch import SCH
from moesim.cache.policies.shallow import Shallow
from moesim.cache.policies.static import Static
from moesim.cache.policy import Policy
from moesim.errors import UsageError
from moesim.hardware import near_names

__all__ = ["POLICIES", "find_policy"]

_CLASSES: tuple[type[Policy], ...] = (
    LRU,
    LFU,
    LFUResident,
    LFUWindow,
    LFUDecay,
    LFRU,
    FIFO,
    RandomEviction,
    ARC,
    S3FIFO,
    Static,
    MRS,
    MoEInfinity,
    Shallow,
    ExpertFlow,
    SCH,
    Belady,
    BeladyBypass,
)

POLICIES: dict[str, type[Policy]] = {policy.name: policy for policy in _CLASSES}


def find_policy(text: str | Policy) -> Policy:
    """The policy that ``NAME`` or ``NAME:PARAMETER=NUMBER:…`` names, such as ``sch:window=64``.

    Raises:
        UsageError: If there is no such policy or parameter, or the number is none.
    """
    if isinstance(text, Policy):
        return text
    name, *settings = text.split(":")
    if name not in POLICIES:
        raise UsageError(
            f"unknown cache policy {name!r}{near_names(name, list(POLICIES))}\n"
            f"fix: choose from {', '.join(POLICIES)}"
        )
    types = {
        field.name: field.type
        for field in fields(POLICIES[name])  # type: ignore[arg-type]
        if field.type in ("int", "float")
    }
    given: dict[str, int | float] = {}
    for setting in settings:
        key, _, value = setting.partition("=")
        if key not in types:
            known = ", ".join(types) or "none"
            raise UsageError(
                f"policy {name}: unknown parameter {key!r}\nfix: its parameters are: {known}"
            )
        try:
            given[key] = int(value) if types[key] == "int" else float(value)
        except ValueError:
            raise UsageError(
                f"policy {name}: {key} must be a number; found {value!r}\nfix: e.g. {key}=16"
            ) from None
    return POLICIES[name](**given)
