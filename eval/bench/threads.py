"""Answers per second when several threads share one model: wrapped against plain, round by round."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import Any

import vtc
from vtc.eval.bench import archs
from vtc.eval.bench.model import FULL
from vtc.eval.bench.roofs import clock

COLUMNS = {
    "method": "method",
    "keep": "keep",
    "one_thread": "answers/s, one thread",
    "threads": "answers/s, all threads",
    "ratio": "to plain threads",
    "ratio_min": "min",
    "ratio_max": "max",
    "gain": "to its own one thread",
}
WORDS = 8  # generated per answer
Setting = tuple[str, int | float | None]


def measure(
    model: Any,
    inputs: Mapping[str, Any],
    settings: Sequence[Setting],
    threads: int,
    rounds: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[Setting, dict[str, list[float]]]:
    """Answers per second of every setting by round, alone ("one_thread") and with `threads` at once ("threads").

    Each time gives as many answers as there are threads; a round that does not count comes first.

    Args:
        inputs: of one prompt, which all threads ask. settings: (method, keep); the plain model is added, as FULL.
        progress: called with (settings timed, all).
    """
    timed: list[Setting] = [(FULL, None), *settings]
    found: dict[Setting, dict[str, list[float]]] = {x: {"one_thread": [], "threads": []} for x in timed}

    def ask(_: int) -> None:
        words: dict[str, Any] = dict(min_new_tokens=WORDS, max_new_tokens=WORDS, do_sample=False)
        model.generate(**inputs, **words, suppress_tokens=[archs.IMAGE, archs.VIDEO])

    with ThreadPoolExecutor(threads) as pool:
        for number in range(len(timed) * (rounds + 1)):
            setting = timed[number % len(timed)]
            method, keep = setting
            with nullcontext() if method == FULL else vtc.wrapped(model, method, keep):
                alone = clock(lambda: [ask(i) for i in range(threads)], model.device)
                beside = clock(lambda: list(pool.map(ask, range(threads))), model.device)
            if number >= len(timed):
                found[setting]["one_thread"].append(threads / alone)
                found[setting]["threads"].append(threads / beside)
            progress(number + 1, len(timed) * (rounds + 1))
    return found


def rows(found: Mapping[Setting, Mapping[str, Sequence[float]]]) -> list[dict[str, Any]]:
    """Medians over the rounds; ratios are of one round each, and their spread is given, too."""
    plain = found[FULL, None]["threads"]
    table = []
    for (method, keep), seconds in found.items():
        ratios = [own / other for own, other in zip(seconds["threads"], plain, strict=True)]
        gains = [own / alone for own, alone in zip(seconds["threads"], seconds["one_thread"], strict=True)]
        table.append(
            {
                "method": method,
                "keep": "" if keep is None else keep,
                "one_thread": round(statistics.median(seconds["one_thread"]), 2),
                "threads": round(statistics.median(seconds["threads"]), 2),
                "ratio": round(statistics.median(ratios), 3),
                "ratio_min": round(min(ratios), 3),
                "ratio_max": round(max(ratios), 3),
                "gain": round(statistics.median(gains), 3),
            }
        )
    return table


def cells(found: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """What the table shows."""
    return [[str(row[column]) for column in COLUMNS] for row in found]
