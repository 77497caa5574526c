"""Links as all devices of a domain use them at once."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from moesim.cluster import Cluster
from moesim.forward.machine import Links

__all__ = ["shared_links"]


def shared_links(cluster: Cluster, links: Links) -> Links:
    """The same with the bandwidth out of a domain that is left when all its devices send.

    Network cards may be shared by several devices (one card per node on some clouds).
    """
    domain = cluster.domain_of_device
    own, others = np.flatnonzero(domain == domain[0]), np.flatnonzero(domain != domain[0])
    if len(others) == 0:
        return links
    uses: dict[int, int] = {}
    for place, source in enumerate(own.tolist()):
        pair = source * cluster.devices + int(others[place % len(others)])
        first, last = cluster.route_offsets[pair : pair + 2]
        for link in cluster.route_links[first:last].tolist():
            uses[link] = uses.get(link, 0) + 1
    rates = [
        cluster.links[link].bandwidth_bytes_per_s / count
        for link, count in uses.items()
        if cluster.links[link].tier == "scale-out"
    ]
    return replace(links, out_bytes_per_s=min([links.out_bytes_per_s, *rates]))
