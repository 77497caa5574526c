"""Style sheets: one set of colours, light and dark, under what each face adds to it."""

from __future__ import annotations

import re
from pathlib import Path

__all__ = ["light_colours", "style"]

_TEMPLATES = Path(__file__).parent / "templates"


def style(sheet: str, scope: str = ":root") -> str:
    """The colours and a style sheet.

    Args:
        sheet: File name without its ending.
        scope: Selector of what the colours are for.
    """
    return f"{_read('colours').replace(':root', scope)}\n{_read(sheet)}"


def light_colours() -> dict[str, str]:
    """Colours on a light ground by the names of their variables."""
    css = _read("colours")
    return dict(re.findall(r"--([\w-]+): (#\w+);", css[: css.index("}")]))


def _read(sheet: str) -> str:
    return (_TEMPLATES / f"{sheet}.css").read_text(encoding="utf-8").strip()
