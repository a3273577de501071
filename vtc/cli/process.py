"""The command line as a process: Ctrl-C at any moment, and readers of its output that go away.

It imports nothing heavy: what takes long is imported where Ctrl-C is already listened for.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from io import TextIOWrapper
from typing import Any

from vtc.cli import mistakes


def run(argv: Sequence[str] | None = None) -> int:
    """Run a command line, by default that of this process; returns the exit status, one of `mistakes.STATUS`."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else somebody has it ignored
        signal.signal(signal.SIGINT, _stop)
    for stream in (sys.stdout, sys.stderr):  # a terminal without a sign gets "?" for it
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace" if stream is sys.stdout else "backslashreplace")
    try:
        from vtc.cli.main import main

        try:
            status = main(argv)
        except SystemExit as leaving:  # argparse's way out
            status = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
        sys.stdout.flush()  # here, where failing is told in a sentence
    except BaseException as error:
        if not mistakes.was_interrupted() and not isinstance(error, OSError):
            raise
        status = mistakes.tell(error)
    finally:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # from here on Ctrl-C ends it without a word
    return status


def _stop(number: int, frame: Any) -> None:
    mistakes.note_interrupt()
    raise KeyboardInterrupt
