"""One at a time: a file that is locked while something works, and gone when it has ended."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def alone(place: Path, busy: str) -> Iterator[None]:
    """Lock the file `place`, made if it is not there, its folder too; ended or killed, the lock goes with its process.

    The file is removed while it is locked, so that nobody removes one that the next has locked. Who opened it before
    and gets the lock behind has a file that is no longer there, which filelock (from 3.21 on) notices and refuses.

    Raises:
        ValueError: another has it, with `busy` as the sentence. OSError: the file cannot be made.
    """
    from filelock import FileLock, Timeout

    place.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(place)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ValueError(busy) from None
    try:
        yield
    finally:
        with suppress(OSError):  # where an open file cannot be removed it stays
            place.unlink()
        lock.release()
