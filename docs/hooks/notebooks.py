"""Notebooks as pages of the site: every .ipynb of docs/notebooks becomes Markdown when it is built.

Text stays text, code becomes a code block, and of an output its HTML is taken, else its text.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add a page for every notebook; the file itself stays, to be downloaded."""
    for path in sorted(Path(config.docs_dir).glob("notebooks/*.ipynb")):
        uri = path.relative_to(config.docs_dir).with_suffix(".md").as_posix()
        files.append(File.generated(config, uri, content=notebook_markdown(path)))
    return files


def notebook_markdown(path: Path) -> str:
    """A notebook as Markdown."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    first, *rest = (part for cell in cells for part in _parts(cell))
    download = f"[This page is a notebook.]({path.name}){{ download }}"
    return "\n\n".join([first, download, *rest]) + "\n"


def _parts(cell: dict[str, Any]) -> Iterator[str]:
    source = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        yield source
        return
    yield f"```python\n{source}\n```"
    for output in cell["outputs"]:
        data = output.get("data", {})
        if "text/html" in data:
            yield "".join(data["text/html"])
        else:
            text = "".join(data.get("text/plain", output.get("text", [])))
            yield f"```text\n{text.rstrip()}\n```"
