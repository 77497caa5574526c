"""Columns of :mod:`moesim.planners.moge_size` out of the step model: one layer, part by part."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

from moesim.errors import MoesimError
from moesim.forward.expert_load import parse_distribution
from moesim.forward.formats import Formats
from moesim.forward.layout import Layout, StepLoad
from moesim.forward.machine import Machine
from moesim.forward.simulate import simulate_step
from moesim.model import ModelSpec
from moesim.operators.gemm import FORMATS
from moesim.operators.moe_kernels import WEIGHT_BYTES
from moesim.planners.moge_size import AttentionColumn, Context, ExpertColumn
from moesim.schema import Evidence, weakest

__all__ = ["SizeSpace", "size_contexts"]

HEAD_DIM = 128
EMBEDDING_BYTES = 2.0
"""Of a weight of embedding and head: bfloat16, as in :mod:`moesim.forward.memory`."""


@dataclass(frozen=True)
class SizeSpace:
    """Values to choose from.

    The defaults are the space that Pangu Pro MoE was searched in (arXiv 2505.21411, section 4.3),
    with its eight active experts (table 1). Without ``groups`` every shape gets the fewest groups
    that keep devices balanced: a layer's time knows only how many experts are active, so that more
    groups cost the same and leave a token fewer sets of experts.
    """

    hidden: tuple[int, ...] = (4096, 5120, 6144, 7168, 8192)
    layers: tuple[int, ...] = (40, 48, 56, 64)
    heads: tuple[int, ...] = (32, 40, 48, 64)
    kv_heads: tuple[int, ...] = (8, 16)
    experts: tuple[int, ...] = (32, 48, 64)
    groups: tuple[int, ...] | None = None
    top_k: tuple[int, ...] = (8,)
    width: tuple[int, ...] = (896, 1152, 1344, 1536, 1792, 2304, 2816)
    shared: tuple[int, ...] = (4,)
    batch: tuple[int, ...] = (64, 128, 256, 456)
    vocabulary: int = 153376


def size_contexts(
    space: SizeSpace, machine: Machine, formats: Formats, context_tokens: int
) -> list[Context]:
    """Every context of a space on a cluster, with the columns that divide over it.

    Args:
        space: Values to choose from.
        machine: Devices; experts are spread over all of them, a whole number of groups each.
        formats: Of weights and cache.
        context_tokens: Cached by every sequence.
    """
    cards = machine.cluster.devices
    found = []
    for tp, dp in dict.fromkeys(((cards, 1), (max(1, cards // 2), min(2, cards)))):
        layout = Layout.complete(
            cards, tp=tp, dp=dp, ep=cards, dispatch="allgather" if dp > 1 else None
        )
        for hidden in space.hidden:
            for batch in space.batch:
                part = _Parts(space, machine, layout, formats, hidden, batch, context_tokens)
                attention, experts = part.attention(), part.experts()
                if not attention or not experts:
                    continue
                embedding = 2.0 * space.vocabulary * hidden
                for layers in space.layers:
                    found.append(
                        Context(
                            hidden, layers, tp, dp, batch, part.rest_s, embedding,
                            embedding * EMBEDDING_BYTES / tp, attention, experts, part.interval,
                            part.evidence,
                        )
                    )  # fmt: skip
    return found


@dataclass
class _Parts:
    """One layer of some hidden size at a batch."""

    space: SizeSpace
    machine: Machine
    layout: Layout
    formats: Formats
    hidden: int
    batch: int
    context_tokens: int
    rest_s: float = 0.0
    interval: tuple[float, float] = (1.0, 1.0)
    evidence: Evidence = Evidence.MEASURED

    def attention(self) -> tuple[AttentionColumn, ...]:
        """All that divide over the layout."""
        columns: list[AttentionColumn] = []
        shapes = _expert_shapes(self.space, self.layout.devices)
        if not shapes:
            return ()
        plain = shapes[0]
        for heads in self.space.heads:
            for kv_heads in self.space.kv_heads:
                if heads % kv_heads or heads % self.layout.tp:
                    continue
                model = _layer(self.hidden, heads, kv_heads, plain, self.space.vocabulary)
                times = self._seconds(model)
                if times is None:
                    continue
                self.rest_s = times["rest"]
                parameters = self.hidden * HEAD_DIM * (2.0 * heads + 2.0 * kv_heads)
                own = max(1.0, kv_heads / self.layout.tp) * HEAD_DIM * 2
                cache = own * 2.0 * self.batch / self.layout.dp * self.context_tokens
                weights = parameters * FORMATS[self.formats.gemm].weight_bytes / self.layout.tp
                columns.append(
                    AttentionColumn(
                        heads, kv_heads, times["attention"], parameters, weights + cache
                    )
                )
        return tuple(columns)

    def experts(self) -> tuple[ExpertColumn, ...]:
        """All whose groups divide over the devices."""
        columns, devices = [], self.layout.devices
        heads, kv_heads = self.space.heads[0], self.space.kv_heads[0]
        for column in _expert_shapes(self.space, devices):
            times = self._seconds(
                _layer(self.hidden, heads, kv_heads, column, self.space.vocabulary)
            )
            if times is None:
                continue
            one = 3.0 * self.hidden * column.width
            router = float(self.hidden * column.experts)
            columns.append(
                replace(
                    column,
                    seconds=times["experts"],
                    parameters=one * (column.experts + column.shared) + router,
                    active=one * (column.groups * column.per_group + column.shared) + router,
                    device_bytes=one
                    * (
                        column.experts * WEIGHT_BYTES[self.formats.experts]
                        + column.shared * FORMATS[self.formats.gemm].weight_bytes
                    )
                    / devices,
                )
            )
        return tuple(columns)

    def _seconds(self, model: ModelSpec) -> dict[str, float] | None:
        """Of attention, experts and the rest; None where the layout does not divide the model."""
        try:
            self.layout.check(model)
            step = simulate_step(
                model,
                self.machine,
                self.layout,
                StepLoad.of("decode", self.batch, self.context_tokens),
                self.formats,
                parse_distribution("balanced"),
                check_memory=False,
            )
        except MoesimError:
            return None
        self.evidence = weakest(self.evidence, step.evidence)
        self.interval = step.lo_s / step.step_s, step.hi_s / step.step_s
        times = {"attention": 0.0, "experts": 0.0, "rest": 0.0}
        for priced in step.ops:
            part = priced.op.name.partition(".")[0]
            key = {"gqa": "attention", "moe": "experts"}.get(part, "rest")
            times[key] += priced.time_s
        return times


def _expert_shapes(space: SizeSpace, devices: int) -> list[ExpertColumn]:
    """All whose groups divide experts and active experts, a whole number of them per device."""
    return [
        ExpertColumn(experts, groups, top_k // groups, width, shared, 0.0, 0.0, 0.0, 0.0)
        for experts in space.experts
        for top_k in space.top_k
        if top_k <= experts
        for groups in _groupings(space, devices, experts, top_k)
        for width in space.width
        for shared in space.shared
    ]


def _groupings(space: SizeSpace, devices: int, experts: int, top_k: int) -> list[int]:
    """Numbers of groups of a shape: those asked for, else the fewest."""
    asked = space.groups or (devices,)
    return [
        groups
        for groups in asked
        if groups % devices == 0 and experts % groups == 0 and top_k % groups == 0
    ]


@lru_cache(maxsize=4096)
def _layer(
    hidden: int, heads: int, kv_heads: int, experts: ExpertColumn, vocabulary: int
) -> ModelSpec:
    """A model of one layer."""
    attention = {
        "layers": (0,), "extra_parameters": 0, "kind": "gqa", "heads": heads,
        "kv_heads": kv_heads, "head_dim": HEAD_DIM, "value_head_dim": HEAD_DIM,
    }  # fmt: skip
    return ModelSpec.model_validate(
        {
            "name": "one-layer",
            "architecture": "grouped",
            "source": "a point of a search",
            "layers": 1,
            "hidden_size": hidden,
            "vocabulary_size": vocabulary,
            "tied_embeddings": False,
            "moe_layers": (0,),
            "experts": experts.experts,
            "top_k": experts.groups * experts.per_group,
            "expert_width": experts.width,
            "expert_matrices": 3,
            "shared_experts": 1 if experts.shared else 0,
            "shared_expert_width": experts.shared * experts.width,
            "dense_layers": (),
            "dense_width": 0,
            "mixers": (attention,),
            "other_parameters": 0,
            "quantisation": {"method": "none", "weight_bits": 16, "scale_bits_per_weight": 0.0},
            "activation_bits": 16,
        }
    )
