"""Random problems, and the slow and simple twins that planners are compared with."""

from itertools import permutations

import numpy as np

from moesim.planners.problem import PlacementProblem


def make_problem(loads, devices, slots=None, **fields):
    loads = np.asarray(loads, float)
    defaults = {
        "slots": slots if slots is not None else -(-loads.shape[1] // devices) * devices,
        "speed_factors": np.ones(devices),
        "pair_bandwidth_bytes_per_s": np.full((devices, devices), 1e9),
    }
    return PlacementProblem(loads=loads, devices=devices, **(defaults | fields))


def random_loads(rng, layers, experts):
    """Continuous, heavy-tailed, whole with ties, mostly zero, or all equal."""
    kind = rng.integers(0, 6)
    if kind == 0:
        return rng.gamma(0.5, 100.0, (layers, experts))
    if kind == 1:
        ranks = np.arange(1.0, experts + 1) ** -rng.uniform(0.1, 2.0)
        return np.stack([rng.permutation(ranks) for _ in range(layers)]) * 1e6
    if kind == 2:
        return rng.integers(0, 50, (layers, experts)).astype(float)
    if kind == 3:
        return rng.integers(0, 3, (layers, experts)).astype(float)
    if kind == 4:
        return np.where(rng.random((layers, experts)) < 0.8, 0.0, rng.integers(0, 10**6))
    return np.full((layers, experts), float(rng.integers(0, 2)))


def random_problem(rng, *, experts_max=40, speeds=True, redundancy=True, layers_max=3, **fields):
    nodes = int(rng.integers(1, 4))
    devices = nodes * int(rng.integers(1, 5))
    groups = nodes * int(rng.integers(1, 3))
    experts = groups * int(rng.integers(1, max(2, experts_max // groups)))
    slots = -(-experts // devices) * devices
    if redundancy:
        slots += devices * int(rng.integers(0, 4))
    return make_problem(
        random_loads(rng, int(rng.integers(1, layers_max + 1)), experts),
        devices,
        slots,
        nodes=nodes,
        routing_groups=groups,
        speed_factors=rng.uniform(0.5, 2.0, devices)
        if speeds and rng.random() < 0.5
        else np.ones(devices),
        seed=int(rng.integers(0, 2**31)),
        **fields,
    )


def set_partitions(experts, clusters, size=None):
    """Every assignment [E] of experts to clusters without an empty one, up to relabelling."""

    def extend(assigned, used):
        if len(assigned) == experts:
            if used == clusters:
                yield list(assigned)
            return
        for cluster in range(min(used + 1, clusters)):
            if size is None or assigned.count(cluster) < size:
                assigned.append(cluster)
                yield from extend(assigned, max(used, cluster + 1))
                assigned.pop()

    yield from extend([], 0)


def placements(problem):
    """Every multiset of copies, every way to put them on devices (tiny problems only).

    Yields, for one layer, the list of experts of every device; copies may share a device.
    """
    experts, slots = problem.experts, problem.slots
    room = problem.slots_per_device

    def counts(left, spare):
        if left == 1:
            yield (1 + spare,)
            return
        for extra in range(spare + 1):
            for rest in counts(left - 1, spare - extra):
                yield (1 + extra, *rest)

    for count in counts(experts, slots - experts):
        items = [expert for expert in range(experts) for _ in range(count[expert])]
        seen = set()
        for order in _distributions(items, problem.devices, room):
            if order not in seen:
                seen.add(order)
                yield count, order


def _distributions(items, devices, room):
    shelves = [[] for _ in range(devices)]

    def place(index):
        if index == len(items):
            yield tuple(tuple(shelf) for shelf in shelves)
            return
        tried = set()
        for shelf in shelves:
            state = tuple(shelf)
            if len(shelf) < room and state not in tried:
                tried.add(state)
                shelf.append(items[index])
                yield from place(index + 1)
                shelf.pop()

    yield from place(0)


def all_mappings(layers, devices):
    """Every [L, G] device of every cluster, one permutation per layer."""

    def extend(rows):
        if len(rows) == layers:
            yield np.array(rows)
            return
        for row in permutations(range(devices)):
            yield from extend([*rows, row])

    yield from extend([])
