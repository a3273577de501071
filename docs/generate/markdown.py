"""Small pieces of Markdown."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def table(titles: Sequence[str], rows: Iterable[Sequence[str]], numbers: bool = False) -> list[str]:
    """Lines of a table; with `numbers`, all columns but the first are set to the right."""
    rule = ["---", *["---:" if numbers else "---"] * (len(titles) - 1)]
    return [line(titles), "|" + "|".join(rule) + "|", *map(line, rows)]


def line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(" ".join(cell.split()) for cell in cells) + " |"


def prose(text: str) -> str:
    """A docstring's words as Markdown: code stays code, and nothing else in it is markup.

    A page of the docs that it names by its file ("docs/fidelity.md") is a link with that page's title, as seen from a
    page in a folder of docs/.
    """
    parts = re.split(r"(`[^`]*`|\bdocs/[\w/-]+\.md\b)", " ".join(text.split()))
    return "".join(_special(part) if i % 2 else escaped(part) for i, part in enumerate(parts))


def _special(part: str) -> str:
    if part.startswith("`"):
        return code(part[1:-1])
    title = (ROOT / part).read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")
    return f"[{escaped(title)}](../{part.removeprefix('docs/')})"


def escaped(text: str) -> str:
    """Text in which nothing is markup, to readers of Markdown that differ in which signs a backslash hides."""
    text = re.sub(r"([\\*_\[\]#])", r"\\\1", text.replace("&", "&amp;"))
    return text.replace("<", "&lt;").replace(">", "&gt;").replace("|", "&#124;")


def code(text: str) -> str:
    """Inline code, also within a table, where a bar would end the cell."""
    return f"<code>{html.escape(text).replace('|', '&#124;')}</code>" if "|" in text else f"`{text}`"


def block(language: str, *lines: str) -> list[str]:
    return [f"```{language}", *lines, "```", ""]
