from dataclasses import replace
from types import SimpleNamespace

import pytest

from tests.reports.outcome_fixture import HOSTILE, make_large, make_outcome


@pytest.fixture(scope="session")
def small():
    """8 layers × 32 experts on 16 devices in 2 nodes."""
    return make_outcome()


@pytest.fixture(scope="session")
def large():
    """58 layers × 256 experts on 32 devices in 4 nodes."""
    return make_large()


@pytest.fixture(scope="session")
def odd():
    """Cases at the edges: little hardware, no hold-out, nothing gained, nothing routed."""
    few = make_outcome(layers=1, experts=4, devices=1, nodes=1, holdout=False)
    unused = make_outcome(layers=2, experts=8, devices=4, nodes=1)
    return {
        "one device": few,
        "baseline chosen": make_outcome(chosen="contiguous"),
        "idle layer": make_outcome(loads=unused.loads * [[0], [1]], layers=2, experts=8,
                                   devices=4, nodes=1),
        "nothing written": make_outcome(files={}, launch={}, inputs={}, trace_sha256=None),
    }  # fmt: skip


@pytest.fixture(scope="session")
def hostile(small):
    """Every text that comes from outside tries to be more than text."""

    def bad(score):
        return replace(score, name=score.name + HOSTILE, summary=HOSTILE, outcome=HOSTILE)

    link = SimpleNamespace(source=HOSTILE, target=HOSTILE, bandwidth_bytes_per_s=1e9, tier="x")
    cluster = SimpleNamespace(**vars(small.cluster))
    cluster.name, cluster.device = HOSTILE, SimpleNamespace(name=HOSTILE)
    cluster.links = tuple(link for _ in cluster.links)
    return replace(
        small,
        model=SimpleNamespace(name=HOSTILE, note=HOSTILE),
        cluster=cluster,
        trace_name=HOSTILE, trace_note=HOSTILE, command=HOSTILE, version=HOSTILE,
        phase=HOSTILE, comm=HOSTILE, trace_sha256=HOSTILE,
        scores={key: bad(score) for key, score in small.scores.items()},
        inputs={HOSTILE: HOSTILE}, files={HOSTILE: HOSTILE}, launch={HOSTILE: [HOSTILE]},
    )  # fmt: skip
