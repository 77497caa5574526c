"""Overlap hides, and never more than there is."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesim.training.overlap import Exchange, Pass, fused_s

seconds = st.floats(0, 10)


@st.composite
def passes(draw):
    exchanges = tuple(
        Exchange(draw(seconds), draw(seconds), draw(st.integers(2, 16)))
        for _ in range(draw(st.integers(0, 4)))
    )
    independent, rest = draw(seconds), draw(seconds)
    partners = sum(exchange.partner_s for exchange in exchanges)
    return Pass(independent + partners + rest, independent, exchanges)


@given(passes(), st.floats(0, 0.5))
def test_never_beats_the_longer_of_the_two(one, share):
    serial = one.time_s("none", share)
    assert serial == pytest.approx(one.compute_s + one.communication_s)
    least = max(one.compute_s, one.communication_s)
    before = serial
    for overlap in ("inter", "full"):
        found = one.time_s(overlap, share)
        assert least <= found * (1 + 1e-9) + 1e-9
        assert found <= before * (1 + 1e-9) + 1e-9
        before = found


@given(seconds, seconds, st.integers(1, 16), st.floats(0, 0.5))
def test_a_fused_pair(compute_s, transfer_s, parts, share):
    found = fused_s(compute_s, transfer_s, parts, share)
    assert max(compute_s, transfer_s) <= found + 1e-9
    assert found <= compute_s + transfer_s + 1e-9


def test_independent_operators_hide_all_at_best():
    one = Pass(3.0, 2.0, (Exchange(1.0, 0.5, 8),))
    assert one.time_s("inter", 0.0) == pytest.approx(3.0)
    assert one.time_s("full", 0.0) == pytest.approx(3.0)
    alone = Pass(3.0, 0.0, (Exchange(1.0, 2.0, 8),))
    assert alone.time_s("inter", 0.0) == pytest.approx(4.0)
    assert alone.time_s("full", 0.0) == pytest.approx(3.0 + 1 / 8)
