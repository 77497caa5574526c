"""The compiler's facts of kernels for GPUs that are not here, and what the check refuses."""

from __future__ import annotations

from dataclasses import replace

import pytest

from moesim.errors import UsageError
from moesim.kernels import check
from moesim.kernels.aot import Facts
from moesim.kernels.candidates import candidate_configs
from moesim.kernels.check import Case, cases, compile_case, gemm_cases, violations
from moesim.kernels.config import UNALIGNED, GemmConfig
from moesim.kernels.config_table import default_table
from moesim.kernels.targets import TARGETS

pytest.importorskip("triton", reason="there is no Triton for this system")

LARGE = GemmConfig("tile", 128, 256, 64, 8, 3)
GEMMS = [
    Case("tile", "sm_80", "up", "bf16", GemmConfig("tile", 128, 128, 64, 8, 4)),
    Case("row", "sm_80", "down", "bf16", GemmConfig("row", 16, 128, 64, 4, 4)),
    Case("tile", "sm_90a", "up", "bf16", LARGE),
    Case("tile", "sm_90a", "down", "bf16", LARGE),
    Case("tile", "sm_90a", "unaligned", "bf16", UNALIGNED),
    Case("tile", "sm_90a", "up", "fp8", GemmConfig("tile", 128, 128, 128, 8, 3)),
    Case("row", "sm_90a", "up", "bf16", GemmConfig("row", 16, 128, 128, 4, 4)),
    Case("row", "sm_90a", "up", "bf16", GemmConfig("row", 16, 128, 128, 4, 4, split_k=4)),
    Case("row", "sm_90a", "down", "fp8", GemmConfig("row", 16, 128, 128, 4, 5)),
    Case("tile", "sm_100a", "down", "bf16", LARGE),
    Case("tile", "sm_100a", "up", "fp8", GemmConfig("tile", 128, 128, 128, 8, 3)),
    Case("row", "sm_100a", "up", "bf16", GemmConfig("row", 16, 128, 128, 4, 4)),
    Case("tile", "gfx942", "up", "bf16", GemmConfig("tile", 128, 128, 64, 8, 2)),
    Case("row", "gfx942", "up", "fp8", GemmConfig("row", 16, 128, 128, 4, 2)),
]
"""One of each kind: `moesim kernels check` compiles all of the table."""


@pytest.mark.parametrize("case", GEMMS, ids=lambda case: f"{case.target}-{case.name}")
def test_gemms_are_what_they_claim(case):
    outcome = compile_case(case)
    assert outcome.violations == ()
    counts = outcome.facts.instructions
    unit = check.MATRIX_UNITS[case.target, case.dtype]
    assert counts[unit] > 0
    assert ("UTMALDG" in counts) == (
        case.kernel == "tile" and case.variant != "unaligned" and TARGETS[case.target].descriptors
    )
    assert outcome.facts.spills == outcome.facts.stack_bytes == 0
    assert outcome.facts.shared_bytes <= TARGETS[case.target].shared_bytes


@pytest.mark.parametrize("target", ["sm_90a", "gfx942"])
def test_small_kernels_compile_without_spills(target):
    small = [case for case in cases([target]) if case.config is None]
    assert {case.kernel for case in small} >= {"route", "permute-place", "tile-table", "combine"}
    assert {o.case.name: o.violations for o in map(compile_case, small)} == {
        case.name: () for case in small
    }


def test_fp8_is_refused_where_there_is_none():
    config = GemmConfig("tile", 128, 128, 128, 8, 3)
    outcome = compile_case(Case("tile", "sm_80", "down", "fp8", config))
    assert outcome.facts is None
    assert "fp8e4nv not supported" in outcome.violations[0]


def test_a_tile_that_spills_and_does_not_fit_is_rejected():
    """The compiler itself says nothing."""
    config = GemmConfig("tile", 256, 256, 128, 8, 4)
    outcome = compile_case(Case("tile", "sm_90a", "down", "bf16", config))
    said = "; ".join(outcome.violations)
    assert "spills" in said
    assert "bytes of shared memory, at most 232448" in said


def test_sixteen_rows_as_first_operand_fall_back_to_an_older_unit():
    """Why few rows go to the kernel with swapped operands."""
    config = GemmConfig("tile", 16, 128, 128, 4, 4)
    outcome = compile_case(Case("tile", "sm_90a", "down", "bf16", config))
    assert "no HGMMA" in outcome.violations


FINE = Facts(200, 0, 0, 180_000, {"HGMMA": 4, "UTMALDG": 6})


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"spills": 3}, "3 spills"),
        ({"stack_bytes": 8}, "8 bytes of stack"),
        ({"registers": 256}, "256 registers per thread, at most 255"),
        ({"shared_bytes": 240_000}, "240000 bytes of shared memory"),
        ({"instructions": {"HMMA": 9, "UTMALDG": 6}}, "no HGMMA"),
        ({"instructions": {"HGMMA": 9, "HMMA": 1, "UTMALDG": 6}}, "HMMA beside it"),
        ({"instructions": {"HGMMA": 4, "LDGSTS": 6}}, "no UTMALDG"),
    ],
)
def test_every_rule_can_fail(change, says):
    case = Case("tile", "sm_90a", "down", "bf16", LARGE)
    assert list(violations(case, FINE)) == []
    assert any(says in text for text in violations(case, replace(FINE, **change)))


def test_programs_share_a_core():
    two = replace(LARGE, programs_per_core=2)
    said = list(violations(Case("tile", "sm_90a", "down", "bf16", two), FINE))
    assert any("at most 128" in text for text in said), said
    assert any("bytes of shared memory" in text for text in said), said


def test_the_table_holds_what_the_check_compiles():
    """Every target and type that the table offers is there, with facts within its limits."""
    table = default_table()
    assert set(table.entries) == set(TARGETS)
    for name, entries in table.entries.items():
        for dtype in table.speeds[name]:
            own = [entry for entry in entries if entry.dtype == dtype]
            assert {entry.config.kernel for entry in own} == {"tile", "row"}
            listed = {config.name for config in candidate_configs(name, dtype)}
            assert {entry.config.name for entry in own} == listed
        for entry in entries:
            facts = Facts(entry.registers, 0, 0, entry.shared_bytes, {})
            for case in gemm_cases(name, entry.dtype, entry.config):
                broken = [text for text in violations(case, facts) if not text.startswith("no ")]
                assert broken == [], entry.config.name


def test_unknown_targets_are_named():
    with pytest.raises(UsageError, match="sm_75"):
        cases(["sm_75"])
