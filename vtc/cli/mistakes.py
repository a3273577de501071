"""What ends a command: one sentence on stderr and an exit status that says what kind of end it was."""

from __future__ import annotations

import contextlib
import os
import sys

#: Exit status -> what it means.
STATUS = {
    0: "done",
    1: "done, but some questions could not be answered (vtc eval)",
    2: "refused: an argument, a file or a package will not do",
    3: "failed at work: out of memory, or an error that was not expected",
    130: "stopped by Ctrl-C",
    141: "whatever read the output has gone",
    143: "stopped by SIGTERM (vtc demo)",
}
DONE, UNANSWERED, REFUSED, FAILED, STOPPED, UNREAD, ENDED = STATUS

_EXPECTED = (ValueError, TypeError, OSError, ImportError, NotImplementedError)
_MEMORY = ("can't allocate memory", "cannot allocate memory", "not enough memory", "out of memory")
_LONGEST = 400  # letters of an error that is not ours
_interrupted = False
_stopped_with = STOPPED


def note_interrupt(status: int = STOPPED) -> None:
    """Remember that Ctrl-C was pressed: an import that it breaks may fail with an error of another name."""
    global _interrupted, _stopped_with
    _interrupted, _stopped_with = True, status


def was_interrupted() -> bool:
    return _interrupted


def tell(error: BaseException) -> int:
    """Print one sentence about what ended a command; returns the exit status."""
    status, said = _judge(error)
    if said:
        print(f"vtc: {said}", file=sys.stderr)
    if isinstance(error, OSError):
        _drop_output()
    return status


def _judge(error: BaseException) -> tuple[int, str]:
    text = " ".join(str(error).split())
    if was_interrupted() or isinstance(error, KeyboardInterrupt):
        return _stopped_with, text if text and isinstance(error, KeyboardInterrupt) else "stopped"
    if isinstance(error, BrokenPipeError):
        return UNREAD, ""
    if isinstance(error, OSError) and error.strerror:
        return REFUSED, f"{error.filename or 'cannot write the output'}: {error.strerror.lower()}"
    if _of_memory(error, text):
        return FAILED, "out of memory: take fewer or smaller pictures, a smaller batch, or --dtype bfloat16"
    if isinstance(error, _EXPECTED) and text:
        return REFUSED, text
    name = type(error).__name__
    return FAILED, f"{name}{': ' if text else ''}{text[:_LONGEST]} (not expected: `vtc --traceback ...` shows where)"


def _of_memory(error: BaseException, text: str) -> bool:
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(said in text.lower() for said in _MEMORY)
    )


def _drop_output() -> None:
    """Let what is still to be written go nowhere: else Python complains about it once more when it ends."""
    try:
        sys.stdout.flush()
    except OSError:
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
