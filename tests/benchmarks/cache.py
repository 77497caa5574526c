"""Speed and memory of cache replays, as ratios measured in one run.

    python -m tests.benchmarks.cache [--tokens N --layers L --repeats R --json]
    python -m tests.benchmarks.cache --memory [--tokens 10000000 --layers 48 --experts 128]

Speed, on one thread, in CPU time (other processes disturb it less than wall time); the subjects
take turns, and the best of the repeats counts for each. The trace: a slowly wandering preference
per expert, 64 experts, top-8, cut into samples of 512 tokens that each start with an empty cache.

    lru, lfu, belady   moesim.cache.replay.hit_curve(trace, policy): all 64 sizes of every layer,
                       from the trace to the counts, ids checked
    libcachesim ...    cache.process_trace(reader) of libCacheSim on the same accesses: one size of
                       one pool for all layers, from a file in its own binary format
    full set           lru, lfu, belady, SCH for four windows and SRP for four windows, all sizes

Goals: lru, lfu, belady at least 100, 70, 20 M accesses/s; at least 3 x (lru) and 2 x (lfu, belady)
libCacheSim's speed for one size; the full set of 65536 tokens x 16 layers at most 4 s.

Memory writes a trace of the stated size (3.8 GB by default) to a folder that is removed afterwards,
replays LRU at all sizes without resets in a process of its own, and prints CPU time and the most
memory that it had resident (ru_maxrss). Goals: at most 90 s and 1 GiB.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import libcachesim
import numpy as np

from moesim.cache.accesses import cache_accesses
from moesim.cache.policies.belady import next_uses
from moesim.cache.replay import hit_curve
from moesim.cache.setting import CacheSetting
from moesim.traces.bundle import Trace, TraceManifest, open_trace
from moesim.traces.locality import segment_counts
from moesim.traces.sequences import trace_sequences

from .statistics import GIB, write_synthetic

EXPERTS, TOP_K, SAMPLE_TOKENS = 64, 8, 512
WINDOWS = (4, 16, 64, 256)
SETTING = CacheSetting(cold="hit", reset="sequence", sample_tokens=SAMPLE_TOKENS)
GOALS_PER_S = {"lru": 100e6, "lfu": 70e6, "belady": 20e6}
GOAL_RATIOS = {"lru": 3.0, "lfu": 2.0, "belady": 2.0}
THEIRS = {"lru": libcachesim.LRU, "lfu": libcachesim.LFU, "belady": libcachesim.Belady}
RECORD = np.dtype([("time", "<u4"), ("object", "<u8"), ("size", "<u4"), ("next", "<i8")])


def wandering_layer(tokens, rng):
    """[tokens, K]: popularity 1 / rank^0.8, a preference that wanders, and noise."""
    popularity = -0.8 * np.log(np.arange(1, EXPERTS + 1))
    rng.shuffle(popularity)
    level = rng.normal(size=EXPERTS)
    scores = rng.normal(size=(tokens, EXPERTS)).astype(np.float32)
    for token in range(tokens):
        level = 0.97 * level + 0.243 * scores[token]
        scores[token] = level
    noisy = scores + popularity + rng.gumbel(size=(tokens, EXPERTS))
    return np.argpartition(-noisy, TOP_K, axis=1)[:, :TOP_K].astype(np.uint8)


def make_trace(tokens, layers, seed):
    rng = np.random.default_rng(seed)
    routing = np.stack([wandering_layer(tokens, rng) for _ in range(layers)])
    manifest = TraceManifest(
        model="synthetic",
        layers=layers,
        moe_layers=tuple(range(layers)),
        experts=EXPERTS,
        top_k=TOP_K,
        tokens=tokens,
        dtype="uint8",
    )
    return Trace(manifest, routing)


def write_for_libcachesim(trace, file):
    """The accesses of all layers, token by token, in its format oracleGeneral."""
    (accesses,) = cache_accesses(trace, CacheSetting(scope="pooled"))
    following = next_uses(accesses).astype(np.int64)
    following[following > accesses.count] = -1
    records = np.zeros(accesses.count, RECORD)
    records["time"] = np.arange(1, accesses.count + 1)
    records["object"] = accesses.ids.astype(np.int64) + 1
    records["size"], records["next"] = 1, following
    records.tofile(file)


def their_run(policy, file, slots):
    reader = libcachesim.TraceReader(
        trace=str(file),
        trace_type=libcachesim.TraceType.ORACLE_GENERAL_TRACE,
        reader_init_params=libcachesim.ReaderInitParam(ignore_obj_size=True),
    )
    cache = policy(cache_size=slots)
    start = time.process_time()
    cache.process_trace(reader)
    return time.process_time() - start


def full_set(trace):
    sequences = trace_sequences(trace, SAMPLE_TOKENS)
    for policy in ("lru", "lfu", "belady", *(f"sch:window={m}" for m in WINDOWS)):
        hit_curve(trace, policy, None, SETTING, sequences=sequences)
    segment_counts(trace, WINDOWS, sequences=sequences)


def timed(subject):
    start = time.process_time()
    subject()
    return time.process_time() - start


def measure_speed(trace, repeats, folder):
    file = Path(folder) / "accesses.bin"
    write_for_libcachesim(trace, file)
    slots = trace.manifest.layers * 16
    subjects = {"full set": lambda: timed(lambda: full_set(trace))}
    for name, theirs in THEIRS.items():
        subjects[name] = lambda name=name: timed(lambda: hit_curve(trace, name, None, SETTING))
        subjects[f"libcachesim {name}"] = lambda theirs=theirs: their_run(theirs, file, slots)
    best = dict.fromkeys(subjects, float("inf"))
    full_set(trace)  # compile
    for _ in range(repeats):
        for name, subject in subjects.items():
            best[name] = min(best[name], subject())
    accesses = trace.routing.size
    return {
        "accesses": accesses,
        "best_s": best,
        "accesses_per_s": {name: accesses / s for name, s in best.items() if name != "full set"},
        "speed_over_libcachesim": {
            name: best[f"libcachesim {name}"] / best[name] for name in THEIRS
        },
        "hit_rate": {
            name: hit_curve(trace, name, [8, 16, 32], SETTING).hit_rate.tolist() for name in THEIRS
        },
    }


def measure_memory(folder):
    trace = open_trace(folder)
    baseline_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    start, start_cpu = time.perf_counter(), time.process_time()
    curve = hit_curve(trace, "lru")
    return {
        "accesses": int(curve.accesses.sum()),
        "hit_rate": curve.hit_rate[[7, 15, 63]].tolist(),
        "took_s": time.perf_counter() - start,
        "cpu_s": time.process_time() - start_cpu,
        "baseline_rss_bytes": baseline_bytes,
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def show_speed(result, args):
    print(
        f"{args.tokens} tokens x {args.layers} layers x top-{TOP_K} of {EXPERTS} experts; CPU time,"
        f" best of {args.repeats}"
    )
    for name, goal in GOALS_PER_S.items():
        ours = result["accesses_per_s"][name] / 1e6
        theirs = result["accesses_per_s"][f"libcachesim {name}"] / 1e6
        print(
            f"{name:<8}{ours:7.1f} M accesses/s, all {EXPERTS} sizes (goal {goal / 1e6:.0f}); "
            f"libCacheSim, one size: {theirs:.1f}; "
            f"ratio {result['speed_over_libcachesim'][name]:.2f} (goal {GOAL_RATIOS[name]:.0f})"
        )
    print(f"full set {result['best_s']['full set']:.2f} s (goal 4 s for 65536 tokens x 16 layers)")


def parse_arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=int)
    parser.add_argument("--layers", type=int)
    parser.add_argument("--top-k", type=int, default=TOP_K, help="with --memory")
    parser.add_argument("--experts", type=int, default=128, help="with --memory")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--skew", type=float, default=1.0, help="with --memory")
    parser.add_argument("--folder", type=Path, help="where to make the temporary folder")
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--measure-memory-of", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    args.tokens = args.tokens or (10_000_000 if args.memory else 65_536)
    args.layers = args.layers or (48 if args.memory else 16)
    return args


def main():
    args = parse_arguments()
    if args.measure_memory_of:
        print(json.dumps(measure_memory(args.measure_memory_of)))
        return
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        if args.memory:
            write_synthetic(Path(folder), args)
            # A process of its own, since ru_maxrss never falls.
            command = [sys.executable, "-m", "tests.benchmarks.cache"]
            command += ["--measure-memory-of", folder]
            answer = subprocess.run(command, check=True, stdout=subprocess.PIPE)
            result = json.loads(answer.stdout)
        else:
            trace = make_trace(args.tokens, args.layers, args.seed)
            result = measure_speed(trace, args.repeats, folder)
    if args.json:
        print(json.dumps(result))
    elif args.memory:
        print(
            f"LRU, all {args.experts} sizes: {result['accesses']} accesses in "
            f"{result['cpu_s']:.1f} s of CPU time ({result['took_s']:.1f} s), goal 90 s; peak "
            f"resident {result['peak_rss_bytes'] / GIB:.3f} GiB "
            f"({result['baseline_rss_bytes'] / GIB:.3f} GiB before), goal 1 GiB"
        )
    else:
        show_speed(result, args)


if __name__ == "__main__":
    main()
