"""Where uploads lie until they are read: bounded in all, and for each address."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import defaultdict, deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_FRESH = 30.0  # s in which an upload is read, and during which it stays
_STUCK = 300.0  # s without a byte after which what lies there is no upload any more
_SHARE = 4  # an address may fill a quarter with fresh uploads
_BLOCK = 2**16  # bytes that a file counts for at least: going through many small ones takes time


class Full(Exception):
    """There is no room; the message is for the visitor."""


class Store:
    """A folder of uploads, in which gradio makes a folder for each; safe for threads.

    Args:
        most: bytes of all uploads.
        fresh: seconds for which an upload is kept whatever comes.
    """

    def __init__(self, folder: Path, most: int, fresh: float = _FRESH) -> None:
        self.folder, self.most, self.fresh = folder, most, fresh
        self._lock = threading.Lock()
        self._coming = 0
        self._of: defaultdict[str, deque[tuple[float, int]]] = defaultdict(deque)

    @contextmanager
    def room(self, size: int, client: str) -> Iterator[None]:
        """Room for an upload of `size` bytes that arrives during the with block; the oldest go for it.

        Raises:
            Full: all that is there is fresh, or the address has had its share.
        """
        size = max(size, _BLOCK)
        with self._lock:
            self._share(size, client)
            self._make(size)
            self._coming += size
        try:
            yield
        finally:
            with self._lock:
                self._coming -= size

    def _share(self, size: int, client: str) -> None:
        now, mine = time.monotonic(), self._of[client]
        for other in [name for name, sent in self._of.items() if sent and sent[-1][0] < now - self.fresh]:
            self._of[other].clear()
        while mine and mine[0][0] < now - self.fresh:
            mine.popleft()
        for other in [name for name, sent in self._of.items() if not sent and name != client]:
            del self._of[other]
        if mine and sum(bytes_ for _, bytes_ in mine) + size > self.most // _SHARE:
            raise Full("Much was uploaded from this address just now: try again in a minute.")
        mine.append((now, size))

    def _make(self, size: int) -> None:
        now, files = time.time(), []
        for file in self.folder.rglob("*"):
            with contextlib.suppress(OSError):
                state = file.lstat()
                if not file.is_file():
                    continue
                if file.parent != self.folder:
                    files.append((state.st_mtime, max(state.st_size, _BLOCK), file))
                elif now - state.st_mtime > _STUCK:
                    file.unlink()
        used = sum(taken for _, taken, _ in files) + self._coming
        for changed, taken, file in sorted(files, key=lambda entry: entry[0]):
            if used + size <= self.most or now - changed < self.fresh:
                break
            with contextlib.suppress(OSError):
                file.unlink()
                os.rmdir(file.parent)
            used -= taken
        if used + size > self.most:
            raise Full("There is no room for uploads at the moment: try again in a minute.")
