"""Mutated files at every reader: each must be read or refused, soon, and in little memory.

    python -m tests.benchmarks.fuzz [--inputs 10000 --seed 0 --only device,grid --json]

A reader gets a valid file with a few changes: bytes flipped, lost, doubled or swapped, numbers made
huge or negative, values of another type, keys lost or renamed. What is not read must be refused by
one of moesim's own errors; anything else is a failure, as is a file that takes more than
:data:`MOST_S` seconds, or more than :data:`MOST_BYTES` of further memory in the process.

Goal: 10,000 inputs per reader, no failure.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from functools import cache
from io import StringIO
from pathlib import Path

import moesim
from moesim.calibrate.serving_rows import read_runs
from moesim.cluster import load_cluster
from moesim.errors import MoesimError
from moesim.fpga.documents import load_design, load_network
from moesim.hardware import load_device
from moesim.kernels.bench_file import read_bench
from moesim.kernels.config_table import load_table
from moesim.measured_kernels import load_measured
from moesim.model import load_model
from moesim.operators.shipped import shipped_fits
from moesim.placement import read_plan
from moesim.planners.exports import read_export
from moesim.reports.offload_scenario import OffloadScenario
from moesim.reports.paper import Paper
from moesim.reports.scenario import load_scenario
from moesim.serving.request_files import read_requests
from moesim.sweep.grid import read_grid
from moesim.traces.counts import read_counts
from tests.operators.measured_files import fits as made_up_fits

MOST_S = 5.0
MOST_BYTES = 2 * 2**30

ROOT = Path(moesim.__file__).parent
GRID = "verb: simulate step\nmodel: [a, b]\nbatch: [1, 2.5, null, true]\nname: [[x, y], z]\n"
CLUSTER = """schema: moesim.cluster/1
name: two
device: h100_sxm
nodes: 2
devices_per_node: 8
speed_factors: [1, 1, 1, 1, 1, 1, 1, 1, 0.5, 1, 1, 1, 1, 1, 1, 1]
"""
CONFIG = {
    "architectures": ["Qwen2MoeForCausalLM"], "model_type": "qwen2_moe", "vocab_size": 1000,
    "hidden_size": 512, "intermediate_size": 1024, "moe_intermediate_size": 256,
    "shared_expert_intermediate_size": 256, "num_hidden_layers": 4, "num_attention_heads": 8,
    "num_key_value_heads": 4, "num_experts": 8, "num_experts_per_tok": 2,
    "decoder_sparse_step": 1, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
}  # fmt: skip
RUNS = (
    "id,backend,model_path,system,precision,mode,isl,osl,concurrency,gemm_quant_mode,"
    "moe_quant_mode,tp_size,pp_size,attention_dp_size,moe_tp_size,moe_ep_size,silicon_ttft_ms,"
    "silicon_tpot_ms\na,sglang,m,h200_sxm,fp8,agg,1024,1024,8,fp8,fp8,8,1,1,8,1,150,12\n"
)
REQUESTS = '{"timestamp": 0, "input_length": 10, "output_length": 5}\n' * 3
WORDS = [b"-1", b"1e308", b"nan", b"null", b"true", b"[]", b"{}", b'""', b"0", b"99999999999999"]


Reader = tuple[Callable[[Path], object], str, Callable[[], bytes]]
"""What reads, the ending of its files, and a valid file."""


@cache
def _plan_files() -> dict[str, bytes]:
    """Files that a plan of the sample writes."""
    from moesim.cli.app import app
    from moesim.cli.console import run

    with tempfile.TemporaryDirectory() as name, redirect_stdout(StringIO()):
        run(app, ["plan", "--planner", "lpt", "--out", name, "--quiet"])
        return {file.name: file.read_bytes() for file in Path(name).iterdir()}


def _plan_file(name: str) -> Callable[[], bytes]:
    return lambda: _plan_files()[name]


def _engine_file(engine: str) -> Callable[[Path], object]:
    model = load_model("small-moe-30b-dims", dense=True)
    return lambda path: read_export(engine, path, model, 16)


def _bench_text() -> bytes:
    """A measured file with its first cases alone."""
    document = json.loads((ROOT / "kernels" / "measured" / "h100_sxm.json").read_text())
    document["cases"] = document["cases"][:4]
    kept = {case["case"] for case in document["cases"]}
    document["loads"] = {name: load for name, load in document["loads"].items() if name in kept}
    return json.dumps(document).encode()


def readers() -> dict[str, Reader]:
    """All readers of files that people write or pass on, by name."""
    profiles = ROOT / "hwprofiles"
    scenarios = ROOT / "reports" / "scenarios"
    return {
        "device": (load_device, ".yaml", (profiles / "h100_sxm.yaml").read_bytes),
        "pim": (load_device, ".yaml", (profiles / "duplex.yaml").read_bytes),
        "fpga": (load_device, ".yaml", (profiles / "fpga_zcu102.yaml").read_bytes),
        "cluster": (load_cluster, ".yaml", CLUSTER.encode),
        "config": (load_model, ".json", json.dumps(CONFIG).encode),
        "model": (load_model, ".json", (scenarios / "duplex-glam-143b.json").read_bytes),
        "grid": (read_grid, ".yaml", GRID.encode),
        "paper": (Paper.load, ".yaml", (scenarios / "edge-moe.yaml").read_bytes),
        "scenario": (load_scenario, ".yaml", (scenarios / "moetuner.yaml").read_bytes),
        "runs": (read_runs, ".csv", RUNS.encode),
        "requests": (read_requests, ".jsonl", REQUESTS.encode),
        "plan": (read_plan, ".json", _plan_file("plan.json")),
        "sglang": (_engine_file("sglang"), ".json", _plan_file("sglang_expert_location.json")),
        "vllm": (_engine_file("vllm"), ".json", _plan_file("vllm_expert_map.json")),
        "ascend": (_engine_file("vllm-ascend"), ".json", _plan_file("vllm_ascend_expert_map.json")),
        "trtllm": (
            _engine_file("tensorrt-llm"),
            ".yaml",
            _plan_file("tensorrt_llm_load_balancer.yaml"),
        ),
        "network": (load_network, ".yaml", (ROOT / "fpga/models/m3vit_tiny.yaml").read_bytes),
        "design": (load_design, ".yaml", (ROOT / "fpga/designs/edge_moe.yaml").read_bytes),
        "offload": (OffloadScenario.load, ".yaml", (scenarios / "hybrimoe.yaml").read_bytes),
        "configs": (load_table, ".json", (ROOT / "kernels" / "configs.json").read_bytes),
        "bench": (read_bench, ".json", _bench_text),
        "rates": (lambda path: load_measured(str(path)), ".json", _fitted_text),
        "fits": (_fits, ".json", (profiles / "fitted" / "scale_matrix.json").read_bytes),
        "counts": (read_counts, ".csv", b"layer,expert,count\n0,0,5\n0,1,7\n1,0,3\n1,1,9\n".strip),
    }


def _fitted_text() -> bytes:
    return json.dumps(made_up_fits().to_dict()).encode()


def _fits(path: Path) -> object:
    shipped_fits.cache_clear()
    return shipped_fits("scale_matrix", path)


def mutated(valid: bytes, chance: random.Random) -> bytes:
    """A file with one to five changes."""
    text = bytearray(valid)
    for _ in range(chance.randint(1, 5)):
        if not text:
            break
        place = chance.randrange(len(text))
        kind = chance.randrange(8)
        if kind == 0:
            text[place] = chance.randrange(256)
        elif kind == 1:
            del text[place : place + chance.randint(1, 40)]
        elif kind == 2:
            text[place:place] = text[place : place + chance.randint(1, 200)]
        elif kind == 3:
            text[place:place] = chance.choice(WORDS)
        else:
            _change_value(text, place, chance)
    return bytes(text)


def _change_value(text: bytearray, place: int, chance: random.Random) -> None:
    """Replace the word at a place by another kind of value, or a word of the file."""
    ends = b" ,:[]{}\"'\n"
    begin = place
    while begin > 0 and text[begin - 1] not in ends:
        begin -= 1
    end = place
    while end < len(text) and text[end] not in ends:
        end += 1
    words = bytes(text).split()
    text[begin:end] = chance.choice(WORDS if chance.random() < 0.7 or not words else words)


class _TooLongError(Exception):
    pass


def _stop(*_: object) -> None:
    raise _TooLongError


def failures(name: str, inputs: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """What a reader did wrong, with the input."""
    read, ending, make = readers()[name]
    valid = make()
    chance = random.Random(f"{seed} {name}")
    signal.signal(signal.SIGALRM, _stop)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"input{ending}"
        path.write_bytes(valid)
        read(path)  # what is changed below is sound before
        for _ in range(inputs):
            text = mutated(valid, chance)
            path.write_bytes(text)
            signal.setitimer(signal.ITIMER_REAL, MOST_S)
            try:
                read(path)
            except MoesimError:
                pass
            except _TooLongError:
                yield f"more than {MOST_S:.0f} s", text
            except Exception as error:
                yield f"{type(error).__name__}: {error}"[:200], text
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--inputs", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    names = given.only.split(",") if given.only else list(readers())
    table, worst = {}, 0
    for name in names:
        begin = time.perf_counter()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        found = list(failures(name, given.inputs, given.seed))
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
        bad = len(found) + (grown > MOST_BYTES)
        worst += bad
        table[name] = {
            "inputs": given.inputs,
            "failures": bad,
            "first": [what for what, _ in found[:3]],
            "grown_bytes": grown,
            "seconds": time.perf_counter() - begin,
        }
        if not given.json:
            print(
                f"{name:<10}{given.inputs:>8,} inputs {bad:>5} failures {grown / 2**20:>6.0f} MiB "
                f"{table[name]['seconds']:>6.1f} s  " + "; ".join(table[name]["first"])
            )
    if given.json:
        print(json.dumps({"ok": not worst, "readers": table}, indent=1))


if __name__ == "__main__":
    main()
