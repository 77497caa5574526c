"""Engines' scheduling policies, with their documented defaults."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, ValidationError

from moesim.errors import UsageError
from moesim.fitted_costs import Engine
from moesim.hardware import near_names
from moesim.schema import Document

__all__ = ["ENGINES", "EnginePolicy", "find_engine"]

Order = Literal["mixed", "prefill-first"]
"""What a step holds: decode tokens and chunks of prompts together; or prompts alone as long as
there are any to admit, and decode tokens alone otherwise."""


class EnginePolicy(Document):
    """How an engine forms its steps; every number is that of one attention group.

    Prompts are admitted first come, first served, and take the KV blocks of all their tokens at
    once. ``growth`` blocks are kept free for the tokens still to come: for those of a new request
    wholly (``keeps_own``), for those of running requests a share that begins at
    ``growth_share[0]``, falls to ``growth_share[1]`` in ``growth_steps`` decode steps, and begins
    anew when memory runs out. Then the request admitted last gives its blocks back, and its tokens
    are computed again later.

    Attributes:
        name: For the command line.
        kernels: Whose kernels run.
        order: See :data:`Order`.
        token_budget: Most new tokens of a step (vLLM ``max_num_batched_tokens``, SGLang
            ``chunked_prefill_size``, TensorRT-LLM ``max_num_tokens``).
        max_sequences: Most requests at work.
        block_tokens: Tokens per KV block.
        memory_share: Share of the device's memory that weights, activations and cache may take.
        chunked: Whether a prompt is cut where the budget ends; otherwise it waits for a step that
            holds it whole, or has one to itself if none can.
        mixed_chunk: In ``prefill-first`` order, whether decode tokens ride along.
        growth_share: See above.
        growth_steps: See above.
        keeps_own: See above.
        own_clip: Most tokens still to come that are counted of a new request.
        graph_sizes: Sequences for which decode steps are captured as a CUDA graph; a step is
            padded to the next.
        source: Where the defaults stand.
    """

    schema_id: ClassVar[str] = "moesim.engine-policy/1"

    name: str
    kernels: Engine
    order: Order
    token_budget: int = Field(ge=1, le=2**20)
    max_sequences: int = Field(ge=1, le=2**20)
    block_tokens: int = Field(ge=1, le=2**16)
    memory_share: float = Field(gt=0, le=1)
    chunked: bool = True
    mixed_chunk: bool = False
    growth_share: tuple[float, float] = (0.0, 0.0)
    growth_steps: int = Field(default=1, ge=1)
    keeps_own: bool = False
    own_clip: int = Field(default=2**30, ge=1)
    graph_sizes: tuple[int, ...] = ()
    source: str = ""

    @property
    def growth_decay(self) -> float:
        """What the share falls by in a decode step."""
        return (self.growth_share[0] - self.growth_share[1]) / self.growth_steps


_LIST = (
    EnginePolicy(
        name="vllm",
        kernels="vllm",
        order="mixed",
        token_budget=8192,
        max_sequences=1024,
        block_tokens=16,
        memory_share=0.9,
        graph_sizes=(1, 2, 4, *range(8, 256, 8), *range(256, 513, 16)),
        source=(
            "vLLM 0.11–0.13: vllm/engine/arg_utils.py get_batch_defaults (API server on devices of "
            "at least 70 GiB other than the A100), vllm/config/vllm.py cudagraph_capture_sizes, "
            "vllm/v1/core/sched/scheduler.py"
        ),
    ),
    EnginePolicy(
        name="sglang",
        kernels="sglang",
        order="prefill-first",
        token_budget=8192,
        max_sequences=2048,
        block_tokens=1,
        memory_share=0.88,
        growth_share=(0.7, 0.7 * 0.14),
        growth_steps=600,
        keeps_own=True,
        own_clip=4096,
        graph_sizes=(1, 2, 4, 8, 12, *range(16, 257, 8), *range(272, 513, 16)),
        source=(
            "SGLang 0.5: srt/server_args.py (devices of 60 to 160 GB: chunked_prefill_size 8192; "
            "cuda_graph_max_bs 512 at TP 4 and more), srt/environ.py (new token ratio), "
            "srt/managers/schedule_policy.py PrefillAdder"
        ),
    ),
    EnginePolicy(
        name="trtllm",
        kernels="trtllm",
        order="mixed",
        token_budget=8192,
        max_sequences=2048,
        block_tokens=32,
        memory_share=0.9,
        chunked=False,
        growth_share=(1.0, 1.0),
        keeps_own=True,
        graph_sizes=(1, 2, 4, *range(8, 129, 8), 256, 512, 1024, 2048),
        source=(
            "TensorRT-LLM 1.x: llmapi/llm_args.py (max_num_tokens 8192, max_batch_size 2048, "
            "tokens_per_block 32, enable_chunked_prefill false, CudaGraphConfig with padding), "
            "capacity_scheduler_policy GUARANTEED_NO_EVICT"
        ),
    ),
    EnginePolicy(
        name="trtllm-max-utilization",
        kernels="trtllm",
        order="mixed",
        token_budget=8192,
        max_sequences=2048,
        block_tokens=32,
        memory_share=0.9,
        chunked=False,
        graph_sizes=(1, 2, 4, *range(8, 129, 8), 256, 512, 1024, 2048),
        source="As trtllm, with capacity_scheduler_policy MAX_UTILIZATION",
    ),
)

ENGINES = {policy.name: policy for policy in _LIST}


_GIB = 2**30


def find_engine(
    name: str, *, memory_bytes: float | None = None, groups: int = 1, **changes: object
) -> EnginePolicy:
    """A policy by name, as it is on such devices, with parts replaced where something is given.

    Args:
        name: One of :data:`ENGINES`.
        memory_bytes: Of a device; between 70 and 160 GiB if left out.
        groups: Attention groups of a replica.
        **changes: Attributes of the policy; those that are None change nothing.

    Raises:
        UsageError: If there is no such engine, or a change is out of range.
    """
    if name not in ENGINES:
        raise UsageError(
            f"--engine {name!r} is not known{near_names(name, list(ENGINES))}\n"
            f"fix: choose from {', '.join(ENGINES)}"
        )
    policy = ENGINES[name]
    usual = _by_device(policy, memory_bytes or 80 * _GIB, groups)
    given = {key: value for key, value in changes.items() if value is not None}
    try:
        return EnginePolicy.model_validate(policy.model_dump() | usual | given)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        option = "--" + str(first["loc"][0]).replace("_", "-")
        raise UsageError(
            f"{option}: {str(first['msg']).lower()}; found {first['input']}\n"
            f"fix: pass another {option}"
        ) from error


def _by_device(policy: EnginePolicy, memory_bytes: float, groups: int) -> dict[str, object]:
    """Defaults that depend on the device or the layout."""
    if policy.name == "vllm" and memory_bytes < 70 * _GIB:
        return {"token_budget": 2048, "max_sequences": 256}
    if policy.name != "sglang":
        return {}
    budget = policy.token_budget if memory_bytes < 160 * _GIB else 16384
    if groups == 1:
        return {"token_budget": budget}
    # server_args.py _handle_data_parallelism: the chunk is divided, conservativeness times 0.3.
    first, last = policy.growth_share
    return {"token_budget": max(1, budget // groups), "growth_share": (0.3 * first, 0.3 * last)}
