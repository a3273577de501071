"""What each page wants last, whatever order its events arrive in."""

from __future__ import annotations

import threading
from collections.abc import Hashable

from vtc.demos.studio import Recent


class Wishes:
    """Of the `size` pages that wished last. A page numbers what it sends; no older number replaces a newer one.

    Two events of one page wait in different lines and are handled by different threads: a wish may come after the
    question that followed it, and a question after the wish that ends it.
    """

    def __init__(self, size: int) -> None:
        self._last: Recent[tuple[int, Hashable]] = Recent(size)
        self._lock = threading.Lock()

    def put(self, page: Hashable, number: int, wanted: Hashable) -> None:
        """A page wants this, unless it has sent something newer."""
        with self._lock:
            last = self._last.get(page)
            if last is None or number >= last[0]:
                self._last.put(page, (number, wanted))

    def overtaken(self, page: Hashable, number: int, wanted: Hashable) -> bool:
        """Whether the page has since wished for something else than what it sent as `number`."""
        with self._lock:
            last = self._last.get(page)
        return last is not None and last[0] > number and last[1] != wanted
