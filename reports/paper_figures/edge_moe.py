"""Edge-MoE's figures from its design document, its board's profile and its network."""

from __future__ import annotations

from collections.abc import Mapping

from moesim.fpga.documents import Design, VitMoe
from moesim.fpga.simulate import FpgaRequest, FpgaRun, run_fpga
from moesim.fpga.techniques import Techniques
from moesim.fpga.work import Workload
from moesim.reports.paper import Paper
from moesim.reports.prediction import Prediction
from moesim.schema import Evidence

__all__ = ["predict"]


def predict(paper: Paper) -> Mapping[str, Prediction]:
    """Every figure of one run on the ZCU102."""
    del paper
    run = run_fpga(FpgaRequest())
    chosen, power = run.chosen, run.power_w
    flops = sum(timed.part.flops for timed in chosen.parts)
    rate = "operations that are executed; the published rate is of 2.5 billion per image"
    found = {
        "latency": _of(run, chosen.step_s, chosen.lo_s, chosen.hi_s),
        "power": Prediction(power, evidence=run.power_evidence),
        "energy": _of(run, power * chosen.step_s, power * chosen.lo_s, power * chosen.hi_s),
        "throughput": _of(
            run, flops / chosen.step_s, flops / chosen.hi_s, flops / chosen.lo_s, rate
        ),
        "efficiency": _of(run, flops / chosen.step_s / power, note=rate),
        "constant-bandwidth": Prediction(
            _key_bytes_per_cycle(run.network, run.design, 4)
            / _key_bytes_per_cycle(run.network, run.design, 1),
            evidence=Evidence.SPEC,
        ),
        "expert-reads": Prediction(_reads_per_hit(run), evidence=Evidence.SPEC),
    }
    return found


def _of(
    run: FpgaRun, value: float, lo: float | None = None, hi: float | None = None, note: str = ""
) -> Prediction:
    return Prediction(value, lo, hi, run.evidence, note)


def _key_bytes_per_cycle(network: VitMoe, design: Design, queries: int) -> float:
    attention = design.attention.model_copy(update={"queries": queries})
    wider = design.model_copy(update={"attention": attention})
    region = Workload(network, wider, Techniques()).scores()[0]
    moved = sum(stream.moved_bytes for stream in region.streams if stream.array == "key")
    return moved / region.compute_cycles


def _reads_per_hit(run: FpgaRun) -> float:
    """Experts read, from their bytes, over experts that any token chose."""
    loads = Workload(run.network, run.design, Techniques()).expert_loads()
    each = sum(stream.moved_bytes for region in loads for stream in region.streams)
    return run.chosen.expert_bytes / each / (run.network.moe_layers * run.experts_hit)
