"""docs/fidelity.md names every method and only what exists: methods, options, commands, headings."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import vtc
from vtc.eval.bench import half
from vtc.methods.base import index

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "fidelity.md").read_text(encoding="utf-8")
CODE = re.findall(r"`([^`\n]+)`", PAGE)


def first_cells() -> list[str]:
    return [row.split("|")[1].strip().strip("`") for row in PAGE.splitlines() if row.startswith("| `")]


def test_every_method_has_a_row():
    rows = [name for name in first_cells() if "(" not in name]
    assert sorted(rows) == sorted(index.shipped())


@pytest.mark.parametrize(
    "text", sorted({text for text in CODE if text.split("(")[0] in index.shipped() and "(" in text})
)
def test_what_it_writes_down_can_be_built(text):
    assert vtc.resolve(text).name == text.split("(")[0]


def test_options_stand_beside_a_method_that_has_them():
    """Such as `cls=True` in a row; options alone are those of the row's method."""
    for row in PAGE.splitlines():
        if not row.startswith("| `") or "(" in row.split("|")[1]:
            continue
        name = row.split("|")[1].strip().strip("`")
        for option in re.findall(r"`([a-z_]+=[^`]+)`", row):
            assert vtc.resolve(f"{name}({option})").name == name


def test_its_links_lead_to_headings():
    headings = {
        re.sub(r"[^a-z0-9 -]", "", line.strip("# ").lower()).replace(" ", "-")
        for line in PAGE.splitlines()
        if line.startswith("#")
    }
    for anchor in re.findall(r"\]\(#([^)]+)\)", PAGE):
        assert anchor in headings


def test_the_table_of_overlaps_is_the_commands():
    head = " | ".join(f"{rule}, {dtype}" for rule, dtype in half.COLUMNS)
    assert f"| features | tokens | kept | {head} |" in PAGE
    rows = [
        row.split("|")[1:4] for row in PAGE.splitlines() if row.startswith(tuple(f"| {kind} |" for kind in half.KINDS))
    ]
    wanted = [[kind, str(tokens), str(kept)] for kind in half.KINDS for tokens, kept in half.CASES]
    assert [[cell.strip() for cell in row] for row in rows] == wanted
