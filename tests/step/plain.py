"""Plain re-implementations, token by token, that share no code with the package."""

from collections import defaultdict


def home_rank(batches, placement, node_of, by_node):
    """Dispatch copies, slot tokens and remote counts as dictionaries and sums."""
    copies, slot_tokens = defaultdict(int), defaultdict(int)
    remote = internode = total = 0
    per_device = placement.slots_per_device
    for w in range(batches.count):
        for layer in range(batches.layers):
            row = list(placement.physical_to_logical[layer])
            for token in range(batches.routing.shape[2]):
                home = token // batches.tokens_per_device
                valid = batches.top_k
                if batches.valid_k is not None:
                    valid = int(batches.valid_k[w, layer, token])
                targets = []
                for expert in batches.routing[w, layer, token][:valid]:
                    slots = [s for s, e in enumerate(row) if e == expert]
                    slot = slots[token % len(slots)]
                    slot_tokens[w, layer, slot] += 1
                    targets.append(slot // per_device)
                total += valid
                remote += sum(t != home for t in targets)
                internode += sum(node_of[t] != node_of[home] for t in targets)
                if not by_node:
                    for target in targets:
                        if target != home:
                            copies[w, layer, home, target] += 1
                    continue
                hops = set().union(*(route(home, target, node_of) for target in targets))
                for source, target in hops:
                    if source != target:
                        copies[w, layer, source, target] += 1
    return copies, slot_tokens, remote, internode, total


def route(home, target, node_of):
    """Hops of one copy: between nodes by way of the device with the home's local rank."""
    if node_of[target] == node_of[home]:
        return {(home, target)}
    mine = [g for g in range(len(node_of)) if node_of[g] == node_of[home]]
    theirs = [g for g in range(len(node_of)) if node_of[g] == node_of[target]]
    relay = theirs[mine.index(home) % len(theirs)]
    return {(home, relay), (relay, target)}


def chain(batches, placement):
    """Dispatch and combine copies of the chain form."""
    dispatch, combine = defaultdict(float), defaultdict(float)
    per_device = placement.slots_per_device
    for w in range(batches.count):
        for token in range(batches.routing.shape[2]):
            home = token // batches.tokens_per_device
            sources = [home]
            for layer in range(batches.layers):
                row = list(placement.physical_to_logical[layer])
                here = []
                for expert in batches.routing[w, layer, token]:
                    slots = [s for s, e in enumerate(row) if e == expert]
                    here.append(slots[token % len(slots)] // per_device)
                for source in sources:
                    for target in here:
                        if source != target:
                            dispatch[w, layer, source, target] += 1 / len(sources)
                sources = here
            for source in sources:
                if source != home:
                    combine[w, batches.layers - 1, source, home] += 1 / len(sources)
    return dispatch, combine
