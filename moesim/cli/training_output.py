"""What ``moesim simulate training`` says of an iteration, as JSON."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from moesim.training.outcome import PricedCall, TrainingStep
    from moesim.training.request import TrainingRequest

__all__ = ["training_json"]


def training_json(request: TrainingRequest, found: TrainingStep) -> dict[str, Any]:
    """The object that ``--json`` prints."""
    import moesim

    shape, options = found.shape, found.options
    layout = shape.layout
    return {
        "schema": "moesim.simulate/1",
        "ok": True,
        "simulation": "training",
        "model": shape.model.name,
        "cluster": found.machine.cluster.name,
        "device": found.machine.device.name,
        "devices": layout.devices,
        "system": request.system,
        "layout": asdict(layout),
        "micro_batches": layout.micro_batches,
        "dispatch": "alltoall" if shape.alltoall else "allgather",
        "overlap": options.overlap,
        "recompute": options.recompute,
        "slowdown": options.slowdown,
        "routing": found.routing,
        "cost": str(request.cost),
        "evidence": found.evidence.value,
        "step_s": found.step_s,
        "lo_s": found.lo_s,
        "hi_s": found.hi_s,
        "mfu": found.mfu,
        "tokens_per_s": found.tokens_per_s,
        "tokens_per_s_per_device": found.tokens_per_s / layout.devices,
        "micro_batch_s": max(found.stage_s),
        "stage_s": list(found.stage_s),
        "compute_s": found.compute_s,
        "communication_s": found.communication_s,
        "bubble": found.bubble,
        "gradient_exposed_s": found.gradient_exposed_s,
        "weight_exposed_s": found.weight_exposed_s,
        "optimizer_s": found.optimizer_s,
        "gradient_bytes": found.reduction.gradient_bytes,
        "weight_bytes": found.reduction.weight_bytes,
        "memory_bytes_per_device": found.memory.total,
        "memory": asdict(found.memory),
        "ops": [
            _op_json(found, priced, way)
            for way, calls in (("forward", found.forward), ("backward", found.backward))
            for priced in calls
        ],
        "seed": request.seed,
        "version": moesim.__version__,
    }


def _op_json(found: TrainingStep, priced: PricedCall, way: str) -> dict[str, Any]:
    """A call of one micro-batch, over the layers of a stage; the ends stand on one stage."""
    call, price = priced.call, priced.priced.price
    op = call.op
    count = 1.0 if call.block == "ends" else op.layers / found.shape.layout.pp
    moved = op.work.bytes * count
    flops = op.work.flops * count * call.times
    if call.floor is not None:
        moved += call.floor.work.bytes * count
    time_s = priced.time_s * count
    scale = time_s / price.time_s if price.time_s else 0.0
    return {
        "name": op.name,
        "way": way,
        "operator": op.operator,
        "layers": count,
        "flops": flops,
        "bytes": moved,
        "op_per_byte": flops / moved if moved else 0.0,
        "time_s": time_s,
        "lo_s": price.lo_s * scale,
        "hi_s": price.hi_s * scale,
        "bound": priced.bound,
        "device": found.machine.device.name,
        "kernel": price.kernel,
        "evidence": price.evidence.value,
    }
