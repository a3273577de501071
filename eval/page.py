"""The comparison as one HTML page, complete in itself: no request leaves it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vtc.eval.compare import Row
from vtc.eval.plot import COLORS, methods, style
from vtc.eval.recorded import Compared, classifies
from vtc.eval.table import caption, tables
from vtc.methods.base.index import MethodInfo, shipped
from vtc.methods.base.notation import read_methods
from vtc.stages import stage_names

_TEMPLATE = Path(__file__).with_name("page.html")
_FIRST = ("method", "keep", "accuracy", "vs full", "vs random")  # what a phone shows without scrolling
_INTRO = (
    "Every point is one run. The wide line is the frontier: nothing measured is both cheaper and better. Point at a "
    "run, or reach it with the Tab key, for its numbers; every column of the table sorts."
)


def html(
    groups: Sequence[Compared],
    title: str = "vtc compare",
    intro: str = _INTRO,
    by: Mapping[str, str] | None = None,
    link: Callable[[str], str] | None = None,
) -> str:
    """The page: a picture of accuracy over a cost of one's choice with hover, a table that sorts, and filters of both.

    Args:
        by: title of a group -> the command that made all of it, to stand beside it.
        link: of a method that ships, by name, the address of a page about it.
    """
    shown = [group for group in groups if group.rows]
    found = {
        "title": title,
        "intro": intro,
        "stages": stage_names(),
        "groups": [_group(group, (by or {}).get(group.title, ""), link) for group in shown],
    }
    data = json.dumps(found, ensure_ascii=False).replace("<", "\\u003c")  # nothing in it ends the script
    return _TEMPLATE.read_text(encoding="utf-8").replace("/*DATA*/null", data)


def _group(group: Compared, by: str, link: Callable[[str], str] | None) -> dict[str, Any]:
    names = {name: number for number, name in enumerate(methods([group]))}
    return {
        "title": group.title,
        "model": group.model,
        "tasks": group.tasks,
        "caption": caption(group),
        "made": group.made,
        "by": by,
        "classifies": classifies(group),
        "rows": [_row(row, classifies(group), link) for row in group.rows],
        "tables": [_table(found, group) for found in tables(group)],
        "colors": {name: style(number)[0] for name, number in names.items()},
        "shapes": {name: (number - 1) // len(COLORS) if number else 0 for name, number in names.items()},
    }


def _row(row: Row, classifier: bool, link: Callable[[str], str] | None) -> dict[str, Any]:
    known = _methods(row.label)
    stages = [stage for info, options in known for stage in _stages(info, options, classifier)]
    about = {"stage": "+".join(dict.fromkeys(stages)), "summary": "", "link": None}
    if known:
        info = known[-1][0]
        about |= {"summary": info.summary, "link": link(info.name) if link else None}
    return asdict(row) | about | {"compressed": row.compressed}


def _methods(label: str) -> list[tuple[MethodInfo, dict[str, Any]]]:
    """The methods that ship of those that a label names, with their options."""
    try:
        named = read_methods(label)
    except ValueError:  # a label of the reader's own
        return []
    return [(info, options) for name, options in named if (info := shipped().get(name))]


def _stages(info: MethodInfo, options: Mapping[str, Any], classifier: bool) -> list[str]:
    """Where a method acts; in a classifier between the blocks, if it can and nothing else is asked for."""
    by_itself = "encoder" if classifier and "encoder" in info.places else info.stage
    return str(options.get("stage") or by_itself).split("+")


# What a column of the main table is sorted by.
_VALUES: dict[str, Callable[[Row], Any]] = {
    "method": lambda row: row.name,
    "keep": lambda row: row.keep,
    "tokens": lambda row: row.tokens,
    "mean": lambda row: row.average,
    "FLOPs": lambda row: row.flops,
    "FLOPs %": lambda row: row.flops_share,
    "KV": lambda row: row.kv,
    "KV %": lambda row: row.kv_share,
    "TTFT ms": lambda row: row.ttft_ms,
    "TTFT gain": lambda row: row.speedup and row.speedup.ratio if row.speedup and row.speedup.clear else None,
    "pictures/s": lambda row: row.picture_ms and 1000 / row.picture_ms,
    "gain": lambda row: row.speedup and row.speedup.ratio if row.speedup and row.speedup.clear else None,
    "tok/s": lambda row: row.decode,
    "peak": lambda row: row.peak,
    "cache": lambda row: row.cache,
    "accuracy": lambda row: row.accuracy.mean,
    "vs full": lambda row: row.versus_full and row.versus_full.mean,
    "vs random": lambda row: row.versus_random and row.versus_random.mean,
    "group A": lambda row: row.group_a and row.group_a.mean,
    "retention": lambda row: row.retention and row.retention.mean,
    "loyalty": lambda row: row.loyalty and row.loyalty.mean,
    "TokDense": lambda row: row.tokdense,
}


def _value(row: Row, title: str) -> Any:
    """What a cell of either table is sorted by; None where it is empty."""
    if title in row.tasks:
        return row.tasks[title].mean
    if title in _VALUES:
        return _VALUES[title](row)
    return next((e[name] for task, e in row.extras.items() for name in e if f"{task} {name}" == title), None)


def _table(found: dict[str, list[str]], group: Compared) -> dict[str, Any]:
    found = {title: found[title] for title in [*(title for title in _FIRST if title in found), *found]}
    cells = [list(line) for line in zip(*found.values(), strict=True)]
    firsts = [i for i, row in enumerate(group.rows) if i and row.keep != group.rows[i - 1].keep]
    values = [[_value(row, title) for title in found] for row in group.rows]
    return {"titles": list(found), "cells": cells, "values": values, "firsts": firsts}
