"""Bars that say how far something has come, and how long the rest will take; on stderr."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def with_bars(work: Callable[[Callable[[str, int, int], None]], Any], visible: bool = True) -> Any:
    """`work` with a function to call as it goes: (what is counted, so far, in all)."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("left"),
    )
    progress = Progress(*columns, console=Console(stderr=True), disable=not visible)
    bars: dict[str, Any] = {}

    def advance(what: str, done: int, total: int) -> None:
        progress.start()  # not before there is something to show: mistakes end in one line
        if what not in bars or (progress.tasks[bars[what]].finished and done < total):
            bars[what] = progress.add_task(what, total=total)
        progress.update(bars[what], completed=done, total=total)

    try:
        return work(advance)
    finally:
        if bars:
            progress.stop()
