"""Pages of the documentation: their blocks, links and anchors."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
LINKED = [ROOT / "README.md", *PAGES]

FENCE = re.compile(r"^```(\w*)([^\n`]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NOT_RUN = re.compile(r"<!-- not run:(.*?)-->\n\Z", re.DOTALL)
LINK = re.compile(r"(?<!\\)\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#{1,6} +(.+?)\s*$", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        language: The word after the fence.
        title: File that the block is, from ``title="…"``.
        text: What it holds.
        not_run: The reason that stands above it, None if it is to be run.
    """

    language: str
    title: str | None
    text: str
    not_run: str | None


def blocks(page: Path) -> list[Block]:
    """Fenced blocks of a page, in order."""
    text = page.read_text(encoding="utf-8")
    found = []
    for match in FENCE.finditer(text):
        title = re.search(r'title="([^"]+)"', match[2])
        above = NOT_RUN.search(text, 0, match.start())
        found.append(
            Block(
                match[1],
                title[1] if title else None,
                match[3],
                above[1].strip() if above else None,
            )
        )
    return found


def commands(text: str) -> list[list[str]]:
    """Words of every line; a backslash at the end of a line joins it to the next."""
    lines = text.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def without_code(page: Path) -> str:
    """A page's text without fenced blocks and inline code."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    return re.sub(r"`[^`\n]*`", "", text)


def links(page: Path) -> list[str]:
    """Targets of links and images to files of this project."""
    return [
        link
        for link in LINK.findall(without_code(page))
        if not re.match(r"[a-z]+://|mailto:", link)
    ]


def anchors(page: Path) -> set[str]:
    """Anchors of a page's headings, by the rule that GitHub and mkdocs share for plain headings."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    slugs = (re.sub(r"[^\w\s-]", "", heading.lower()) for heading in HEADING.findall(text))
    return {re.sub(r"\s", "-", slug.strip()) for slug in slugs}
