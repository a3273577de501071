"""What the server remembers of each page, its picture and its answers: bounded, and the oldest put away first."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Collection
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
from PIL import Image

_REMEMBERED = 20_000  # pages that are known to have had something
_OFTEN = 1.0  # s between two looks at all of them


class Sessions:
    """Over gradio's own store, which knows of no bytes; for the server's event loop.

    Args:
        most_bytes: of pictures, clips and answers of all sessions; what several hold counts once.
        most: sessions.
    Attributes:
        holder: gradio's store, once the page is served.
    """

    def __init__(self, most_bytes: int, most: int) -> None:
        self.holder: Any = None
        self.most_bytes, self.most = most_bytes, most
        self._known: OrderedDict[str, None] = OrderedDict()
        self._looked = 0.0

    def saw(self, page: str) -> None:
        """Remember that a page has a picture here."""
        if self._state(page):
            self._known[page] = None
            self._known.move_to_end(page)
            while len(self._known) > _REMEMBERED:
                self._known.popitem(last=False)

    def put_away(self, page: str) -> bool:
        """Whether a page had something here that is gone: its next question would be about another picture."""
        return page in self._known and not self._state(page)

    def trim(self, present: Collection[str] = (), busy: Collection[str] = ()) -> None:
        """Put sessions away until all fit: those of closed pages first, then those used longest ago.

        Args:
            present: pages that are open. busy: pages that are being answered, which stay.
        """
        if self.holder is None or time.monotonic() - self._looked < _OFTEN:
            return
        self._looked = time.monotonic()
        data, used = self.holder.session_data, dict(self.holder.time_last_used)
        for page in list(data):
            self.saw(page)
        latest = sorted(data, key=lambda page: (page in busy, page in present, used.get(page)), reverse=True)
        seen: set[int] = set()
        total = 0
        for number, page in enumerate(latest):
            total += sum(held(value, seen) for value in self._state(page).values())
            if (total > self.most_bytes or number >= self.most) and page not in busy:
                with self.holder.lock:
                    data.pop(page, None)
                    self.holder.time_last_used.pop(page, None)

    def _state(self, page: str) -> dict[Any, Any]:
        session = self.holder.session_data.get(page) if self.holder is not None else None
        return {} if session is None else session.state_data


def held(value: Any, seen: set[int]) -> int:
    """Bytes of pictures, arrays, tensors and texts within a value, each counted once.

    Args:
        seen: ids of what has been counted; all of it must live on, as ids of what is gone are given again.
    """
    if value is None or isinstance(value, int | float | type) or id(value) in seen:
        return 0
    seen.add(id(value))
    if isinstance(value, Image.Image):
        return value.width * value.height * len(value.getbands())
    if isinstance(value, np.ndarray):
        return value.nbytes
    if isinstance(value, str | bytes):
        return len(value)
    if hasattr(value, "element_size"):  # a tensor
        return value.numel() * value.element_size()
    if is_dataclass(value):
        return sum(held(getattr(value, field.name), seen) for field in fields(value))
    if isinstance(value, dict):
        return sum(held(part, seen) for part in value.values())
    if isinstance(value, list | tuple | set):
        return sum(held(part, seen) for part in value)
    return 0
