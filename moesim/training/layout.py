"""How a training job is spread over devices, and what one iteration works on.

A *sequence group* of devices shares every sequence in attention: by heads with tensor parallelism,
by tokens outside attention and by heads inside with sequence parallelism (Ulysses, arXiv
2309.14509). An *expert group* of devices holds all experts of a layer once: whole experts over
``ep``, their width over ``expert_tp``. It is made of one or more sequence groups, each with
sequences of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from moesim.errors import UsageError
from moesim.model import ModelSpec

__all__ = ["OVERLAPS", "AttentionCut", "Overlap", "Recompute", "TrainingLayout"]

AttentionCut = Literal["tp", "sp"]
Recompute = Literal["none", "selective", "full"]
"""What backward computes again: nothing; norms, activations and what was gathered or dispatched
(MegaScale-MoE, arXiv 2505.11432, section 3.2); or the whole forward pass of a layer."""

Overlap = Literal["none", "inter", "full"]
"""Communication behind computation: not at all; behind independent operators; behind those and,
tile by tile, the operator that needs or makes what is sent (MegaScale-MoE, section 4)."""

OVERLAPS: tuple[Overlap, ...] = ("none", "inter", "full")


@dataclass(frozen=True)
class TrainingLayout:
    """Parallel layout and batch of an iteration.

    Attributes:
        attention: How a sequence group shares attention.
        group: Devices of a sequence group.
        ep: Devices that share the experts whole.
        expert_tp: Devices that share the width of an expert.
        pp: Pipeline stages.
        chunks: Model chunks per stage (interleaved schedule); 1 is plain 1F1B.
        dp: Sequence groups per stage, each with its own sequences.
        sequence: Tokens per sequence.
        micro_batch: Sequences of a sequence group at a time.
        global_batch: Sequences of an iteration.
    """

    attention: AttentionCut
    group: int
    ep: int
    expert_tp: int
    pp: int
    chunks: int
    dp: int
    sequence: int
    micro_batch: int
    global_batch: int

    @property
    def devices(self) -> int:
        """All devices."""
        return self.group * self.dp * self.pp

    @property
    def expert_group(self) -> int:
        """Devices that hold all experts of a layer once."""
        return self.ep * self.expert_tp

    @property
    def expert_dp(self) -> int:
        """Copies of every routed expert."""
        return self.group * self.dp // self.expert_group

    @property
    def micro_batches(self) -> int:
        """Micro-batches of every pipeline."""
        return self.global_batch // (self.dp * self.micro_batch)

    @property
    def own_tokens(self) -> int:
        """Tokens of a micro-batch that one device holds outside attention."""
        return self.micro_batch * self.sequence // self.group

    @property
    def sequence_tokens(self) -> int:
        """Tokens of a micro-batch of a sequence group."""
        return self.micro_batch * self.sequence

    @property
    def group_tokens(self) -> int:
        """Tokens of a micro-batch of an expert group."""
        return self.own_tokens * self.expert_group

    @property
    def tokens(self) -> int:
        """Tokens of an iteration."""
        return self.global_batch * self.sequence

    def __str__(self) -> str:
        sizes = {
            self.attention.upper(): self.group,
            "EP": self.ep,
            "expert TP": self.expert_tp,
            "PP": self.pp,
            "chunks": self.chunks,
            "DP": self.dp,
        }
        return " ".join(f"{name}{size}" for name, size in sizes.items() if size > 1) or "TP1"

    def check(self, model: ModelSpec) -> None:
        """Refuse a layout that does not divide the model or the batch.

        Raises:
            UsageError: Naming the option and what it must divide.
        """
        option = f"--{'tp' if self.attention == 'tp' else 'sp-attention'}"
        heads = [mixer.heads for mixer in model.mixers if hasattr(mixer, "heads")]
        divisions = [
            *((option, self.group, "attention heads", count) for count in heads),
            (option, self.group, "tokens of --sequence", self.sequence),
            ("--ep", self.ep, "experts", model.experts or self.ep),
            ("--expert-tp", self.expert_tp, "elements of an expert's width",
             model.expert_width or self.expert_tp),
            ("--pp times --chunks", self.pp * self.chunks, "layers", model.layers),
            ("--dp times --micro-batch", self.dp * self.micro_batch, "sequences of --global-batch",
             self.global_batch),
        ]  # fmt: skip
        for name, size, what, parts in divisions:
            if parts % size:
                raise UsageError(
                    f"{name} {size} does not divide the {parts} {what} of {model.name}\n"
                    f"fix: pass a divisor of {parts}"
                )
        nested = self.expert_group % self.group == 0 or self.group % self.expert_group == 0
        if not nested or (self.group * self.dp) % self.expert_group:
            raise UsageError(
                f"experts over {self.expert_group} devices (--ep {self.ep} times --expert-tp "
                f"{self.expert_tp}) do not go with {self.dp} sequence groups of {self.group}\n"
                f"fix: pass a multiple or divisor of {self.group} that divides "
                f"{self.group * self.dp}"
            )
        if self.chunks > 1 and (self.pp == 1 or self.micro_batches % self.pp):
            raise UsageError(
                f"--chunks {self.chunks} needs micro-batches in rounds of --pp {self.pp}; found "
                f"{self.micro_batches}\nfix: pass --chunks 1, or another --global-batch"
            )
