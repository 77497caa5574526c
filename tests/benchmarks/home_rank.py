"""Copies between nodes where tokens return to their rank: planners against EPLB, in one run.

    python -m tests.benchmarks.home_rank --shapes deepseek-v3 --seeds 2

Made-up traces whose tokens use experts together (topics), with and without the routing groups of
node-limited routing. A token's vector crosses to a node once, however many of its experts are
there. Everything is relative to EPLB, on the tokens that were planned on and on others.
"""

import argparse
import tempfile
from pathlib import Path

from moesim.planners.outcome import PlanRequest
from moesim.planners.plan import make_plan
from moesim.traces.generate import generate
from moesim.traces.synthetic_spec import GeneratorSpec

SHAPES = {
    # model, cluster, layers, experts, top-k, groups, groups per token
    "deepseek-v3": ("deepseek-v3", "4x8xh100_sxm", 58, 256, 8, 8, 4),
    "deepseek-v3-free": ("deepseek-v3", "4x8xh100_sxm", 58, 256, 8, 1, 1),
    "qwen3": ("qwen3-30b-a3b", "2x8xh100_sxm", 48, 128, 8, 1, 1),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", default="qwen3,deepseek-v3")
    parser.add_argument("--seeds", type=int, default=1, help="traces of each")
    parser.add_argument("--tokens", type=int, default=65_536)
    parser.add_argument("--affinity", type=float, default=0.7)
    parser.add_argument("--skew", type=float, default=0.4)
    parser.add_argument("--redundant", type=int, default=0)
    parser.add_argument("--time-limit", type=float, default=60.0)
    parser.add_argument("--planners", default="eplb,lpt-swap,joint")
    options = parser.parse_args()
    print(f"{'trace':<18}{'seed':>5}{'planner':>22}{'step':>9}{'balance':>9}{'node copies':>13}"
          f"{'held out: step':>16}{'balance':>9}{'node copies':>13}{'solve s':>9}")  # fmt: skip
    for shape in options.shapes.split(","):
        if shape not in SHAPES:
            parser.error(f"--shapes: {shape} is not one of {', '.join(SHAPES)}")
        for seed in range(options.seeds):
            report(shape, seed, options)


def report(shape, seed, options):
    model, cluster, layers, experts, top_k, groups, per_token = SHAPES[shape]
    spec = GeneratorSpec(
        layers=layers, experts=experts, top_k=top_k, tokens=options.tokens, skew=options.skew,
        affinity=options.affinity, groups=groups, groups_per_token=per_token,
    )  # fmt: skip
    names = tuple(dict.fromkeys(["eplb", *options.planners.split(",")]))
    with tempfile.TemporaryDirectory() as folder:
        generate(spec, Path(folder) / "trace", seed=seed)
        outcome = make_plan(
            PlanRequest(
                trace=Path(folder) / "trace", model=model, cluster=cluster, planner=names[-1],
                beside=names[:-1], redundant=options.redundant, seed=seed,
                time_limit_s=options.time_limit,
            )
        )  # fmt: skip
    base = outcome.scores["eplb"]
    for name in names:
        found = outcome.scores[name]
        line = f"{shape:<18}{seed:>5}{name:>22}"
        for cost, against in ((found.cost, base.cost), (found.holdout, base.holdout)):
            step = cost.step_s / against.step_s - 1
            copies = cost.internode_bytes / against.internode_bytes - 1
            width = 9 if cost is found.cost else 16
            line += f"{step:>+{width}.1%}{cost.balance:>9.3f}{copies:>+13.1%}"
        print(f"{line}{found.solve_s:>9.1f}", flush=True)


if __name__ == "__main__":
    main()
