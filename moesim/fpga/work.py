"""The regions that an FPGA runs one after another: cycles of computing, and data over ports.

Counts follow the published sources of Edge-MoE function by function. Loops start one iteration per
cycle; of arithmetic pipelines only dividers count, others are too short. ``waits`` are memory
latencies that nothing hides: the first data of a region, the answer to its last write, and every
point at which a pipeline runs empty before the next request.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from moesim.fpga.documents import Design, VitMoe
from moesim.fpga.ports import Stream, burst, scattered
from moesim.fpga.techniques import Techniques

__all__ = ["Region", "Workload"]


@dataclass(frozen=True)
class Region:
    """One call of the accelerator's top function.

    Attributes:
        name: What it does.
        compute_cycles: If data were always there.
        flops: Multiply-adds count two.
        streams: Data, at the same time.
        waits: Memory latencies that are not hidden.
    """

    name: str
    compute_cycles: float
    flops: float
    streams: tuple[Stream, ...]
    waits: int


@dataclass(frozen=True)
class Workload:
    """Regions of one image.

    Attributes:
        network: The vision transformer.
        design: The accelerator.
        techniques: Which of its techniques are on.
    """

    network: VitMoe
    design: Design
    techniques: Techniques

    @property
    def _token_bytes(self) -> float:
        return self.network.hidden * self.design.bits.activation / 8

    @property
    def _all_tokens_bytes(self) -> float:
        return self.network.tokens * self._token_bytes

    def patch_embedding(self) -> Region:
        """Pixels to features; the first patch of a row of patches waits for its pixels."""
        net, design = self.network, self.design
        image = net.image
        pixels = image.channels * image.height * image.width
        side_by_side = max(1, design.axi.width_bits // design.bits.pixel // image.patch)
        strips = image.height // image.patch
        cycles = (
            strips
            * image.channels
            * image.patch
            * ceil(image.width / image.patch / side_by_side)
            * design.feature_blocks(net.hidden)
        )
        streams = (
            burst(design, "image", pixels * design.bits.pixel / 8),
            burst(design, "weights", self._all_tokens_bytes),
            burst(design, "residual", self._all_tokens_bytes, write=True),
        )
        return Region("patch embedding", cycles, 2.0 * pixels * net.hidden, streams, strips + 1)

    def normalisation(self) -> Region:
        """One layer normalisation: a call per token, which ends before the next one starts.

        Reading a token and dividing by the deviation of the one before overlap.
        """
        design, tokens = self.design, self.network.tokens
        streams = (
            burst(design, "residual", self._token_bytes, tokens),
            burst(design, "normed", self._token_bytes, tokens, write=True),
        )
        cycles = tokens * (design.feature_blocks(self.network.hidden) + design.dividers.cycles)
        # Scale and shift of the layer, a vector each.
        weights = burst(design, "weights", self.network.hidden * design.bits.weight / 8, 2)
        flops = 8.0 * tokens * self.network.hidden
        return Region("normalisation", cycles, flops, (*streams, weights), tokens + 3)

    def addition(self) -> Region:
        """A residual connection."""
        design = self.design
        streams = (
            burst(design, "residual", self._all_tokens_bytes),
            burst(design, "projected", self._all_tokens_bytes),
            burst(design, "residual", self._all_tokens_bytes, write=True),
        )
        tokens, hidden = self.network.tokens, self.network.hidden
        cycles = tokens * design.feature_blocks(hidden)
        return Region("residual", cycles, float(tokens * hidden), streams, 2)

    def linear(
        self, name: str, outputs: int, inputs: int, source: str, target: str
    ) -> tuple[Region, Region]:
        """Loading a matrix, and computing with it for all tokens."""
        tokens, bits = self.network.tokens, self.design.bits.activation
        streams = (
            burst(self.design, source, tokens * inputs * bits / 8),
            burst(self.design, target, tokens * outputs * bits / 8, write=True),
        )
        cycles = self.linear_cycles(tokens, outputs, inputs)
        flops = 2.0 * tokens * outputs * inputs
        return self.load(outputs, inputs), Region(name, cycles, flops, streams, 2)

    def linear_cycles(self, tokens: int, outputs: int, inputs: int) -> int:
        """Of the linear unit, or of one of the smaller ones that stand in its place."""
        unit = self.design.linear
        rows = max(1, unit.outputs // (1 if self.techniques.unified_unit else self.linear_kinds))
        return ceil(tokens / unit.tokens) * ceil(outputs / rows) * ceil(inputs / unit.inputs)

    @property
    def linear_kinds(self) -> int:
        """Linear layers of different shape: units that there would be without a shared one."""
        net, shapes = self.network, set()
        shapes.add((net.hidden, net.hidden))
        if net.dense_layers:
            shapes |= {(net.dense_hidden, net.hidden), (net.hidden, net.dense_hidden)}
        if net.moe_layers:
            width = net.moe.expert_hidden
            shapes |= {(width, net.hidden), (net.hidden, width)}
        return len(shapes)

    def load(self, outputs: int, inputs: int) -> Region:
        """A matrix row by row, then its bias."""
        bits = self.design.bits.weight
        streams = (
            burst(self.design, "weights", inputs * bits / 8, outputs),
            burst(self.design, "weights", outputs * bits / 8),
        )
        # Rows follow one another in memory: no latency between them.
        return Region("weight loads", 0, 0.0, streams, 2)

    @property
    def key_passes(self) -> tuple[int, int]:
        """Rows of K (or V) that pass the unit, and how often it starts over.

        With reordering a row serves P queries; query i starts i rows late, so that each step needs
        one row. Without, P keys of one query are needed at a time, and every query reads them all.
        """
        tokens, queries = self.network.tokens, self.design.attention.queries
        if not self.techniques.attention_reordering:
            return tokens * tokens, tokens
        whole, rest = divmod(tokens + queries - 1, queries)
        return whole * tokens + rest, whole + (rest > 0)

    def _passes(self, array: str) -> tuple[Stream, ...]:
        """K or V, pass by pass; the last pass may be short."""
        rows, _ = self.key_passes
        whole, rest = divmod(rows, self.network.tokens)
        found = (burst(self.design, array, self._all_tokens_bytes, whole),)
        return (*found, burst(self.design, array, rest * self._token_bytes)) if rest else found

    @property
    def _score_bytes(self) -> float:
        """Of all heads of a pair, padded to a power of two."""
        return 2 ** (self.network.heads - 1).bit_length() * self.design.bits.activation / 8

    @property
    def _attention_cycles(self) -> int:
        rows, _ = self.key_passes
        if not self.techniques.attention_reordering:
            tokens = self.network.tokens
            rows = tokens * ceil(tokens / self.design.attention.queries)
        return rows * self.design.feature_blocks(self.network.hidden)

    @property
    def _scores(self) -> float:
        """Bytes of the scores, steps at the ends that belong to no query included."""
        rows, _ = self.key_passes
        slots = self.design.attention.queries if self.techniques.attention_reordering else 1
        return rows * slots * self._score_bytes

    def scores(self) -> tuple[Region, ...]:
        """Q·K, the running softmax beside it, and more passes over the scores without that."""
        design, net = self.design, self.network
        _, starts = self.key_passes
        pair = 2 * self._score_bytes
        streams = (
            burst(design, "query", self._all_tokens_bytes),
            *self._passes("key"),
            burst(design, "scores", self._scores, write=True),
            burst(design, "softmax", net.tokens * pair, write=True),
        )
        flops = 2.0 * net.tokens**2 * net.hidden
        found = Region("scores", self._attention_cycles, flops, streams, starts + 1)
        if self.techniques.single_pass_softmax:
            return (found,)
        # The largest score first, then the sum of exponentials.
        again = Region("softmax passes", 0, 0.0, (burst(design, "scores", self._scores),), 1)
        return found, again, again

    def values(self) -> Region:
        """Normalised scores times V."""
        design, net = self.design, self.network
        _, starts = self.key_passes
        streams = (
            *self._passes("value"),
            burst(design, "scores", self._scores),
            burst(design, "softmax", net.tokens * 2 * self._score_bytes),
            burst(design, "mixed", self._all_tokens_bytes, write=True),
        )
        flops = 2.0 * net.tokens**2 * net.hidden
        return Region("values", self._attention_cycles, flops, streams, starts + 1)

    def gate(self) -> tuple[Region, ...]:
        """Router weights, scores and queues of all tokens, and the output set to zero."""
        net, design = self.network, self.design
        blocks, experts = design.feature_blocks(net.hidden), net.moe.experts
        per_load = design.block_features * design.bits.weight / 8
        load = Region(
            "gate", 0, 0.0, (scattered(design, "weights", per_load, experts * blocks),), 1
        )
        # Scores, running softmax, top-k, division: one after another, token by token.
        per_token = blocks + (design.gate.softmax_interval + 1) * experts + design.dividers.cycles
        cycles = net.tokens * per_token
        read = burst(design, "normed", self._all_tokens_bytes)
        choose = Region("gate", cycles, 2.0 * net.tokens * net.hidden * experts, (read,), 1)
        write = burst(design, "projected", self._all_tokens_bytes, write=True)
        zero = Region("gate", net.tokens * blocks, 0.0, (write,), 1)
        return load, choose, zero

    def expert_loads(self) -> tuple[Region, Region]:
        """The two matrices of an expert."""
        width, hidden = self.network.moe.expert_hidden, self.network.hidden
        return self.load(width, hidden), self.load(hidden, width)

    def expert_matmuls(self, tokens: int) -> tuple[Region, Region]:
        """Both matrices of an expert for a queue of tokens, gathered and scattered by index."""
        net, design = self.network, self.design
        width, hidden = net.moe.expert_hidden, net.hidden
        wide = width * design.bits.activation / 8
        whole = tokens == net.tokens  # queues of all tokens are read in order
        gather = burst if whole else scattered
        flops = 2.0 * tokens * width * hidden
        first = Region(
            "experts", self.linear_cycles(tokens, width, hidden), flops,
            (gather(design, "normed", self._token_bytes, tokens),
             gather(design, "hidden", wide, tokens, write=True)), 2,
        )  # fmt: skip
        second = Region(
            "experts", self.linear_cycles(tokens, hidden, width), flops,
            (gather(design, "hidden", wide, tokens),
             scattered(design, "projected", self._token_bytes, tokens),
             scattered(design, "projected", self._token_bytes, tokens, write=True)), 2,
        )  # fmt: skip
        return first, second
