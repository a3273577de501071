"""Small pieces of Markdown."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence


def table(titles: Sequence[str], rows: Iterable[Sequence[str]], numbers: bool = False) -> list[str]:
    """Lines of a table; with `numbers`, all columns but the first are set to the right."""
    rule = ["---", *["---:" if numbers else "---"] * (len(titles) - 1)]
    return [line(titles), "|" + "|".join(rule) + "|", *map(line, rows)]


def line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(" ".join(cell.split()) for cell in cells) + " |"


def prose(text: str) -> str:
    """A docstring's words as Markdown: code stays code, and nothing else in it is markup."""
    parts = re.split(r"(`[^`]*`)", " ".join(text.split()))
    return "".join(code(part[1:-1]) if i % 2 else escaped(part) for i, part in enumerate(parts))


def escaped(text: str) -> str:
    """Text in which nothing is markup, to readers of Markdown that differ in which signs a backslash hides."""
    text = re.sub(r"([\\*_\[\]#])", r"\\\1", text.replace("&", "&amp;"))
    return text.replace("<", "&lt;").replace(">", "&gt;").replace("|", "&#124;")


def code(text: str) -> str:
    """Inline code, also within a table, where a bar would end the cell."""
    return f"<code>{html.escape(text).replace('|', '&#124;')}</code>" if "|" in text else f"`{text}`"


def block(language: str, *lines: str) -> list[str]:
    return [f"```{language}", *lines, "```", ""]
