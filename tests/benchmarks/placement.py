"""The joint planner on made-up instances, against the planners that it must beat.

    python -m tests.benchmarks.placement --shapes qwen3/8,deepseek-v3/32 --kinds weak,strong,planted

Costs are relative to evenly spread computation alone (1 = no imbalance and no travel). The gap is
to a lower bound that holds for every placement: of the largest device loads, and of the travel
(``moesim/kept_flow.py``; ``--bound-steps`` sets how long it is tightened, −1 leaves it out).
"""

import argparse
import time

import numpy as np

from moesim.kept_flow import travel_at_least
from moesim.planners.joint import joint
from moesim.planners.load_bound import finish_load_bound
from moesim.planners.problem import PlacementProblem
from moesim.planners.registry import run_planner
from moesim.planners.search_cost import SearchCost
from tests.benchmarks.placement_instances import (
    ASSIGNMENT_S,
    FAR_S,
    KINDS,
    NEAR_S,
    SHAPES,
    even,
    make_instance,
    price,
)

TOKENS = 10**9
"""Of a step: loads become whole numbers without losing digits."""


def make_problem(instance, time_limit_s, seed):
    devices, per_node = instance.devices, instance.devices // instance.nodes
    cost = SearchCost(
        comm="chain",
        tokens=np.rint(instance.loads[:, None] * TOKENS).astype(np.int64),
        experts_s=lambda tokens: tokens.sum(axis=-1) * (ASSIGNMENT_S / TOKENS),
        arrival_s=0.0,
        node_of=np.arange(devices) // per_node,
        routing=None,
        nic_s=0.0,
        port_s=0.0,
        pair_vectors=1.0,
        near_s=NEAR_S / devices,
        far_s=FAR_S / devices,
    )
    node = np.arange(devices) // per_node
    return PlacementProblem(
        loads=instance.loads * TOKENS,
        devices=devices,
        nodes=instance.nodes,
        slots=instance.loads.shape[1],
        speed_factors=np.ones(devices),
        transitions=instance.transitions,
        pair_bandwidth_bytes_per_s=np.where(node[:, None] == node, 1 / NEAR_S, 1 / FAR_S),
        time_limit_s=time_limit_s,
        seed=seed,
        cost=cost,
    )


def lower_bound(instance, problem, steps, known):
    """Cost that no placement beats, in the units of ``price``; seconds it took."""
    start = time.perf_counter()
    loads = finish_load_bound(problem).sum() / TOKENS * ASSIGNMENT_S * instance.devices
    travel = travel_at_least(
        instance.transitions, instance.devices, instance.nodes, NEAR_S, FAR_S,
        iterations=steps, device_of=known,
    ).sum()  # fmt: skip
    return loads + travel, time.perf_counter() - start


def device_of(table, devices):
    layers, slots = table.shape
    found = np.empty((layers, slots), np.int64)
    np.put_along_axis(found, table, np.arange(slots)[None, :] // (slots // devices), 1)
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", default="mixtral/4,qwen3/8,deepseek-v3/32")
    parser.add_argument("--kinds", default="weak,strong,planted")
    parser.add_argument("--seeds", type=int, default=1, help="instances of each")
    parser.add_argument("--time-limit", type=float, default=30.0)
    parser.add_argument("--planners", default="contiguous,lpt-swap,moetuner,joint")
    parser.add_argument("--bound-steps", type=int, default=40)
    options = parser.parse_args()
    for name, allowed in (("shapes", SHAPES), ("kinds", KINDS)):
        for word in getattr(options, name).split(","):
            if word not in allowed:
                parser.error(f"--{name}: {word} is not one of {', '.join(allowed)}")
    print(f"{'instance':<28}{'seed':>5}{'planner':>14}{'cost':>9}{'vs lpt-swap':>13}{'gap':>9}"
          f"{'wall s':>8}")  # fmt: skip
    for shape in options.shapes.split(","):
        for kind in options.kinds.split(","):
            for seed in range(options.seeds):
                report(shape, kind, seed, options)


def report(shape, kind, seed, options):
    instance = make_instance(shape, kind, seed)
    problem = make_problem(instance, options.time_limit, seed)
    joint(make_problem(make_instance("mixtral/4", "weak"), 0.01, 0))  # compiled before it is timed
    costs, best = {}, (np.inf, None)
    if instance.hidden is not None:
        costs["(hidden)"] = (price(instance, instance.hidden) / even(instance), 0.0)
    for planner in dict.fromkeys(["lpt-swap", *options.planners.split(",")]):
        start = time.perf_counter()
        table = run_planner(planner, problem).physical_to_logical
        seconds = time.perf_counter() - start
        place = device_of(table, instance.devices)
        cost = price(instance, place) / even(instance)
        costs[planner] = (cost, seconds)
        best = min(best, (cost, place), key=lambda found: found[0])
    bound = None
    if options.bound_steps >= 0:
        bound, seconds = lower_bound(instance, problem, options.bound_steps, best[1])
        bound /= even(instance)
        costs["(bound)"] = (bound, seconds)
    for planner, (cost, seconds) in costs.items():
        gain = cost / costs["lpt-swap"][0] - 1
        gap = "" if bound is None else f"{cost / bound - 1:.1%}"
        print(f"{instance.name:<28}{seed:>5}{planner:>14}{cost:>9.4f}{gain:>+13.2%}{gap:>9}"
              f"{seconds:>8.1f}", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
