"""LPT and LPT with swaps once more, layer by layer in plain Python loops.

Only EPLB's answer (itself compared in test_eplb.py) and the load bound are taken as given.
"""

import itertools

import numpy as np

from moesim.planners.eplb import eplb_global, eplb_hierarchical, keeps_groups
from moesim.planners.load_bound import finish_load_bound


def lpt(problem):
    return _table([_pack(*_copies(row, problem, 0)[:2], problem) for row in _rows(problem)])


def lpt_swap(problem):
    bounds = finish_load_bound(problem).tolist()
    rivals = [eplb_global(problem)]
    if keeps_groups(problem):
        rivals.append(eplb_hierarchical(problem))
    return _table(
        [
            _layer(row, bounds[layer], [rival[layer] for rival in rivals], problem)
            for layer, row in enumerate(_rows(problem))
        ]
    )


def _layer(loads, bound, rivals, problem):
    """Devices of a layer, each a list of (expert, load)."""
    spare = problem.slots - problem.experts
    stride = max(1, spare // 16)
    best = _swapped(_pack(*_copies(loads, problem, 0)[:2], problem), bound, problem)
    for to_coldest in range(stride, min(spare, problem.experts) + 1, stride):
        if _finish(best, problem) <= bound * (1 + 1e-3):
            break
        experts, weights, largest_count = _copies(loads, problem, to_coldest)
        if largest_count <= problem.devices:
            other = _swapped(_pack(experts, weights, problem), bound, problem)
            best = min((best, other), key=lambda found: _finish(found, problem))
    if _finish(best, problem) > bound * (1 + 1e-3) and spare:
        trials = [
            _swapped(_pack(*_listed(loads, count), problem), bound, problem)
            for count in _other_counts(loads, problem)
        ]
        other = min(trials, key=lambda found: _finish(found, problem), default=best)
        if _finish(other, problem) < _finish(best, problem) * (1 - 1e-9):
            best = other
    for row in [] if problem.distinct_copies else rivals:
        count = {expert: row.tolist().count(expert) for expert in row.tolist()}
        shelves = np.split(row, problem.devices)
        shelves = [[(int(e), loads[e] / count[int(e)]) for e in shelf] for shelf in shelves]
        shelves.sort(key=lambda shelf: -np.sum([load for _, load in shelf]))
        by_speed = _by_speed(problem)
        given = [None] * problem.devices
        for device, shelf in zip(by_speed, shelves, strict=True):
            given[device] = shelf
        if _finish(given, problem) < _finish(best, problem) * (1 - 1e-9):
            other = _swapped(given, bound, problem)
            best = min((best, other), key=lambda found: _finish(found, problem))
    return best


def _rows(problem):
    return problem.loads.tolist()


def _by_speed(problem):
    return sorted(range(problem.devices), key=lambda device: -problem.speed_factors[device])


def _other_counts(loads, problem):
    """Copies of the four hottest varied; the coldest get what is left."""
    ranked = sorted(range(len(loads)), key=lambda expert: -loads[expert])
    usual = _counts(loads, problem, 0)
    hot = ranked[:4]
    ranges = [
        range(max(1, usual[e] - fewer), min(problem.devices, usual[e] + more) + 1)
        for e, fewer, more in zip(hot, (3, 2, 1, 1), (1, 2, 2, 2), strict=False)
    ]
    for numbers in itertools.product(*ranges):
        left = problem.slots - len(loads) + len(hot) - sum(numbers)
        if 0 <= left <= len(loads) - len(hot) and (not left or problem.devices > 1):
            count = dict.fromkeys(ranked, 1) | dict(zip(hot, numbers, strict=True))
            for expert in ranked[len(loads) - left :]:
                count[expert] += 1
            yield count


def _copies(loads, problem, to_coldest):
    count = _counts(loads, problem, to_coldest)
    return *_listed(loads, count), max(count.values())


def _listed(loads, count):
    ranked = sorted(range(len(loads)), key=lambda expert: -loads[expert])
    copies = [expert for expert in ranked for _ in range(count[expert])]
    copies.sort(key=lambda expert: -loads[expert] / count[expert])
    return copies, [loads[expert] / count[expert] for expert in copies]


def _counts(loads, problem, to_coldest):
    ranked = sorted(range(len(loads)), key=lambda expert: -loads[expert])
    count = dict.fromkeys(ranked, 1)
    limit = problem.devices
    if len(loads) * limit < problem.slots:
        limit = problem.slots
    for _ in range(problem.slots - len(loads) - to_coldest):
        hottest = max(
            (expert for expert in ranked if count[expert] < limit),
            key=lambda expert: loads[expert] / count[expert],
            default=ranked[0],
        )
        count[hottest] += 1
    if to_coldest:
        for expert in sorted(ranked, key=lambda expert: loads[expert])[:to_coldest]:
            count[expert] += 1
    return count


def _pack(experts, weights, problem):
    room = problem.slots // problem.devices
    speeds = problem.speed_factors.tolist()
    shelves = [[] for _ in speeds]
    total = [0.0] * len(speeds)
    by_speed = _by_speed(problem)
    for expert, weight in zip(experts, weights, strict=True):
        free = [
            device
            for device in by_speed
            if len(shelves[device]) < room and expert not in [held for held, _ in shelves[device]]
        ]
        if free:
            device = min(free, key=lambda device: (total[device] + weight) / speeds[device])
        else:
            device = _make_room(expert, weight, shelves, total, room, speeds, by_speed)
        shelves[device].append((expert, weight))
        total[device] += weight
    return shelves


def _make_room(expert, weight, shelves, total, room, speeds, by_speed):
    target = min(
        (device for device in by_speed if len(shelves[device]) < room),
        key=lambda device: (total[device] + weight) / speeds[device],
    )
    on_target = [held for held, _ in shelves[target]]
    best = (np.inf, -1, -1)
    for rank, device in enumerate(by_speed):
        names = [held for held, _ in shelves[device]]
        if len(names) < room or expert in names:
            continue
        for place, (held, moved) in enumerate(shelves[device]):
            if held not in on_target:
                finish = max(
                    (total[target] + moved) / speeds[target],
                    (total[device] - moved + weight) / speeds[device],
                )
                best = min(best, (finish, rank, place))
    if best[1] < 0:
        return target
    device = by_speed[best[1]]
    moved = shelves[device][best[2]]
    # The last one takes the free place.
    shelves[device][best[2]] = shelves[device][-1]
    shelves[device].pop()
    total[device] -= moved[1]
    shelves[target].append(moved)
    total[target] += moved[1]
    return device


def _swapped(shelves, bound, problem):
    by_speed = _by_speed(problem)
    shelves = [list(shelf) for shelf in shelves]
    speeds = problem.speed_factors.tolist()
    total = [_plain_sum(shelf) for shelf in shelves]
    for _ in range(16 * problem.slots):
        last = max(by_speed, key=lambda device: total[device] / speeds[device])
        finish = total[last] / speeds[last]
        if finish <= bound * (1 + 1e-12):
            break
        best, swap = finish * (1 - 1e-12), None
        for device in by_speed:
            if total[device] / speeds[device] >= best:
                continue
            for out, (leaving, heavy) in enumerate(shelves[last]):
                for into, (coming, light) in enumerate(shelves[device]):
                    moved = heavy - light
                    later = max(
                        (total[last] - moved) / speeds[last],
                        (total[device] + moved) / speeds[device],
                    )
                    if moved > 0 and later < best and leaving != coming:
                        others = [
                            held for at, (held, _) in enumerate(shelves[device]) if at != into
                        ]
                        kept = [held for at, (held, _) in enumerate(shelves[last]) if at != out]
                        if leaving not in others and coming not in kept:
                            best, swap = later, (device, out, into)
        if swap is None:
            break
        device, out, into = swap
        shelves[last][out], shelves[device][into] = shelves[device][into], shelves[last][out]
        total[last], total[device] = _plain_sum(shelves[last]), _plain_sum(shelves[device])
    return shelves


def _plain_sum(shelf):
    """One after the other: Python's own sum() keeps what rounding loses."""
    total = 0.0
    for _, load in shelf:
        total += load
    return total


def _finish(shelves, problem):
    # np.sum because the order of additions decides between equals.
    return max(
        np.sum([load for _, load in shelf]) / speed
        for shelf, speed in zip(shelves, problem.speed_factors.tolist(), strict=True)
    )


def _table(layers):
    return np.array(
        [[e for shelf in layer for e in sorted(h for h, _ in shelf)] for layer in layers]
    )
