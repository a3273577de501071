"""What docs/fidelity.md says of each method: its row of the tables, and the options that reproduce released code."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

_PAGE = Path(__file__).resolve().parents[1] / "fidelity.md"
_SPLIT = re.compile(r"(?<!\\)\|")
_COMPARED = ["method", "authors' code", "compared", "agreement at f65360d", "now"]
_OPTIONS = ["option", "what the released code does", "default, and why"]


@cache
def _tables() -> list[list[list[str]]]:
    """All tables of the page, each a list of rows of cells, titles first."""
    found: list[list[list[str]]] = [[]]
    for line in _PAGE.read_text(encoding="utf-8").splitlines():
        if line.startswith("|"):
            found[-1].append([cell.strip() for cell in _SPLIT.split(line)[1:-1]])
        elif found[-1]:
            found.append([])
    return [rows for rows in found if rows]


def _rows(titles: list[str]) -> list[list[str]]:
    return [row for rows in _tables() if rows[0] == titles for row in rows[2:]]


def compared(method: str) -> dict[str, str]:
    """Column -> cell of a method's row; KeyError if it has none."""
    rows = {row[0]: dict(zip(_COMPARED[1:], map(_from_below, row[1:]), strict=True)) for row in _rows(_COMPARED)}
    return rows[f"`{method}`"]


def options(method: str) -> list[list[str]]:
    """The rows (option, what the released code does, default) that are about a method."""
    return [
        [_from_below(cell) for cell in row] for row in _rows(_OPTIONS) if re.search(rf"`{re.escape(method)}\(", row[0])
    ]


def _from_below(cell: str) -> str:
    """With links to headings of the page turned into links to the page."""
    return cell.replace("](#", "](../fidelity.md#")
