"""Speed and memory of the trace statistics, as ratios measured in one run.

    python -m tests.benchmarks.statistics [--tokens N --layers L --top-k K --experts E --json]
    python -m tests.benchmarks.statistics --memory [--tokens 10000000 --layers 58 ...]

Speed, on one thread, on a trace that is mapped from disk and warm in the page cache. The subjects
take turns, and the best of the repeats counts for each:

    loads        moesim.traces.statistics.loads(trace)
    transitions  moesim.traces.statistics.transitions(trace)
    bincount     [np.bincount(routing[l].ravel(), minlength=E) for every layer l]
    sum          routing.sum(), as numpy does it by default (uint8 is summed in uint64)
    max          routing.max(), numpy's fastest pass over the same bytes, for comparison only

Goals: loads at least 4 x as fast as bincount and at most 2.2 x the time of sum; transitions at
least 0.8 x the rate of loads, in pairs per second against assignments per second.

Memory writes a trace of the stated size (4.6 GB by default) to a folder that is removed afterwards,
takes loads, windowed loads and transitions in a process of its own, and prints the most memory that
it had resident (ru_maxrss). Goal: below 1 GiB.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from moesim.safe_io import write_json
from moesim.traces import statistics
from moesim.traces.bundle import Trace, open_trace, routing_dtype

GIB = 2**30
CHUNK_TOKENS = 2**18


def choose(tokens, top_k, experts, skew, rng):
    """[tokens, K] distinct experts by log-normal popularity (sigma = skew), in random order."""
    popularity = rng.normal(0, skew, experts)
    noisy = popularity + rng.gumbel(size=(tokens, experts))
    return np.argpartition(-noisy, top_k - 1, axis=1)[:, :top_k].astype(routing_dtype(experts))


def write_synthetic(folder: Path, args) -> Trace:
    """A trace written piece by piece; each layer repeats 16384 drawn tokens in random order."""
    rng = np.random.default_rng(args.seed)
    dtype = routing_dtype(args.experts)
    shape = (args.layers, args.tokens, args.top_k)
    header = {"descr": dtype.str, "fortran_order": False, "shape": shape}
    with (folder / "routing.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for _ in range(args.layers):
            pool = choose(min(16384, args.tokens), args.top_k, args.experts, args.skew, rng)
            for start in range(0, args.tokens, CHUNK_TOKENS):
                count = min(CHUNK_TOKENS, args.tokens - start)
                file.write(pool[rng.integers(0, len(pool), count)])
    manifest = {
        "schema": "moesim.trace/1",
        "model": "synthetic",
        "layers": args.layers,
        "moe_layers": list(range(args.layers)),
        "experts": args.experts,
        "top_k": args.top_k,
        "tokens": args.tokens,
        "dtype": dtype.name,
    }
    write_json(folder / "manifest.json", manifest)
    return open_trace(folder)


def best_times(subjects, repeats):
    """Seconds of the fastest of several calls; the subjects take turns."""
    best = dict.fromkeys(subjects, float("inf"))
    for _ in range(repeats):
        for name, subject in subjects.items():
            start = time.perf_counter()
            subject()
            best[name] = min(best[name], time.perf_counter() - start)
    return best


def measure_speed(trace: Trace, repeats: int) -> dict:
    routing, experts = trace.routing, trace.manifest.experts
    subjects = {
        "loads": lambda: statistics.loads(trace),
        "transitions": lambda: statistics.transitions(trace),
        "bincount": lambda: [np.bincount(layer.ravel(), minlength=experts) for layer in routing],
        "sum": lambda: routing.sum(),
        "max": lambda: routing.max(),
    }
    best_times(subjects, 1)  # compile, and map the file
    best = best_times(subjects, repeats)
    assignments = routing.size
    pairs = assignments // trace.manifest.layers * (trace.manifest.layers - 1) * routing.shape[2]
    others = {
        "windowed_loads": lambda: statistics.windowed_loads(trace, 4096),
        "coactivation": lambda: statistics.coactivation(trace),
    }
    best_times(others, 1)
    best |= best_times(others, max(1, repeats // 3))
    loads_per_s, pairs_per_s = assignments / best["loads"], pairs / best["transitions"]
    return {
        "assignments": assignments,
        "best_s": best,
        "loads_assignments_per_s": loads_per_s,
        "transitions_pairs_per_s": pairs_per_s,
        "windowed_loads_assignments_per_s": assignments / best["windowed_loads"],
        "coactivation_pairs_per_s": assignments * routing.shape[2] / best["coactivation"],
        "loads_speed_over_bincount": best["bincount"] / best["loads"],
        "loads_time_over_sum": best["loads"] / best["sum"],
        "loads_time_over_max": best["loads"] / best["max"],
        "transitions_rate_over_loads_rate": pairs_per_s / loads_per_s,
    }


def measure_memory(folder: Path, window_tokens: int) -> dict:
    trace, took_s = open_trace(folder), {}
    baseline_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    for name, subject in (
        ("loads", lambda: statistics.loads(trace)),
        ("windowed_loads", lambda: statistics.windowed_loads(trace, window_tokens)),
        ("transitions", lambda: statistics.transitions(trace)),
    ):
        start = time.perf_counter()
        total = int(subject().sum())
        took_s[name] = time.perf_counter() - start
        pairs = trace.routing.size // trace.manifest.layers * (trace.manifest.layers - 1)
        expected = trace.routing.size
        if name == "transitions":
            expected = pairs * trace.manifest.top_k
        if total != expected:
            sys.exit(f"{name}: {total} counted, {expected} expected")
    return {
        "file_bytes": trace.routing.nbytes,
        "took_s": took_s,
        "baseline_rss_bytes": baseline_bytes,
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def show_speed(result: dict, args) -> None:
    print(
        f"{args.tokens} tokens x {args.layers} layers x top-{args.top_k} of {args.experts} experts,"
        f" skew {args.skew}; best of {args.repeats}"
    )
    for name in ("loads_assignments", "windowed_loads_assignments"):
        print(f"{name + ' per s':<42}{result[name + '_per_s'] / 1e9:6.2f} G")
    for name in ("transitions_pairs", "coactivation_pairs"):
        print(f"{name + ' per s':<42}{result[name + '_per_s'] / 1e9:6.2f} G")
    for name, goal in (
        ("loads_speed_over_bincount", ">= 4"),
        ("loads_time_over_sum", "<= 2.2"),
        ("loads_time_over_max", "no goal"),
        ("transitions_rate_over_loads_rate", ">= 0.8"),
    ):
        print(f"{name:<42}{result[name]:6.2f}    goal {goal}")


def parse_arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=int)
    parser.add_argument("--layers", type=int)
    parser.add_argument("--top-k", type=int, default=8)
    parser.add_argument("--experts", type=int, default=256)
    parser.add_argument(
        "--skew", type=float, default=1.0, help="sigma of the log-normal popularity"
    )
    parser.add_argument("--window-tokens", type=int, default=4096)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="where to make the temporary folder")
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--measure-memory-of", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    args.tokens = args.tokens or (10_000_000 if args.memory else 100_000)
    args.layers = args.layers or (58 if args.memory else 16)
    return args


def main() -> None:
    args = parse_arguments()
    if args.measure_memory_of:
        print(json.dumps(measure_memory(args.measure_memory_of, args.window_tokens)))
        return
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        trace = write_synthetic(Path(folder), args)
        if not args.memory:
            result = measure_speed(trace, args.repeats)
        else:
            del trace
            # A process of its own, since ru_maxrss never falls.
            command = [sys.executable, "-m", "tests.benchmarks.statistics"]
            command += ["--measure-memory-of", folder, "--window-tokens", str(args.window_tokens)]
            answer = subprocess.run(command, check=True, stdout=subprocess.PIPE)
            result = json.loads(answer.stdout)
    if args.json:
        print(json.dumps(result))
    elif args.memory:
        print(f"routing.npy {result['file_bytes'] / 1e9:.2f} GB")
        print("  ".join(f"{name} {s:.1f} s" for name, s in result["took_s"].items()))
        print(
            f"peak resident {result['peak_rss_bytes'] / GIB:.3f} GiB "
            f"({result['baseline_rss_bytes'] / GIB:.3f} GiB before); goal < 1 GiB"
        )
    else:
        show_speed(result, args)


if __name__ == "__main__":
    main()
