"""What a cache policy is: which experts stay when another one is loaded."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import fields
from typing import ClassVar

import numpy as np

from moesim.cache.accesses import Accesses
from moesim.traces.bundle import Trace

__all__ = ["Policy", "SizedPolicy", "StackPolicy"]


class Policy(ABC):
    """A replacement policy with its parameters; subclasses are frozen dataclasses.

    Attributes:
        name: As on the command line.
        summary: What it does, in one line.
        needs_weights: Whether it looks at router weights (``Accesses.weights``).
        preloaded: Whether the cache is filled before the first access, so that nothing is cold.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    needs_weights: ClassVar[bool] = False
    preloaded: ClassVar[bool] = False

    @property
    def label(self) -> str:
        """Name and parameters, such as ``sch:window=16``."""
        given = [f"{field.name}={getattr(self, field.name)}" for field in fields(self)]  # type: ignore[arg-type]
        return ":".join([self.name, *given])

    def fitted(self, trace: Trace) -> Policy:
        """The policy after it has seen the trace that it is to serve, if it needs that."""
        return self

    def quotas(self, slots: int, layers: int, experts: int) -> np.ndarray:
        """Slots of each layer when every layer has slots of its own.

        Args:
            slots: Per layer on average.
            layers: L.
            experts: E of each layer.

        Returns:
            [L] int64.
        """
        return np.full(layers, min(slots, experts), np.int64)


class StackPolicy(Policy):
    """A policy whose larger cache always holds what the smaller one holds (inclusion).

    Then one number per access, the smallest size at which it hits, says all about every size
    (Mattson et al., Evaluation techniques for storage hierarchies, 1970).

    Attributes:
        replays_one_size: Whether :meth:`hits` replays a single size of a large cache faster.
    """

    replays_one_size: ClassVar[bool] = False

    @abstractmethod
    def depths(self, accesses: Accesses, *, atomic: bool) -> np.ndarray:
        """The smallest number of slots at which each access hits.

        Args:
            accesses: What the cache is asked for.
            atomic: Whether the contract is event-atomic.

        Returns:
            [N] uint16, 1 … objects; any number for the first access to an expert after a reset,
            which the caller replaces.
        """

    def hits(self, accesses: Accesses, *, atomic: bool, slots: int) -> np.ndarray | None:
        """Which accesses hit at one size, where that is faster to replay by itself.

        Returns:
            [N] bool, anything for the first access to an expert after a reset; None where
            :meth:`depths` is as fast.
        """
        return None


class SizedPolicy(Policy):
    """A policy that has to be replayed for every size."""

    @abstractmethod
    def hits(self, accesses: Accesses, *, atomic: bool, slots: int) -> np.ndarray:
        """Which accesses hit in a cache of one size.

        Args:
            accesses: What the cache is asked for.
            atomic: Whether the contract is event-atomic.
            slots: Size of the cache, 1 … objects.

        Returns:
            [N] bool; False for the first access to an expert after a reset.
        """
