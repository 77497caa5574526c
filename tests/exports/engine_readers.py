"""What each engine makes of an exported file: its reader's contract, written as a strict checker.

The engines are too large to install for a test. Each function here states, in its own words, the
rules of one reader at one version, and answers with the ranks that the engine would load every
expert on: ``{(model layer, expert): sorted ranks, one per copy}``. They share no code with the
exporters.
"""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

import pydantic
import yaml

Hosting = dict[tuple[int, int], list[int]]


class ReaderError(Exception):
    """The engine would fail to start, or would place experts wrongly."""


def need(condition: bool, rule: str) -> None:
    if not condition:
        raise ReaderError(rule)


def is_int(value: object) -> bool:
    return type(value) is int


def sglang(
    file: Path, *, layers: int, moe_layers: tuple[int, ...], experts: int, redundant: int, ep: int
) -> Hosting:
    """sgl-project/sglang at 01fec5c2, python/sglang/srt/eplb/expert_location.py.

    - compute_initial_expert_location_metadata: the name must end in .json for a JSON file; an
      object with physical_to_logical_map is spread into keyword arguments, so further keys are a
      TypeError;
    - init_by_mapping: the map becomes a tensor (a full rectangle of integers);
    - _init_common: physical experts = logical + redundant, and divisible by ep_size;
    - ExpertLocationMetadata: one row per model layer (num_hidden_layers), looked up by layer id;
    - an expert without a slot leaves the static dispatch table at −1, which is asserted against;
    - slot s is on rank s // (physical / ep_size).
    """
    need(str(file).endswith(".json"), "file name")
    data = json.loads(file.read_text())
    need(isinstance(data, dict) and list(data) == ["physical_to_logical_map"], "only that key")
    rows = data["physical_to_logical_map"]
    physical = experts + redundant
    need(physical % ep == 0, "divisible by ep_size")
    need(len(rows) == layers, "one row per model layer")
    need(all(len(row) == physical for row in rows), "a rectangle as wide as the physical experts")
    need(all(is_int(e) and 0 <= e < experts for row in rows for e in row), "logical ids")
    need(all(set(row) == set(range(experts)) for row in rows), "every expert has a slot")
    return hosting({layer: rows[layer] for layer in moe_layers}, ep)


def vllm(
    file: Path, *, moe_layers: tuple[int, ...], experts: int, redundant: int, ep: int
) -> Hosting:
    """vllm-project/vllm pull request 49572 (open), eplb_config.initial_expert_map_path.

    The description: JSON; one list for all MoE layers or one per MoE layer; dimensions, id ranges
    and full coverage of the logical experts are validated. Slots are contiguous per rank
    (vllm/distributed/eplb/eplb_state.py).
    """
    rows = json.loads(file.read_text())
    need(isinstance(rows, list) and bool(rows), "a list")
    if is_int(rows[0]):
        rows = [rows] * len(moe_layers)
    need(len(rows) == len(moe_layers), "one row per MoE layer")
    need(all(len(row) == experts + redundant for row in rows), "as wide as the physical experts")
    need(all(is_int(e) for row in rows for e in row), "integers")
    need(all(set(row) == set(range(experts)) for row in rows), "ids and coverage")
    need((experts + redundant) % ep == 0, "divisible by the ranks")
    return hosting(dict(zip(moe_layers, rows, strict=True)), ep)


def vllm_ascend(
    file: Path, *, moe_layers: tuple[int, ...], experts: int, redundant: int, ep: int
) -> Hosting:
    """vllm-project/vllm-ascend at 182b75ea.

    - ascend_config.py, EplbConfig: the name must end in .json;
    - eplb_utils.py, expert_file_to_tensor: the n-th MoE layer built (a counter from 0) reads
      layer_list[n]; its devices' lists, in list order, must form a rectangle; counting past
      moe_layer_count is an error;
    - init_eplb_config: each rank's list is inverted into a logical → local map of E entries, so a
      second copy on a rank overwrites the first;
    - generate_log2phy_map: physical id = local + rank · (valid entries of rank 0), so every rank
      must have as many valid entries as it has slots; experts in no map break the scatter;
    - ops/fused_moe/routed_experts.py: slots per rank must equal (E + redundant) // ep.
    """
    need(str(file).endswith(".json"), "file name")
    data = json.loads(file.read_text())
    need(data["moe_layer_count"] == len(moe_layers), "one entry per MoE layer")
    rows = {}
    for counter, layer in enumerate(moe_layers):
        need(counter < data["moe_layer_count"], "counter within the table")
        placed = [device["device_expert"] for device in data["layer_list"][counter]["device_list"]]
        need(len(placed) == ep, "one list per rank")
        need(all(len(row) == (experts + redundant) // ep for row in placed), "local capacity")
        need(all(is_int(e) and 0 <= e < experts for row in placed for e in row), "logical ids")
        inverse = [{expert: local for local, expert in enumerate(row)} for row in placed]
        valid = len(inverse[0])
        physical = {
            (rank, expert): local + rank * valid
            for rank, held in enumerate(inverse)
            for expert, local in held.items()
        }
        need({expert for _, expert in physical} == set(range(experts)), "every expert is held")
        flat = [expert for row in placed for expert in row]
        need(len(physical) == len(flat), "no slot is overwritten")
        need(all(flat[slot] == e for (_, e), slot in physical.items()), "ids point at their slots")
        rows[layer] = flat
    need(len(data["layer_list"]) == len(moe_layers), "no layer left over")
    return hosting(rows, ep)


class LoadBalancer(pydantic.BaseModel):
    """Fields of NVIDIA/TensorRT-LLM's MoeLoadBalancerConfig, which forbids others."""

    model_config = pydantic.ConfigDict(extra="forbid")

    num_slots: int | None = None
    initial_global_assignments: dict[int, list[int]] | None = None
    layer_updates_per_iter: int = 0


class MoeOptions(pydantic.BaseModel):
    """The fields that we write of MoeConfig, which forbids unknown ones; backend is a fixed set."""

    model_config = pydantic.ConfigDict(extra="forbid")

    backend: str = pydantic.Field(pattern="^(AUTO|CUTLASS|CUTEDSL|WIDEEP|TRTLLM|DEEPGEMM)$")
    load_balancer: str


def tensorrt_llm(
    options_file: Path, *, moe_layers: tuple[int, ...], experts: int, ep: int
) -> Hosting:
    """NVIDIA/TensorRT-LLM, llmapi/llm_args.py (MoeLoadBalancerConfig, MoeConfig).

    - setup: num_slots is given and divisible by ep_size;
    - get_layer_initial_global_assignments: the model's layer index is a key; the row is num_slots
      long; modules/fused_moe/interface.py: num_slots ≥ E, the row's ids are exactly all experts,
      and the balancer runs only with attention data parallelism and ep_size > 1;
    - cpp/…/moeLoadBalancer.cpp, setInitialWeightAssignments: slot rank · (slots / ranks) + local.
    """
    options = yaml.safe_load(options_file.read_text())
    need(options["enable_attention_dp"] is True and ep > 1, "attention DP and EP > 1")
    moe = MoeOptions.model_validate(options["moe_config"])
    config = LoadBalancer.model_validate(yaml.safe_load(Path(moe.load_balancer).read_text()))
    need(config.num_slots is not None and config.num_slots % ep == 0, "num_slots divides")
    need(config.layer_updates_per_iter == 0, "static")
    rows = {}
    for layer in moe_layers:
        need(layer in config.initial_global_assignments, f"KeyError: {layer}")
        row = config.initial_global_assignments[layer]
        need(len(row) == config.num_slots >= experts, "as long as num_slots")
        need(set(row) == set(range(experts)), "exactly all experts")
        rows[layer] = row
    return hosting(rows, ep)


def hosting(rows: dict[int, list[int]], ep: int) -> Hosting:
    """Ranks of every expert where rank r holds the r-th run of len(row) / ep slots."""
    ranks = defaultdict(list)
    for layer, row in rows.items():
        for slot, expert in enumerate(row):
            ranks[layer, expert].append(slot // (len(row) // ep))
    return {key: sorted(value) for key, value in ranks.items()}
