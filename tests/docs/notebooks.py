"""Notebooks of docs/, run again. ``python -m tests.docs.notebooks`` stores what they print now."""

from __future__ import annotations

import os
from pathlib import Path

import nbformat
from nbclient import NotebookClient

from tests.docs.pages import DOCS

NOTEBOOKS = sorted((DOCS / "notebooks").glob("*.ipynb"))


def read(path: Path) -> nbformat.NotebookNode:
    """A stored notebook."""
    return nbformat.read(path, as_version=4)


def executed(path: Path, folder: Path) -> nbformat.NotebookNode:
    """The notebook after all its cells ran anew, in a folder."""
    notebook = read(path)
    client = NotebookClient(
        notebook,
        timeout=600,
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
        record_timing=False,
    )
    client.execute(env=os.environ | {"IPYTHONDIR": str(folder / "ipython")})
    return notebook


def texts(notebook: nbformat.NotebookNode) -> list[str]:
    """What each code cell gave, as text."""
    return [
        "".join(
            output["text"] if output["output_type"] == "stream" else output["data"]["text/plain"]
            for output in cell["outputs"]
        )
        for cell in notebook.cells
        if cell["cell_type"] == "code"
    ]


def main() -> None:
    """Run and store all of them."""
    import tempfile

    for path in NOTEBOOKS:
        with tempfile.TemporaryDirectory() as folder:
            nbformat.write(executed(path, Path(folder)), path)
        print(f"{path.name}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
