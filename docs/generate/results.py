"""The committed results, docs/results/*.json, each as `vtc compare RUNS --json FILE` wrote it."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

from vtc.eval import table
from vtc.eval.recorded import Recorded, read

FOLDER = Path(__file__).resolve().parents[1] / "results"
#: file -> its title, and the command that makes its runs, in the order in which they are shown
TABLES = {
    "pictures": ("Pictures", "make table TIMING=0"),
    "inside-average": ("Inside the language model, at an equal average", "make table-inside TIMING=0"),
    "inside-final": ("Inside the language model, at an equal number at the end", "make table-inside TIMING=0"),
    "video": ("Videos", "make table-video TIMING=0"),
}
# Columns of a method's own rows.
_COLUMNS = (
    *("method", "keep", "tokens", "mean", "FLOPs %", "KV %", "TTFT ms", "TTFT gain"),
    *("accuracy", "vs full", "vs random", "group A", "retention", "loyalty"),
)


@cache
def groups() -> dict[str, Recorded]:
    """The tables that are there, by the name of their file; each is one group, under the title that it has here."""
    found = {}
    for name, (title, _) in TABLES.items():
        if (FOLDER / f"{name}.json").is_file():
            (group,) = read(FOLDER / f"{name}.json")
            found[name] = replace(group, title=f"{title}: {group.model} on {group.data}")
    return found


def name_of(label: str) -> str:
    """The method of a row's label, without options."""
    return label.partition("(")[0]


def rows_of(method: str) -> dict[str, dict[str, list[str]]]:
    """Name of a table -> its columns, cut to the rows of a method, behind that of the uncompressed model."""
    found = {}
    for name, group in groups().items():
        own = [i for i, row in enumerate(group.rows) if name_of(row.label) == method]
        if own:
            shown = [i for i, row in enumerate(group.rows) if row.label == "full"] + own
            cells = table.columns(group)
            columns = {title: [cells[title][i] for i in shown] for title in _COLUMNS if title in cells}
            found[name] = {title: column for title, column in columns.items() if any(cell.strip() for cell in column)}
    return found
