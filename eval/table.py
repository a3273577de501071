"""An evaluation's result as a table for the terminal, as Markdown for the README, and as JSON."""

import json
from dataclasses import asdict, dataclass

from rich.box import SIMPLE_HEAD
from rich.table import Table

from vtc.eval.metrics import Score, bootstrap, wilson
from vtc.eval.runner import Result, Run


@dataclass(frozen=True)
class Row:
    """One setting: accuracy by task and over all questions, agreement with the full model, gain over `random`."""

    method: str
    keep: int | float | None
    tokens: float  # visual tokens per question, after the last decoder layer that drops any
    average: float  # the same, mean over the decoder layers
    flops: float  # of the prefill, as a share of the uncompressed model's
    kv: float  # bytes of the KV cache, likewise
    tasks: dict[str, Score]
    overall: Score
    loyalty: Score | None
    gain: Score | None  # mean of the per-question differences to `random` at the same keep
    seconds: float


def rows(result: Result) -> list[Row]:
    """One row per run, budgets from large to small, `random` first within a budget."""
    questions = result.data.questions
    images = {image: index for index, image in enumerate(dict.fromkeys(q.image for q in questions))}
    groups = [images[question.image] for question in questions]
    baseline = {run.keep: run for run in result.runs if run.method == "random"}

    def row(run: Run) -> Row:
        tasks = {}
        for task in result.data.tasks:
            picked = [i for i, question in enumerate(questions) if question.task == task]
            scores = [run.scores[i] for i in picked]
            graded = any(questions[i].objects for i in picked)
            tasks[task] = bootstrap(scores, [groups[i] for i in picked]) if graded else wilson(scores)
        gain = None
        if run.keep is not None and run.method != "random":
            base = baseline[run.keep].scores
            gain = bootstrap([own - other for own, other in zip(run.scores, base, strict=True)], groups)
        return Row(
            method=run.method,
            keep=run.keep,
            tokens=run.tokens_out / len(questions),
            average=run.tokens_average / len(questions),
            flops=_share(run.flops),
            kv=_share(run.kv_bytes),
            tasks=tasks,
            overall=bootstrap(run.scores, groups),
            loyalty=None if run is result.full else bootstrap(result.loyalty(run), groups),
            gain=gain,
            seconds=run.seconds,
        )

    return [row(run) for run in result.runs]


def _share(pair: tuple[int, int]) -> float:
    return pair[1] / pair[0] if pair[0] else 1.0


def _percent(score: Score | None, sign: str = "", digits: int = 1) -> str:
    if score is None:
        return ""
    return f"{100 * score.mean:{sign}.{digits}f} ±{100 * score.half_width:.{digits}f}"


def _header(result: Result) -> list[str]:
    return ["method", "tokens", "mean", "FLOPs", "KV", *result.data.tasks, "all", "vs random", "loyalty"]


def _cells(row: Row, digits: int) -> list[str]:
    tasks = [_percent(score, digits=digits) for score in row.tasks.values()]
    return [
        row.method,
        f"{row.tokens:.0f}",
        f"{row.average:.0f}",
        f"{100 * row.flops:.0f}",
        f"{100 * row.kv:.0f}",
        *tasks,
        _percent(row.overall),
        _percent(row.gain, "+"),
        _percent(row.loyalty),
    ]


def caption(result: Result) -> str:
    pictures = len({question.image for question in result.data.questions})
    return (
        f"{result.data.name}: {len(result.data.questions)} questions on {pictures} pictures; model {result.model}. "
        "Tokens: per picture, at the end and as a mean over the decoder layers; FLOPs of the language model's prefill "
        "and bytes of its KV cache in % of the uncompressed model's. Scores in %, with 95 % confidence intervals: "
        "Wilson's for tasks scored right or wrong, bootstrap over pictures for captions (F1 over objects), all "
        "questions, the paired difference to random, and loyalty (same answer as with all tokens)."
    )


def terminal(result: Result) -> Table:
    """A rich table, one section per budget; task columns are rounded so that it fits a wide terminal."""
    table = Table(box=SIMPLE_HEAD, caption=caption(result), caption_justify="left", pad_edge=False)
    for title in _header(result):
        table.add_column(title, justify="left" if title == "method" else "right", no_wrap=True)
    keep = None
    for row in rows(result):
        if row.keep != keep:
            table.add_section()
            keep = row.keep
        better = row.gain is not None and row.gain.low > 0
        table.add_row(*_cells(row, digits=0), style="bold" if better else None)
    return table


def markdown(result: Result) -> str:
    """The same as a Markdown table, the gain in bold where the method beats random beyond the interval."""
    header = _header(result)
    lines = ["| " + " | ".join(header) + " |", "|---|" + "---:|" * (len(header) - 1)]
    for row in rows(result):
        cells = _cells(row, digits=1)
        if row.gain is not None and row.gain.low > 0:
            cells[header.index("vs random")] = f"**{cells[header.index('vs random')]}**"
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", caption(result), ""])


def as_json(result: Result) -> str:
    """Every row with its intervals, and every answer by question id."""
    answers = [
        {"id": question.id, "task": question.task, "answers": {_key(run): run.answers[i] for run in result.runs}}
        for i, question in enumerate(result.data.questions)
    ]
    return json.dumps(
        {
            "data": result.data.name,
            "model": result.model,
            "seconds": round(result.seconds, 1),
            "rows": [asdict(row) for row in rows(result)],
            "questions": answers,
        },
        indent=1,
    )


def _key(run: Run) -> str:
    return run.method if run.keep is None else f"{run.method}@{run.keep}"
