"""Small pieces of Markdown."""

from __future__ import annotations

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
    return re.sub(r"([\\*_\[\]<>|#])", r"\\\1", text)


def code(text: str) -> str:
    """Inline code, also within a table, where a bar has to be escaped."""
    return f"`{text.replace('|', chr(92) + '|')}`"


def block(language: str, *lines: str) -> list[str]:
    return [f"```{language}", *lines, "```", ""]
