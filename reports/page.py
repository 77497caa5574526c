"""The parts of a page: everything from outside is escaped here.

A page loads nothing, and has no script but that of its explorers; its own content security policy
forbids everything else.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from string import Template

from moesim.reports.explorer import script_policy, script_text
from moesim.reports.figures import Picture
from moesim.reports.styles import style
from moesim.reports.tables import Fact, Table
from moesim.reports.text import keep_units

__all__ = [
    "card",
    "command_section",
    "facts",
    "figure",
    "figures",
    "notes",
    "prose",
    "render_page",
    "scrolling",
    "section",
    "table",
]

_TEMPLATES = Path(__file__).parent / "templates"


def render_page(
    *,
    title: str,
    version: str,
    headline: str,
    lead: Iterable[str],
    top_facts: Sequence[Fact],
    remarks: Sequence[Fact],
    sections: Iterable[str],
) -> str:
    """A whole page; the same content gives the same bytes.

    Args:
        title: Small, above the headline.
        version: Of moesim.
        headline: The answer.
        lead: Sentences below it.
        top_facts: The numbers to take away.
        remarks: On the inputs.
        sections: Of :func:`section`.
    """
    template = Template((_TEMPLATES / "plan.html").read_text(encoding="utf-8"))
    body = "\n".join(sections)
    moves = "data-explore=" in body
    return template.substitute(
        policy=script_policy() if moves else "script-src 'none'",
        script=f"<script>{script_text()}</script>" if moves else "",
        title=escape(title),
        version=escape(version),
        style=style("plan"),
        headline=prose(headline),
        lead="\n".join(f'<p class="lead">{prose(text)}</p>' for text in lead),
        facts=facts(top_facts, "facts"),
        notes=notes(remarks),
        sections=body,
    )


def prose(text: str) -> str:
    """Escaped, with numbers kept on one line with their units."""
    return escape(keep_units(text))


def section(title: str, text: str, *parts: str) -> str:
    """A part of the page under a heading."""
    intro = f"<p>{prose(text)}</p>" if text else ""
    body = "\n".join(part for part in parts if part)
    return f"<section>\n<h2>{escape(title)}</h2>{intro}\n{body}\n</section>"


def command_section(command: str, *parts: str) -> str:
    """How to make the page again, with what else belongs to that."""
    code = card(f"<pre><code>{escape(command)}</code></pre>")
    return section("To reproduce it", "", code, *parts)


def card(content: str) -> str:
    """A framed piece."""
    return f'<div class="card">{content}</div>'


def facts(facts: Sequence[Fact], kind: str) -> str:
    """Labelled values; ``kind`` is the class that styles them."""

    def item(fact: Fact) -> str:
        detail = f'<dd class="detail">{prose(fact.detail)}</dd>' if fact.detail else ""
        return (
            f"<div><dt>{escape(fact.label)}</dt>"
            f'<dd class="value">{escape(fact.value)}</dd>{detail}</div>'
        )

    return f'<dl class="{kind}">{"".join(map(item, facts))}</dl>'


def notes(notes: Sequence[Fact]) -> str:
    """Remarks on the inputs."""
    items = "".join(
        f"<p><strong>{escape(note.label)}: {escape(note.value)}.</strong> {prose(note.detail)}</p>"
        for note in notes
    )
    return f'<div class="notes">{items}</div>'


def figure(picture: Picture) -> str:
    """One picture with its caption."""
    return (
        f'<figure class="card"><figcaption><strong>{escape(picture.title)}</strong>'
        f"<span>{escape(picture.remark)}</span></figcaption>"
        f'<div role="img" aria-label="{escape(picture.alt)}">{picture.svg}</div></figure>'
    )


def figures(pictures: Sequence[Picture]) -> str:
    """Pictures side by side."""
    return f'<div class="pair">{"".join(map(figure, pictures))}</div>'


def scrolling(label: str, content: str) -> str:
    """A wide table that scrolls on its own."""
    # A region that scrolls must be reachable by keyboard.
    return (
        f'<div class="card flush wide"><div class="scroll" role="region" '
        f'aria-label="{escape(label)}" tabindex="0"><table>{content}</table></div></div>'
    )


def table(table: Table, kind: str = "plain", *, code: bool = False) -> str:
    """A table of text."""
    head = "".join(
        f'<th scope="col">{escape(name)}</th>' if name else "<td></td>" for name in table.columns
    )

    def cell(text: str) -> str:
        return f"<td><code>{escape(text)}</code></td>" if code else f"<td>{escape(text)}</td>"

    body = "".join(
        f'<tr><th scope="row">{escape(first)}</th>{"".join(map(cell, rest))}</tr>'
        for first, *rest in table.rows
    )
    return (
        f'<div class="card flush"><div class="scroll"><table class="{kind}">'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div></div>"
    )
