"""What every verb shares: its options, and that stdout is the result and nothing else."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer import rich_utils

from moesim.cli import doctor
from moesim.cli.app import app
from moesim.cli.console import run

from .commands import moesim

COMMON = {"--json", "--seed", "--out", "--quiet"}


def verbs(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Every verb that does something, with its subcommands spelt out."""
    for name, child in getattr(command, "commands", {}).items():
        if hasattr(child, "commands"):
            yield from verbs(child, (*path, name))
        else:
            yield " ".join((*path, name)), child


VERBS = dict(verbs(typer.main.get_command(app)))


def test_the_verbs_are_found():
    assert {"plan", "doctor", "hw list", "model show", "trace import", "trace synth"} <= set(VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_takes_the_common_options(verb):
    options = {name for parameter in VERBS[verb].params for name in parameter.opts}
    assert options >= COMMON
    assert all(getattr(p, "help", None) for p in VERBS[verb].params)


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_every_verb(verb, capsys):
    answer = moesim(capsys, *verb.split(), "--help")
    assert (answer.code, answer.err) == (0, "")
    for option in COMMON:
        assert option in answer.out


@pytest.mark.parametrize("verb", VERBS)
def test_help_texts_are_shown_whole(verb, capsys, monkeypatch):
    """Brackets too, as in [one per usable CPU], which Rich would take for a style."""
    monkeypatch.setattr(rich_utils, "MAX_WIDTH", 1000)
    shown = moesim(capsys, *verb.split(), "--help").out
    for parameter in VERBS[verb].params:
        assert parameter.help.replace("\\[", "[") in shown


@pytest.mark.parametrize(
    "words",
    [
        ["hw", "list"],
        ["model", "list"],
        ["model", "show", "mixtral-8x7b"],
        ["doctor"],
    ],
)
def test_out_receives_the_result(words, capsys, tmp_path):
    file = tmp_path / "new" / "result.json"
    answer = moesim(capsys, *words, "--json", "--out", file)
    assert answer.code == 0
    assert json.loads(file.read_text(encoding="utf-8")) == answer.json
    assert str(file) in answer.err
    assert moesim(capsys, *words, "--json", "--out", file, "--quiet").err == ""


def test_validate_lists_what_is_wrong_and_ends_with_4(capsys, tmp_path):
    from .commands import tiny_trace

    folder = tiny_trace(tmp_path / "trace")
    manifest = folder / "manifest.json"
    data = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(data | {"sha256": {"routing.npy": "0" * 64}}))
    file = tmp_path / "report.json"
    answer = moesim(capsys, "trace", "validate", folder, "--json", "--out", file)
    assert answer.code == 4
    assert (answer.json["ok"], answer.json["schema"]) == (False, "moesim.trace/1")
    assert answer.json == json.loads(file.read_text())
    assert "sha256" in json.dumps(answer.json)
    assert "not sound" in moesim(capsys, "trace", "validate", folder).out


def shell(line: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a line of bash in which ``moesim`` is the command of this checkout."""
    script = f'set -o pipefail; moesim() {{ "{sys.executable}" -m moesim "$@"; }}; {line}'
    return subprocess.run(
        ["bash", "-c", script],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | environment,
    )


@pytest.mark.skipif(sys.platform == "win32", reason="needs bash")
@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("moesim hw show h100_sxm | head -1", 0),  # rich prints it
        ("moesim model list --json | true", 0),  # nobody ever reads
        ("moesim hw schema | head -1", 0),
        ("moesim hw schema --json >/dev/full", 4),
        ("moesim model list >/dev/full", 4),
    ],
)
def test_a_reader_that_goes_away(line, code):
    done = shell(line)
    assert done.returncode == code
    for words in ("Traceback", "Exception ignored", "BrokenPipe"):
        assert words not in done.stderr
    if code:
        assert "moesim: the system refuses: No space left on device" in done.stderr
        assert "\nfix: " in done.stderr


def test_colours_only_where_wanted():
    wanted = shell("moesim hw show h100_sxm", FORCE_COLOR="1", TERM="xterm-256color")
    assert "\x1b[" in wanted.stdout
    refused = shell("moesim hw show h100_sxm", NO_COLOR="1", TERM="xterm-256color")
    piped = shell("moesim hw show h100_sxm", TERM="xterm-256color")
    assert "\x1b[" not in refused.stdout + piped.stdout
    assert refused.stdout == piped.stdout


def test_ctrl_c_at_any_time(capsys, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("moesim.model.model_names", interrupted)
    plain = moesim(capsys, "model", "list")
    assert (plain.code, plain.out, plain.err) == (130, "", "moesim: interrupted\n")
    answer = moesim(capsys, "model", "list", "--json")
    assert (answer.code, answer.json["error"]["exit_code"]) == (130, 130)


def test_our_own_bug_is_said_to_be_one(capsys, monkeypatch):
    def broken(*_, **__):
        raise KeyError("nothing here")

    monkeypatch.setattr("moesim.model.model_names", broken)
    answer = moesim(capsys, "model", "list")
    assert answer.code == 1
    assert "bug in moesim: KeyError" in answer.err
    assert "Traceback" not in answer.err
    assert "Traceback" in moesim(capsys, "model", "list", "--debug").err


def test_a_file_that_may_not_be_read_is_no_bug(capsys, monkeypatch):
    def refused(*_, **__):
        raise PermissionError(13, "Permission denied", "secret.json")

    monkeypatch.setattr("moesim.model.model_names", refused)
    answer = moesim(capsys, "model", "list", "--json")
    assert (answer.code, answer.json["error"]["file"]) == (4, "secret.json")


def test_no_memory_is_no_bug(capsys, monkeypatch):
    def full(*_, **__):
        raise MemoryError

    monkeypatch.setattr("moesim.model.model_names", full)
    answer = moesim(capsys, "model", "list")
    assert answer.code == 4
    assert "\nfix: " in answer.err


def test_without_a_verb_the_help_is_shown(capsys):
    answer = moesim(capsys)
    assert answer.code == 2
    assert "plan" in answer.out + answer.err


def test_doctor(capsys):
    answer = moesim(capsys, "doctor", "--json")
    assert answer.code == 0
    data = answer.json
    assert (data["schema"], data["ok"]) == ("moesim.doctor/1", True)
    assert data["python"] == ".".join(map(str, sys.version_info[:3]))
    assert data["cpus"] >= 1
    assert data["packages"]["numpy"] == __import__("numpy").__version__
    assert data["solvers"]["cbc"] is True
    for name, extra in data["extras"].items():
        assert extra["installed"] == all(extra["packages"].values())
        assert extra["install"] in (None, f"pip install 'moesim[{name}]'")
    text = moesim(capsys, "doctor").out
    for name in (*data["packages"], *data["extras"], "cbc", "highs"):
        assert name in text
    for extra in data["extras"].values():
        assert extra["unlocks"] in text


def test_doctor_without_extras_and_with_a_core_package_missing(capsys, monkeypatch):
    monkeypatch.setattr(doctor, "_version", lambda name: None if name != "numpy" else "2.2")
    answer = moesim(capsys, "doctor", "--json")
    assert (answer.code, answer.json["ok"]) == (2, False)
    assert answer.json["extras"]["parquet"]["install"] == "pip install 'moesim[parquet]'"
    text = moesim(capsys, "doctor").out
    assert "MISSING" in text
    assert "pip install 'moesim[highs]'" in text


PROJECT = Path(doctor.__file__).resolve().parents[2] / "pyproject.toml"


@pytest.mark.skipif(not PROJECT.is_file(), reason="installed without its sources")
def test_doctor_knows_the_packages_of_the_project():
    project = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]
    assert set(map(package_name, project["dependencies"])) == set(doctor.CORE)
    for name, needs in project["optional-dependencies"].items():
        if name not in ("docs", "test", "dev", "all"):
            assert set(map(package_name, needs)) == set(doctor.EXTRAS[name])


def package_name(requirement: str) -> str:
    match = re.match(r"[A-Za-z0-9_.-]+", requirement)
    assert match
    return match[0].lower()


def test_run_reads_the_arguments_of_the_process(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["moesim", "--version"])
    assert run(app) == 0
    assert capsys.readouterr().out.startswith("moesim ")
