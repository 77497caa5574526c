"""What importing and starting moesim costs, and what it must not load."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import moesim

CHECKOUT = Path(moesim.__file__).resolve().parents[1]
LINKED_FOLDERS = {"planners", "kernels", "traces", "reports", "hwprofiles"}
HEAVY = {"torch", "triton", "matplotlib", "pandas", "pulp"}
IMPORT_LIMIT_S = 0.3


def fresh_python(code: str) -> str:
    """What a new interpreter prints on stderr when it runs ``code``."""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


def loaded(code: str) -> set[str]:
    """Top-level modules loaded after ``code``."""
    report = "\nimport sys\nprint('\\n'.join(sys.modules), file=sys.stderr)"
    return {line.partition(".")[0] for line in fresh_python(code + report).splitlines()}


def test_import_is_quick():
    code = (
        "import sys, time; start = time.perf_counter(); import moesim; "
        "print(time.perf_counter() - start, file=sys.stderr)"
    )
    best_s = min(float(fresh_python(code)) for _ in range(5))
    assert best_s < IMPORT_LIMIT_S


def test_import_loads_nothing_heavy():
    found = loaded("import moesim")
    assert "moesim" in found
    assert not found & (HEAVY | LINKED_FOLDERS | {"numba", "typer"})


@pytest.mark.parametrize("words", [["--help"], ["--version"]])
def test_the_command_starts_without_heavy_packages(words):
    found = loaded(
        f"from moesim.cli import app, console\nassert console.run(app.app, {words}) == 0"
    )
    assert "typer" in found
    assert not found & (HEAVY | LINKED_FOLDERS)


def python_files() -> list[Path]:
    """Every Python file of the checkout once: links are not followed."""
    return [
        file
        for folder in ("moesim", "tests", *sorted(LINKED_FOLDERS))
        for file in sorted((CHECKOUT / folder).rglob("*.py"))
    ]


def imported_names(file: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module)
    return names


@pytest.mark.skipif(
    not (CHECKOUT / "pyproject.toml").is_file(), reason="installed without its sources"
)
def test_no_file_imports_a_folder_past_the_package():
    files = python_files()
    assert len(files) > 20
    offenders = {
        str(file.relative_to(CHECKOUT)): bare
        for file in files
        if (bare := {n.partition(".")[0] for n in imported_names(file)} & LINKED_FOLDERS)
    }
    assert offenders == {}


def test_the_scan_for_bare_imports_sees_them(tmp_path):
    file = tmp_path / "bad.py"
    file.write_text("def f():\n    from traces.bundle import Trace\n    import moesim.traces\n")
    assert imported_names(file) == {"traces.bundle", "moesim.traces"}
