import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesim.errors import InputError
from moesim.units import format_bytes, format_seconds, format_si, parse_quantity


@pytest.mark.parametrize(
    ("text", "dimension", "value"),
    [
        ("3.35 TB/s", "bytes_per_s", 3.35e12),
        ("400 Gbit/s", "bytes_per_s", 50e9),
        ("80 GB", "bytes", 80e9),
        ("80 GiB", "bytes", 80 * 2**30),
        ("989.4 TFLOP/s", "flop_per_s", 989.4e12),
        ("1504 TOP/s", "flop_per_s", 1504e12),
        ("3.33 us", "s", 3.33e-6),
        ("3.33 µs", "s", 3.33e-6),
        ("3.48 pJ/bit", "j_per_byte", 8 * 3.48e-12),
        ("0.23 pJ/FLOP", "j_per_flop", 0.23e-12),
        ("1e3 MB", "bytes", 1e9),
        ("2.5 USD/h", "usd_per_h", 2.5),
    ],
)
def test_quantities_are_read_in_si(text, dimension, value):
    assert parse_quantity(text, dimension) == pytest.approx(value)


@pytest.mark.parametrize(
    ("text", "dimension"),
    [
        ("80", "bytes"), (80, "bytes"), (True, "bytes"), (None, "bytes"), ("GB", "bytes"),
        ("80 GB/s", "bytes"), ("80 gb", "bytes"), ("-1 GB", "bytes"), ("nan GB", "bytes"),
        ("1e999 GB", "bytes"), ("3 TB", "bytes_per_s"), ("", "s"), ("1 2 GB", "bytes"),
    ],
)  # fmt: skip
def test_anything_else_is_refused_with_its_place(text, dimension):
    with pytest.raises(InputError, match=r"h100\.yaml: memory\.bandwidth"):
        parse_quantity(text, dimension, file="h100.yaml", field="memory.bandwidth")


@given(st.text(max_size=20))
def test_any_text_is_read_or_refused(text):
    with contextlib.suppress(InputError):
        assert parse_quantity(text, "bytes") >= 0


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0 s"), (12.3e-6, "12.3 µs"), (0.9996e-3, "1 ms"), (999.4, "999 s"), (1500, "1.5 ks")],
)
def test_seconds_are_written_for_people(value, text):
    assert format_seconds(value) == text


def test_bytes_are_decimal():
    assert format_bytes(80e9) == "80 GB"
    assert format_bytes(2**30) == "1.07 GB"
    assert format_si(3.35e12, "B/s") == "3.35 TB/s"


@given(st.floats(1, 1e15))
def test_written_and_read_agree(value):
    assert parse_quantity(format_bytes(value, 12), "bytes") == pytest.approx(value)
