"""The formula of a pipeline against a simulation of every pass."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.errors import UsageError
from moesim.training.pipeline import bubble_fraction, in_flight_chunks, pipeline_s


def order(stage, stages, micro_batches, chunks):
    """Passes of one stage in Megatron-LM's order: ``(way, chunk, micro-batch)``."""
    total = micro_batches * chunks

    def place(index, way):
        block, inside = divmod(index, stages * chunks)
        chunk = inside // stages
        chunk = chunk if way == "f" else chunks - 1 - chunk
        return way, chunk, block * stages + inside % stages

    if chunks == 1:
        warm = min(stages - stage - 1, total)
        there = [("f", 0, i) for i in range(total)]
        back = [("b", 0, i) for i in range(total)]
    else:
        warm = min(2 * (stages - stage - 1) + (chunks - 1) * stages, total)
        there = [place(i, "f") for i in range(total)]
        back = [place(i, "b") for i in range(total)]
    passes = there[:warm]
    for i in range(total - warm):
        passes += [there[warm + i], back[i]]
    return passes + back[total - warm :]


def simulate(forward_s, backward_s, micro_batches, chunks):
    """Every pass starts when its stage is free and what it needs is there."""
    stages = len(forward_s)
    queues = [order(s, stages, micro_batches, chunks) for s in range(stages)]
    done, clock, at = {}, [0.0] * stages, [0] * stages
    held, most = [0] * stages, [0] * stages
    while any(at[s] < len(queues[s]) for s in range(stages)):
        moved = False
        for s in range(stages):
            while at[s] < len(queues[s]):
                way, chunk, micro = queues[s][at[s]]
                if way == "f":
                    first = s == 0 and chunk == 0
                    before = (way, s - 1, chunk) if s else (way, stages - 1, chunk - 1)
                    need = 0.0 if first else done.get((*before, micro))
                else:
                    last = s == stages - 1 and chunk == chunks - 1
                    after = (way, s + 1, chunk) if s < stages - 1 else (way, 0, chunk + 1)
                    need = done.get(("f", s, chunk, micro) if last else (*after, micro))
                if need is None:
                    break
                took = (forward_s if way == "f" else backward_s)[s] / chunks
                clock[s] = max(clock[s], need) + took
                done[way, s, chunk, micro] = clock[s]
                held[s] += 1 if way == "f" else -1
                most[s] = max(most[s], held[s])
                at[s] += 1
                moved = True
        assert moved, "the schedule waits for itself"
    return max(clock), most[0]


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 6), st.integers(1, 4), st.integers(1, 3), st.floats(0.1, 2), st.floats(0.1, 4)
)
def test_equal_stages(stages, rounds, chunks, forward_s, backward_s):
    micro_batches = stages * rounds
    chunks = chunks if stages > 1 else 1
    took, held = simulate([forward_s] * stages, [backward_s] * stages, micro_batches, chunks)
    whole = [forward_s + backward_s] * stages
    assert pipeline_s(whole, micro_batches, chunks) == pytest.approx(took)
    busy = micro_batches * (forward_s + backward_s)
    assert took / busy - 1 == pytest.approx(bubble_fraction(stages, micro_batches, chunks))
    assert held == in_flight_chunks(stages, micro_batches, chunks)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.floats(0.5, 1.5), min_size=2, max_size=6), st.integers(2, 8))
def test_unequal_stages(times, rounds):
    """Exact if the last stage is the slowest, as the head makes it; else near."""
    micro_batches = len(times) * rounds
    whole = [3 * t for t in times]
    took, _ = simulate(times, [2 * t for t in times], micro_batches, 1)
    formula = pipeline_s(whole, micro_batches)
    if times[-1] == max(times):
        assert formula == pytest.approx(took)
    for seconds in (took, formula):
        assert seconds >= max(whole) * micro_batches * (1 - 1e-9)
    assert abs(took - formula) <= sum(whole) - max(whole) + 1e-9


@settings(deadline=None, max_examples=30)
@given(st.lists(st.floats(0.5, 1.0), min_size=1, max_size=6), st.integers(2, 8))
def test_the_slowest_stage_at_the_end(times, rounds):
    times = [*times, 1.0]
    micro_batches = len(times) * rounds
    took, _ = simulate(times, [2 * t for t in times], micro_batches, 1)
    assert pipeline_s([3 * t for t in times], micro_batches) == pytest.approx(took)


def test_nothing_to_do_is_refused():
    for arguments in (([], 1), ([1.0], 0), ([1.0], 1, 0)):
        with pytest.raises(UsageError):
            pipeline_s(*arguments)
