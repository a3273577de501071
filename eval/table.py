"""Compared runs as tables: for the terminal, as Markdown, as JSON."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Sequence

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from vtc.eval.compare import LEVEL, Row
from vtc.eval.recorded import Compared, classifies
from vtc.eval.statistics import FEWEST, Score
from vtc.speedup import SpeedUp

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


def _gain(speedup: SpeedUp | None) -> str:
    if speedup is None:
        return ""
    return f"{speedup.ratio:.2f}× ({speedup.low:.2f}–{speedup.high:.2f})" if speedup.clear else "unclear"


def _hard(row: Row) -> str:
    return f"{_percent(row.group_a)} ({row.group_a.n})" if row.group_a else ""


_Cell = Callable[[Row], str]
_METHOD = "method"
_COLUMNS: dict[str, _Cell] = {
    _METHOD: lambda row: row.name,
    "keep": lambda row: "" if row.keep is None else f"{row.keep}",
    "tokens": lambda row: _number(row.tokens),
    "mean": lambda row: _number(row.average),
    "FLOPs": lambda row: _si(row.flops),
    "FLOPs %": lambda row: _number(100 * row.flops_share),
    "KV": lambda row: f"{_si(row.kv)}B" if row.kv else "",
    "KV %": lambda row: _number(100 * row.kv_share) if row.kv else "",
    "TTFT ms": lambda row: _number(row.ttft_ms, ".1f"),
    "TTFT gain": lambda row: _gain(row.speedup) if row.ttft_ms else "",
    "pictures/s": lambda row: _number(1000 / row.picture_ms) if row.picture_ms else "",
    "gain": lambda row: _gain(row.speedup) if row.picture_ms else "",
    "tok/s": lambda row: _number(row.decode),
    "peak": lambda row: f"{_si(row.peak)}B" if row.peak is not None else "",
    "cache": lambda row: f"{_si(row.cache)}B" if row.cache is not None else "",
    "accuracy": lambda row: _percent(row.accuracy),
    "vs full": lambda row: _marked(row.versus_full, row.p_full),
    "vs random": lambda row: _marked(row.versus_random, row.p_random),
    "group A": _hard,
    "retention": lambda row: _percent(row.retention),
    "loyalty": lambda row: _percent(row.loyalty),
    "TokDense": lambda row: _number(row.tokdense, ".2f"),
}
# What a narrow table shows, the most wanted first; it takes as many as its width permits.
_WANTED = (_METHOD, "accuracy", "keep", "vs full", "vs random", "group A", "tokens", "TTFT ms", "pictures/s")
_WANTED += ("FLOPs %", "loyalty")
_WIDTH = 100  # characters of a narrow table
_NAMES = 22  # its longest line of a method's name; longer names take several
_GAP = 3  # between columns


def _meaning(group: Compared) -> dict[str, str]:
    """What a column shows, for those whose title does not say all."""
    kind = group.kind
    paired = f"{_BETTER} better, {_WORSE} worse: p < {LEVEL}, paired over {kind}, Holm-corrected over the table"
    found = {
        "tokens": "visual tokens at the end",
        "mean": "their mean over the decoder layers",
        "FLOPs": "of the language model's prefill",
        "FLOPs %": "FLOPs of the language model's prefill in % of the uncompressed model's",
        "KV": "bytes of the KV cache, by the tokens that it holds",
        "KV %": "the same in % of the uncompressed model's",
        "TTFT ms": "time to first token with the vision tower, median, one question at a time",
        "TTFT gain": "how much sooner the first token comes than uncompressed: ratio of medians, its spread over the "
        "questions; unclear where that covers 1",
        "tok/s": "decoded tokens per second",
        "peak": "peak memory without weights",
        "cache": "what the keys and values of the KV cache occupied when the questions were timed, with 17 tokens said",
        "accuracy": f"in %; ±: 95 % score intervals with {kind} as independent draws, n/a below {FEWEST} of them, or "
        "where a few have nearly all questions",
        "vs full": f"points gained over the uncompressed model; {paired}",
        "vs random": "the same against random at the same keep",
        "group A": "accuracy on the questions that the uncompressed model gets right and downsample at the same keep "
        "gets wrong, and how many these are",
        "retention": "accuracy in % of the uncompressed model's",
        "loyalty": "% of answers that are the uncompressed model's",
        "TokDense": "points of accuracy per mean token",
    }
    if classifies(group):
        found |= {
            "tokens": "patches behind the last block",
            "mean": "their mean over the blocks",
            "FLOPs": "of a picture, counted while it was answered",
            "FLOPs %": "FLOPs of a picture in % of the uncompressed model's",
            "pictures/s": "pictures per second, in batches, reading and resizing left out",
            "gain": "how many times as many as uncompressed, its spread over the batches; unclear where that covers 1",
        }
    return found


def caption(group: Compared, titles: Collection[str] = ()) -> str:
    """What the numbers under these titles are, by default under all."""
    broken = max((row.broken for row in group.rows), default=0)
    meaning, every = _meaning(group), columns(group)
    titles = titles or every
    said = [f"{title}: {meaning[title]}" for title in titles if title in meaning]
    parts = [
        f"{group.data}: {group.questions} questions on {group.media} {group.kind}; model {group.model}",
        f"{broken} of them could not be answered and are left out" if broken else "",
        *said,
        "" if any(row.ttft_ms or row.picture_ms for row in group.rows) else "Nothing was timed",
        "†: the picture was made smaller and larger again, as this model takes it at no smaller size: what so many "
        "tokens can show, at the cost of all of them"
        if any(row.full_cost for row in group.rows)
        else "",
        _least(group),
        _no_group_a(group) if "group A" in titles or "group A" not in every else "",
    ]
    return ". ".join(part[0].upper() + part[1:] if part in said else part for part in parts if part) + "."


def _least(group: Compared) -> str:
    """How few tokens the videos of marked rows have."""
    numbers = sorted({number for row in group.rows for number in row.least})
    if not numbers:
        return ""
    said = f"{numbers[0]}" if len(numbers) == 1 else f"{numbers[0]} to {numbers[-1]}"
    return f"‡: one token per time step of a video is the least, more than asked for: {said}"


def _no_group_a(group: Compared) -> str:
    """Why rows have none."""
    reasons = list(dict.fromkeys(row.why_not for row in group.rows if row.why_not))
    return f"Group A is blank where {'; '.join(reasons)}" if reasons else ""


def columns(group: Compared) -> dict[str, list[str]]:
    """The main table, column by column; those that are empty throughout are left out."""
    found = {title: [cell(row) for row in group.rows] for title, cell in _COLUMNS.items()}
    return {title: cells for title, cells in found.items() if any(cell.strip() for cell in cells)}


def narrow(group: Compared, width: int = _WIDTH) -> dict[str, list[str]]:
    """As many columns of the main table as `width` characters hold."""
    found, left, chosen = columns(group), width - 2 + _GAP, set()
    found[_METHOD] = [_folded(name, _NAMES) for name in found[_METHOD]]
    for title in _WANTED:
        if title in found:
            wide = _GAP + max(len(line) for cell in [title, *found[title]] for line in cell.splitlines())
            if wide <= left:
                left -= wide
                chosen.add(title)
    return {title: cells for title, cells in found.items() if title in chosen}


def _folded(name: str, width: int) -> str:
    """A method's name in lines of so many characters, broken before brackets, behind commas and + where possible."""
    lines = [""]
    for part in re.split(r"(?=\()|(?<=,)|(?<=\+ )", name):
        if lines[-1] and len(lines[-1] + part) > width:
            lines.append(" ")
        lines[-1] += part.lstrip() if lines[-1] == " " else part
    return "\n".join(line[i : i + width] for line in lines for i in range(0, len(line), width))


def task_columns(group: Compared) -> dict[str, list[str]]:
    """Scores by task, and what a task's metric says beside its score."""
    found = {_METHOD: [row.name for row in group.rows], "tokens": [_number(row.tokens) for row in group.rows]}
    for task in group.tasks:
        found[task] = [_percent(row.tasks.get(task)) for row in group.rows]
        for name in dict.fromkeys(name for row in group.rows for name in row.extras.get(task, {})):
            values = [row.extras.get(task, {}).get(name) for row in group.rows]
            found[f"{task} {name}"] = ["" if value is None else f"{100 * value:.1f}" for value in values]
    return found


def tables(group: Compared) -> list[dict[str, list[str]]]:
    """The main table and, where it says more, the breakdown by task."""
    return [
        columns(group),
        *([task_columns(group)] if len(group.tasks) > 1 or any(r.extras for r in group.rows) else []),
    ]


def terminal(group: Compared, wide: bool = True, width: int = _WIDTH) -> list[Table | Text]:
    """For rich: the tables, a section per budget, winners over `random` in bold, and what the numbers are.

    Args:
        wide: all columns and all tables; else the columns of the main table that `width` characters hold.
    """
    if wide:
        titled = zip((group.title, "by task"), tables(group), strict=False)
        parts = [part for title, found in titled for part in (Text(title, "italic"), _rich(group, found))]
        return [*parts, Text(caption(group), "dim")]
    found = narrow(group, width)
    about = Text(f"{caption(group, found)} More columns, and scores by task: --wide.", "dim")
    return [Text(group.title, "italic"), _rich(group, found), about]


def _rich(group: Compared, found: dict[str, list[str]]) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for name in found:
        table.add_column(escape(name), justify="left" if name == _METHOD else "right", no_wrap=True)
    before: object = None
    for row, cells in zip(group.rows, zip(*found.values(), strict=True), strict=True):
        if row.keep != before:
            table.add_section()
            before = row.keep
        table.add_row(*map(escape, cells), style="bold" if row.beats_random else None)
    return table


def markdown(groups: Sequence[Compared]) -> str:
    """All groups as Markdown: each its table, its breakdown by task, and what the numbers are."""
    pages = []
    for group in groups:
        page = [f"## {plain(group.title)}", ""]
        for found, heading in zip(tables(group), ([], ["By task, in %:", ""]), strict=False):
            page += [*heading, *_lines(found), ""]
        pages.append("\n".join([*page, plain(caption(group)), ""]))
    return "\n".join(pages)


def _lines(found: dict[str, list[str]]) -> list[str]:
    lines = [_line(found), "|---|" + "---:|" * (len(found) - 1)]
    return lines + [_line(cell.strip() for cell in cells) for cells in zip(*found.values(), strict=True)]


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(map(plain, cells)) + " |"


def plain(text: str) -> str:
    """Text, such as the name of a file or a task, that Markdown shows as it is and in one line."""
    text = re.sub(r"([\\`*_{}\[\]>|#])", r"\\\1", " ".join(text.split()).replace("&", "&amp;"))
    text = text.replace("<", "&lt;").replace("~", "&#126;")  # no backslash hides these from every reader of Markdown
    return re.sub(r"^([-+]|\d+[.)])(?= |$)", r"\\\1", text)
