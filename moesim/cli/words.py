"""Text as a terminal can show it."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

from rich.text import Text

from moesim.reports.text import keep_units

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["Words"]

_PLAIN = str.maketrans("×µ→–÷━…•▸−", "xu>-/#~*>-")


class Words:
    """Text as a console can show it: no markup, and ASCII where there is no Unicode."""

    def __init__(self, console: Console) -> None:
        self.width = console.width
        self.encoding = console.encoding
        self.plain = not console.encoding.lower().startswith("utf")

    def __call__(self, text: str, style: str = "") -> Text:
        """One piece of text, never read as markup."""
        if self.plain:
            text = text.translate(_PLAIN).encode(self.encoding, "replace").decode(self.encoding)
        return Text(text, style)

    def paragraph(self, text: str, style: str = "") -> Text:
        """Wrapped here, since rich would part numbers from their units."""
        lines = textwrap.wrap(keep_units(text), self.width)
        return self("\n".join(lines).replace("\u00a0", " "), style)
