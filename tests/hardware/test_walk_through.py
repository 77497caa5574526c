"""The walk-through of a new device, as its page says it."""

import re
import shlex
from pathlib import Path

import pytest

from moesim.cli.app import app
from moesim.cli.console import run
from moesim.hardware import profiles_folder

PAGE = (profiles_folder() / "README.md").read_text(encoding="utf-8")
PART = PAGE[PAGE.index("## Walk-through") : PAGE.index("## Set-ups of the public")]
FILES = re.findall(r"`(\w+\.yaml)`.*?```yaml\n(.*?)```", PART, re.S)
COMMANDS = re.search(r"```bash\n(.*?)```", PART, re.S)[1].splitlines()


@pytest.fixture(autouse=True)
def _files(tmp_path, monkeypatch):
    for name, text in FILES:
        Path(tmp_path, name).write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)


def test_the_page_has_two_files():
    assert [name for name, _ in FILES] == ["gaudi3.yaml", "node.yaml"]
    assert len(COMMANDS) >= 5


@pytest.mark.parametrize("command", COMMANDS)
def test_its_commands_run(command, capsys):
    words = shlex.split(command)
    assert words[0] == "moesim"
    assert run(app, words[1:]) == 0, capsys.readouterr().err
    said = capsys.readouterr().out
    assert "ssumed" in said or "hw show node" in command
