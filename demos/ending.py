"""How the demo is told to end: Ctrl-C, SIGTERM or a closed terminal, at any moment, and once."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from vtc.cli import mistakes

ANSWERING = "vtc-demo-answer"  # name of threads in which a model is at work
_PATIENCE = 5.0  # s for them to come to the end of a step


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


def settle() -> bool:
    """Wait for models that are at work; whether they have stopped."""
    end = time.monotonic() + _PATIENCE
    for thread in threading.enumerate():
        if thread.name == ANSWERING:
            thread.join(max(0.0, end - time.monotonic()))
    return not any(thread.name == ANSWERING for thread in threading.enumerate())


def leave(error: BaseException) -> None:
    """End the process here: Python would wait for, or fall over, a model in the middle of a step."""
    status = mistakes.tell(error)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            continue
    os._exit(status)
