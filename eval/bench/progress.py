"""How far a benchmark has come, in one line on the terminal; nothing where nobody looks on."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Self, TypeVar

Line = TypeVar("Line")


def in_rounds(lines: Sequence[Line], rounds: int, progress: Callable[[int, int], None]) -> Iterator[tuple[int, Line]]:
    """(number of the round, line) of all lines, round after round; tells `progress` after each."""
    total = rounds * len(lines)
    for done in range(total):
        yield done // len(lines), lines[done % len(lines)]
        progress(done + 1, total)


class Progress:
    """ "cases 3/56, 0:14", written over and over again."""

    def __init__(self) -> None:
        self._began, self._widest, self._shown = time.perf_counter(), 0, sys.stderr.isatty()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._widest:
            print(file=sys.stderr)

    def show(self, what: str, done: int, total: int | None = None) -> None:
        """`what` is being done, and `done` of `total` are; None = nobody knows how many there are."""
        if not self._shown:
            return
        minutes, seconds = divmod(int(time.perf_counter() - self._began), 60)
        text = f"{what} {done}{f'/{total}' if total else ''}, {minutes}:{seconds:02}"
        self._widest = max(self._widest, len(text))
        print(f"\r{text:{self._widest}}", end="", file=sys.stderr, flush=True)
