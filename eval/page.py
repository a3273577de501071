"""The comparison as one HTML page, complete in itself: no request leaves it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vtc.eval.compare import Row
from vtc.eval.plot import methods, style
from vtc.eval.recorded import Compared
from vtc.eval.table import caption, tables

_TEMPLATE = Path(__file__).with_name("page.html")


def html(groups: Sequence[Compared]) -> str:
    """The page: per group a picture of accuracy over a cost of one's choice with hover, the tables, what they mean."""
    found = {
        "groups": [
            {
                "title": group.title,
                "questions": group.questions,
                "tasks": group.tasks,
                "caption": caption(group),
                "rows": [_row(row) for row in group.rows],
                "tables": [_table(found, group) for found in tables(group)],
            }
            for group in groups
            if group.rows
        ],
        "colors": {name: style(number)[0] for number, name in enumerate(methods(groups))},
    }
    data = json.dumps(found, ensure_ascii=False).replace("<", "\\u003c")  # nothing in it ends the script
    return _TEMPLATE.read_text(encoding="utf-8").replace("/*DATA*/null", data)


def _row(row: Row) -> dict[str, Any]:
    return asdict(row) | {"compressed": row.compressed}


def _table(found: dict[str, list[str]], group: Compared) -> dict[str, Any]:
    cells = [list(line) for line in zip(*found.values(), strict=True)]
    firsts = [i for i, row in enumerate(group.rows) if i and row.keep != group.rows[i - 1].keep]
    return {"titles": list(found), "cells": cells, "firsts": firsts}
