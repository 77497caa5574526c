"""The same hits as libCacheSim, an independent simulator, where it defines a policy alike.

libCacheSim is sequential, has one pool, and its LFU forgets an expert that it evicts, which is
``lfu-resident`` here. Its S3-FIFO never hits with a small queue of one slot (below 20 slots).
"""

from __future__ import annotations

import libcachesim
import numpy as np
import pytest

from moesim.cache.accesses import cache_accesses
from moesim.cache.policies.belady import next_uses
from moesim.cache.replay import replay
from moesim.cache.setting import CacheSetting

from .traces import in_memory, local_routing

SETTING = CacheSetting(contract="sequential", scope="pooled")
THEIRS = {
    "lru": libcachesim.LRU,
    "fifo": libcachesim.FIFO,
    "lfu-resident": libcachesim.LFU,
    "arc": libcachesim.ARC,
    "s3-fifo": libcachesim.S3FIFO,
    "belady": libcachesim.Belady,
}
RECORD = np.dtype([("time", "<u4"), ("object", "<u8"), ("size", "<u4"), ("next", "<i8")])


def their_hits(policy, accesses, slots, file):
    """Hits of libCacheSim on a file in its oracleGeneral format."""
    following = next_uses(accesses).astype(np.int64)
    following[following > accesses.count] = -1
    records = np.zeros(accesses.count, RECORD)
    records["time"] = np.arange(1, accesses.count + 1)
    records["object"] = accesses.ids.astype(np.int64) + 1
    records["size"], records["next"] = 1, following
    records.tofile(file)
    reader = libcachesim.TraceReader(
        trace=str(file),
        trace_type=libcachesim.TraceType.ORACLE_GENERAL_TRACE,
        reader_init_params=libcachesim.ReaderInitParam(ignore_obj_size=True),
    )
    miss_ratio, _ = policy(cache_size=slots).process_trace(reader)
    return round(accesses.count * (1 - miss_ratio))


@pytest.mark.parametrize("name", THEIRS)
def test_same_hits(name, tmp_path):
    for seed, top_k in ((0, 8), (1, 2), (2, 1)):
        rng = np.random.default_rng(seed)
        routing = local_routing(rng, layers=3, tokens=700, experts=64, top_k=top_k, skew=1.5)
        (accesses,) = cache_accesses(in_memory(routing, 64), SETTING)
        for slots in (20, 33, 64, 100, 150):
            hits = replay(accesses, name, slots, SETTING)
            assert hits.sum() == their_hits(THEIRS[name], accesses, slots, tmp_path / "t"), slots
