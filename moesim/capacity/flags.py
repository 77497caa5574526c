"""How a layout is launched: flags of vLLM, SGLang and TensorRT-LLM.

Names are those of vLLM 0.12 (docs.vllm.ai: engine arguments, expert parallel deployment), SGLang
0.5 (docs.sglang.io: server arguments, expert parallelism, PD disaggregation) and TensorRT-LLM 1.x
(nvidia.github.io/TensorRT-LLM: trtllm-serve, LLM API arguments).
"""

from __future__ import annotations

from math import ceil

from moesim.capacity.candidates import Candidate
from moesim.capacity.deployments import Plan

__all__ = ["launch_flags", "worker_flags"]


def launch_flags(plan: Plan, in_flight: float, model: str) -> dict[str, list[str]]:
    """Command lines of each kind of worker, one per node and replica.

    Args:
        plan: What is launched.
        in_flight: Requests at work over all replicas.
        model: As engines name it.

    Returns:
        Lines by worker: ``replica``, or ``prefill`` and ``decode``.
    """
    each = ceil(in_flight / plan.workers)
    if plan.prefill is None:
        return {"replica": worker_flags(plan.candidate, each, model)}
    return {
        "prefill": worker_flags(plan.prefill, each, model, "prefill"),
        "decode": worker_flags(plan.candidate, each, model, "decode"),
    }


def worker_flags(candidate: Candidate, in_flight: int, model: str, role: str = "") -> list[str]:
    """The command line of one worker, and the files that it names.

    Args:
        candidate: Engine, layout, formats.
        in_flight: Requests that the worker is to work on at once.
        model: As engines name it.
        role: ``prefill`` or ``decode`` if it does only that.
    """
    engine = candidate.pool.policy.name
    if engine == "vllm":
        return _vllm(candidate, in_flight, model, role)
    if engine == "sglang":
        return _sglang(candidate, in_flight, model, role)
    return _trtllm(candidate, in_flight, model, role)


def _batch(candidate: Candidate, in_flight: int) -> int:
    """Most sequences of one group: what the load needs, a quarter more, up to the engine's own."""
    needed = ceil(1.25 * in_flight / candidate.pool.groups)
    return max(1, min(candidate.pool.policy.max_sequences, needed))


def _vllm(candidate: Candidate, in_flight: int, model: str, role: str) -> list[str]:
    layout, policy = candidate.layout, candidate.pool.policy
    words = [f"vllm serve {model}", f"--tensor-parallel-size {layout.tp}"]
    if layout.pp > 1:
        words.append(f"--pipeline-parallel-size {layout.pp}")
    if layout.dp > 1:
        words.append(f"--data-parallel-size {layout.dp}")
    if layout.ep > 1:
        words.append("--enable-expert-parallel")
        if layout.dispatch == "deepep":
            kernels = "deepep_high_throughput" if role == "prefill" else "deepep_low_latency"
            words.append(f"--all2all-backend {kernels}")
    if layout.redundant:
        words.append("--enable-eplb")
        words.append(f"--eplb-config '{{\"num_redundant_experts\": {layout.redundant}}}'")
    words.append(f"--max-num-seqs {_batch(candidate, in_flight)}")
    words.append(f"--max-num-batched-tokens {policy.token_budget}")
    words.append(f"--gpu-memory-utilization {policy.memory_share:g}")
    if candidate.formats.kv == "fp8":
        words.append("--kv-cache-dtype fp8")
    if role:
        kind = {"prefill": "kv_producer", "decode": "kv_consumer"}[role]
        words.append(
            f'--kv-transfer-config \'{{"kv_connector": "NixlConnector", "kv_role": "{kind}"}}\''
        )
    return [" ".join(words)]


def _sglang(candidate: Candidate, in_flight: int, model: str, role: str) -> list[str]:
    layout, policy = candidate.layout, candidate.pool.policy
    words = [
        f"python -m sglang.launch_server --model-path {model}",
        f"--tp-size {layout.stage_devices}",
    ]
    if layout.pp > 1:
        words.append(f"--pp-size {layout.pp}")
    if layout.dp > 1:
        words.append(f"--dp-size {layout.dp} --enable-dp-attention")
    if layout.ep > 1:
        words.append(f"--ep-size {layout.ep}")
    if layout.dispatch == "deepep":
        mode = {"prefill": "normal", "decode": "low_latency"}.get(role, "auto")
        words.append(f"--moe-a2a-backend deepep --deepep-mode {mode}")
    if layout.redundant:
        words.append(f"--enable-eplb --ep-num-redundant-experts {layout.redundant}")
    words.append(f"--max-running-requests {_batch(candidate, in_flight) * layout.dp}")
    # The server divides the size that it is given by the attention groups.
    words.append(f"--chunked-prefill-size {policy.token_budget * layout.dp}")
    words.append(f"--mem-fraction-static {policy.memory_share:g}")
    if candidate.formats.kv == "fp8":
        words.append("--kv-cache-dtype fp8_e4m3")
    if role:
        words.append(f"--disaggregation-mode {role}")
    return [" ".join(words)]


def _trtllm(candidate: Candidate, in_flight: int, model: str, role: str) -> list[str]:
    layout, policy = candidate.layout, candidate.pool.policy
    words = [
        f"trtllm-serve {model} --backend pytorch --tp_size {layout.stage_devices}",
        f"--ep_size {layout.ep}",
        f"--max_batch_size {_batch(candidate, in_flight)}",
        f"--max_num_tokens {policy.token_budget}",
        f"--kv_cache_free_gpu_memory_fraction {policy.memory_share:g}",
    ]
    if layout.pp > 1:
        words.append(f"--pp_size {layout.pp}")
    options = []
    if layout.dp > 1:
        options.append("enable_attention_dp: true")
    if layout.redundant:
        slots = candidate.model.experts + layout.redundant
        options.append(f"moe_config: {{load_balancer: {{num_slots: {slots}}}}}")
    if candidate.formats.kv == "fp8":
        options.append("kv_cache_config: {dtype: fp8}")
    if policy.name.endswith("max-utilization"):
        options.append("scheduler_config: {capacity_scheduler_policy: MAX_UTILIZATION}")
    if role:
        options.append("cache_transceiver_config: {backend: DEFAULT}")
    if options:
        words.append("--extra_llm_api_options options.yaml")
    return [" ".join(words), *(f"options.yaml: {option}" for option in options)]
