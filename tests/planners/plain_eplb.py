"""EPLB once more, written from its description in plain loops.

Numbers are numpy.float32 scalars, one operation after the other. Only two things are asked of
torch, because they are properties of torch and not of the algorithm: in which order its sort leaves
ties, and in which order it adds up a row.
"""

import numpy as np
import torch


def rebalance(loads, slots, groups, nodes, devices):
    return np.array([_layer(row, slots, groups, nodes, devices) for row in np.float32(loads)])


def _layer(loads, slots, groups, nodes, devices):
    size = len(loads) // groups
    group_loads = torch.from_numpy(loads.reshape(1, groups, size)).sum(-1)[0].numpy()
    result = []
    for groups_here in _pack(group_loads, nodes):
        experts = [group * size + member for group in groups_here for member in range(size)]
        copies = list(experts)
        count = dict.fromkeys(experts, 1)
        while len(copies) < slots // nodes:
            hottest = max(experts, key=lambda e: loads[e] / np.float32(count[e]))
            count[hottest] += 1
            copies.append(hottest)
        weights = np.array([loads[e] / np.float32(count[e]) for e in copies], np.float32)
        for items in _pack(weights, devices // nodes):
            result += [copies[item] for item in items]
    return result


def _pack(weights, packs):
    """The items of every pack, in the order in which they came."""
    room = len(weights) // packs
    if room == 1:
        return [[item] for item in range(len(weights))]
    filled = [[] for _ in range(packs)]
    total = [np.float32(0)] * packs
    for item in torch.from_numpy(weights).sort(-1, descending=True).indices.tolist():
        lightest = min((p for p in range(packs) if len(filled[p]) < room), key=total.__getitem__)
        filled[lightest].append(item)
        total[lightest] += weights[item]
    return filled
