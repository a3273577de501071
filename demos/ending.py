"""How the demo is told to end: Ctrl-C, SIGTERM or a closed terminal, at any moment, and once."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from vtc.cli import mistakes


@contextmanager
def listening() -> Iterator[None]:
    """These signals raise KeyboardInterrupt, the first of them: what is tidied up then is left in peace."""
    if threading.current_thread() is not threading.main_thread():  # where Python lets nobody listen
        yield
        return
    numbers = {signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)}
    before = {number: signal.getsignal(number) for number in numbers}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:  # as nohup wants it
            signal.signal(number, _end)
    try:
        yield
    finally:
        for number, handler in before.items():
            if not mistakes.was_interrupted():
                signal.signal(number, handler)


def _end(number: int, frame: Any) -> None:
    if mistakes.was_interrupted():
        return
    mistakes.note_interrupt(mistakes.ENDED if number == signal.SIGTERM else mistakes.STOPPED)
    raise KeyboardInterrupt


def leave(error: BaseException) -> None:
    """End the process here, with its status and one sentence.

    Python's own end would fall over a model in the middle of a step; and it takes the status for that of Ctrl-C if the
    signal came within an `exec`, as dataclasses have it while they are imported.
    """
    status = mistakes.tell(error)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            continue
    os._exit(status)
