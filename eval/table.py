"""Compared runs as tables: for the terminal, as Markdown, as JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from vtc.eval.compare import LEVEL, Group, Row
from vtc.eval.statistics import FEWEST, Score

_BETTER, _WORSE = "▲", "▼"


def _percent(score: Score | None, sign: str = "", digits: int = 1) -> str:
    if score is None:
        return ""
    mean = f"{100 * score.mean:{sign}.{digits}f}"
    if score.half_width is None:
        return f"{mean} ±n/a"
    below, above = (100 * error for error in score.errors)
    if max(above, below) > 3 * min(above, below):  # far from the middle
        return f"{mean} +{above:.{digits}f}/−{below:.{digits}f}"
    return f"{mean} ±{100 * score.half_width:.{digits}f}"


def _marked(score: Score | None, p: float | None) -> str:
    if score is None or p is None:
        return ""
    mark = (_BETTER if score.mean > 0 else _WORSE) if p < LEVEL else " "
    return f"{_percent(score, '+')} {mark}"


def _number(value: float | None, form: str = ".0f") -> str:
    return "" if value is None else f"{value:{form}}"


def _si(value: float | None) -> str:
    if value is None:
        return ""
    for unit, scale in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= scale:
            return f"{value / scale:.3g}{unit}"
    return f"{value:.3g}"


_Cell = Callable[[Row], str]
_COLUMNS: dict[str, _Cell] = {
    "method": lambda row: row.label,
    "tokens": lambda row: _number(row.tokens),
    "mean": lambda row: _number(row.average),
    "FLOPs": lambda row: _si(row.flops),
    "%": lambda row: _number(100 * row.flops_share),
    "KV": lambda row: f"{_si(row.kv)}B",
    "% ": lambda row: _number(100 * row.kv_share),
    "TTFT ms": lambda row: _number(row.ttft_ms, ".1f"),
    "tok/s": lambda row: _number(row.decode),
    "peak": lambda row: f"{_si(row.peak)}B" if row.peak is not None else "",
    "accuracy": lambda row: _percent(row.accuracy),
    "vs full": lambda row: _marked(row.versus_full, row.p_full),
    "vs random": lambda row: _marked(row.versus_random, row.p_random),
    "retention": lambda row: _percent(row.retention),
    "loyalty": lambda row: _percent(row.loyalty),
    "TokDense": lambda row: _number(row.tokdense, ".2f"),
}


def caption(group: Group) -> str:
    """What the numbers are."""
    broken = max((row.broken for row in group.rows), default=0)
    left_out = f" {broken} of them could not be answered and are left out." if broken else ""
    dagger = (
        " †: the picture was made smaller and larger again, as this model takes it at no smaller size: what so many "
        "tokens can show, at the cost of all of them."
        if any(row.label.endswith("†") for row in group.rows)
        else ""
    )
    times = "" if any(row.ttft_ms for row in group.rows) else " Nothing was timed."
    return (
        f"{group.data}: {group.questions} questions on {group.media} {group.kind}; model {group.model}.{left_out} "
        "Per question: visual tokens at the end and as a mean over the decoder layers; FLOPs of the language model's "
        "prefill and bytes of its KV cache, also in % of the uncompressed model's; time to first token with the vision "
        f"tower (median, one question at a time), decoded tokens per second, peak memory without weights.{times} "
        "Accuracy, retention (share of the uncompressed model's accuracy) and loyalty (same answer as it) in %, "
        f"TokDense in points per mean token. ±: 95 % score intervals with {group.kind} as independent draws, n/a below "
        f"{FEWEST} of them. {_BETTER} better, {_WORSE} worse: p < {LEVEL} in a paired test over {group.kind}, "
        f"Holm-corrected over the table.{dagger}"
    )


def columns(group: Group) -> dict[str, list[str]]:
    """The main table, column by column; those that are empty throughout are left out."""
    found = {title: [cell(row) for row in group.rows] for title, cell in _COLUMNS.items()}
    return {title: cells for title, cells in found.items() if any(cell.strip() for cell in cells)}


def task_columns(group: Group) -> dict[str, list[str]]:
    """Scores by task, and what a task's metric says beside its score."""
    found = {"method": [row.label for row in group.rows], "tokens": [_number(row.tokens) for row in group.rows]}
    for task in group.tasks:
        found[task] = [_percent(row.tasks.get(task)) for row in group.rows]
        for name in dict.fromkeys(name for row in group.rows for name in row.extras.get(task, {})):
            values = [row.extras.get(task, {}).get(name) for row in group.rows]
            found[f"{task} {name}"] = ["" if value is None else f"{100 * value:.1f}" for value in values]
    return found


def tables(group: Group) -> list[dict[str, list[str]]]:
    """The main table and, where it says more, the breakdown by task."""
    return [
        columns(group),
        *([task_columns(group)] if len(group.tasks) > 1 or any(r.extras for r in group.rows) else []),
    ]


def terminal(group: Group) -> list[Table]:
    """The tables for rich; a section per budget, winners over `random` in bold."""
    return [_rich(group, *pair) for pair in zip(tables(group), (group.title, "by task"), strict=False)]


def _rich(group: Group, found: dict[str, list[str]], title: str) -> Table:
    table = Table(title=escape(title), title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for name in found:
        table.add_column(escape(name.strip()), justify="left" if name == "method" else "right", no_wrap=True)
    before: object = None
    for row, cells in zip(group.rows, zip(*found.values(), strict=True), strict=True):
        if row.keep != before:
            table.add_section()
            before = row.keep
        table.add_row(*map(escape, cells), style="bold" if row.beats_random else None)
    return table


def markdown(groups: Sequence[Group]) -> str:
    """All groups as Markdown: each its table, its breakdown by task, and what the numbers are."""
    pages = []
    for group in groups:
        page = [f"## {group.title}", ""]
        for found, heading in zip(tables(group), ([], ["By task, in %:", ""]), strict=False):
            page += [*heading, *_lines(found), ""]
        pages.append("\n".join([*page, caption(group), ""]))
    return "\n".join(pages)


def _lines(found: dict[str, list[str]]) -> list[str]:
    lines = ["| " + " | ".join(title.strip() for title in found) + " |", "|---|" + "---:|" * (len(found) - 1)]
    return lines + [
        "| " + " | ".join(cell.strip() for cell in cells) + " |" for cells in zip(*found.values(), strict=True)
    ]


def as_json(groups: Sequence[Group]) -> str:
    """Every row with its intervals and p-values."""
    found = [
        {
            "model": group.model,
            "data": group.data,
            "questions": group.questions,
            "caption": caption(group),
            "rows": [asdict(row) for row in group.rows],
        }
        for group in groups
    ]
    return json.dumps(found, indent=1, ensure_ascii=False) + "\n"
