"""The committed results, docs/results/*.json, each as `vtc compare RUNS --json FILE` wrote it.

After a new one, the tables of docs/results.md are written anew by

    python -m docs.generate.results
"""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

from vtc.eval import table
from vtc.eval.recorded import Recorded, read
from vtc.methods.base.notation import read_methods

FOLDER = Path(__file__).resolve().parents[1] / "results"
PAGE = FOLDER.with_suffix(".md")
_INSIDE = "Inside the language model, at an equal"
#: file -> its title, and the command that makes its runs, in the order in which they are shown
TABLES = {
    "pictures": ("Pictures", "make table"),
    "peers": ("Methods of 2025 and 2026 on pictures", "make table-peers TIMING=0"),
    "inside-average": (f"{_INSIDE} average", "make table-inside TIMING=0"),
    "inside-final": (f"{_INSIDE} number at the end", "make table-inside TIMING=0"),
    "crops": ("Pictures in crops", "make table-crops TIMING=15"),
    "cache": ("In the KV cache", "make table-cache TIMING=10"),
    "cache-video": ("In the KV cache, of videos", "make table-cache-video TIMING=10"),
    "video": ("Videos", "make table-video"),
    "peers-video": (
        "Methods of 2025 and 2026 on videos",
        "vtc eval --config eval/sweeps/peers-video.toml --keep 0.1,32 --timing 0",
    ),
    "vit": ("Inside a vision tower", "make table-vit"),
}
#: file -> the heading of docs/results.md under which all of its numbers stand
HEADINGS = {
    "pictures": "All numbers",
    "peers": "All numbers of the methods of 2025 and 2026",
    "inside-average": f"{_INSIDE} average",
    "inside-final": f"{_INSIDE} number of tokens at the end",
    "crops": "All numbers of pictures in crops",
    "cache": "All numbers of the KV cache",
    "cache-video": "All numbers of the KV cache, of videos",
    "video": "All numbers of videos",
    "peers-video": "All numbers of the methods of 2025 and 2026 on videos",
    "vit": "Inside a vision tower",
}
# Columns of a method's own rows.
_COLUMNS = (
    *("method", "keep", "tokens", "mean", "FLOPs %", "KV %", "TTFT ms", "TTFT gain", "pictures/s", "gain"),
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


def names_of(label: str) -> list[str]:
    """The methods of a row's label, without options: several where they act together."""
    return [name for name, _ in read_methods(label)]


def rows_of(method: str) -> dict[str, dict[str, list[str]]]:
    """Name of a table -> its columns, cut to the rows of a method, behind that of the uncompressed model.

    Rows in which it acts together with others are among them.
    """
    found = {}
    for name, group in groups().items():
        own = [i for i, row in enumerate(group.rows) if method in names_of(row.label)]
        if own:
            shown = [i for i, row in enumerate(group.rows) if row.label == "full"] + own
            cells = table.columns(group)
            columns = {title: [cells[title][i] for i in shown] for title in _COLUMNS if title in cells}
            found[name] = {title: column for title, column in columns.items() if any(cell.strip() for cell in column)}
    return found


def body(name: str) -> str:
    """The tables of one file and what they mean, as Markdown, without a heading."""
    return table.markdown([groups()[name]]).partition("\n\n")[2].strip() + "\n"


def rewritten(page: str) -> str:
    """docs/results.md with the tables of the files that are there: from the first table under a heading to its end."""
    for name in groups():
        found = re.search(rf"^#+ {re.escape(HEADINGS[name])}\n(?:(?!#|\|).*\n)*", page, re.MULTILINE)
        if found:
            rest = re.search(r"^#", page[found.end() :], re.MULTILINE)
            after = page[found.end() + rest.start() :] if rest else ""
            page = page[: found.end()] + body(name) + (f"\n{after}" if after else "")
    return page


def main() -> int:
    """Write the tables of docs/results.md anew."""
    old = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(new := rewritten(old), encoding="utf-8")
    print(f"{PAGE} {'is as it was' if new == old else 'has new tables'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
