"""Which pages are open, and what is done for them: work for a page that has gone stops.

A page of gradio's keeps a stream open on which it is told what becomes of its questions. When that ends while questions
are under way, nobody can be told any more.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakSet

_REMEMBERED = 10_000  # pages that have gone
_NEVER_CAME = 10.0  # s after a question by which its page must listen


class Presence:
    """Safe for threads, but for what is said to be for the server's event loop.

    Attributes:
        queue: gradio's, once the page is served.
    """

    def __init__(self) -> None:
        self.queue: Any = None
        self._lock = threading.Lock()
        self._news: Counter[str] = Counter()
        self._open: Counter[str] = Counter()
        self._stops: dict[str, WeakSet[threading.Event]] = {}
        self._gone: OrderedDict[str, None] = OrderedDict()  # pages that nothing is done for until they are back
        self._drops: set[asyncio.Task[None]] = set()

    @contextmanager
    def here(self, page: str, news: bool) -> Iterator[None]:
        """A page is open as long as the with block lasts; `news`: and listens to what becomes of its questions."""
        counters = (self._open, self._news) if news else (self._open,)
        with self._lock:
            for counter in counters:
                counter[page] += 1
            if news:
                self._gone.pop(page, None)
        try:
            yield
        finally:
            with self._lock:
                for counter in counters:
                    counter[page] -= 1
                    if not counter[page]:
                        del counter[page]

    def present(self) -> set[str]:
        """Pages that are open."""
        with self._lock:
            return set(self._open)

    def busy(self) -> set[str]:
        """Pages that are being answered, or wait for it; for the event loop."""
        return {event.session_hash for event in [*self._in_line(), *self._at_work()]}

    def _in_line(self) -> list[Any]:
        lines = self.queue.event_queue_per_concurrency_id.values() if self.queue is not None else ()
        return [event for line in lines for event in line.queue]

    def _at_work(self) -> list[Any]:
        jobs = self.queue.active_jobs if self.queue is not None else ()  # an empty one is false
        return [event for job in jobs for event in job or ()]

    def is_event(self, number: Any, values: int) -> bool:
        """Whether the page that is served sends an event of this number, with so many values."""
        if self.queue is None:
            return True
        event = self.queue.blocks.fns.get(number) if type(number) is int else None
        return event is not None and event.fn is not None and len(event.inputs) == values

    def line(self, client_of: Callable[[Any], str]) -> list[tuple[str, str]]:
        """Address and page of each question in line; for the event loop.

        Args:
            client_of: the address of an ASGI scope.
        """
        return [(client_of(event.request.scope), event.session_hash) for event in self._in_line()]

    def joined(self, page: str) -> None:
        """A page has asked something: unless it comes to hear the answer, it is dropped; for the event loop."""
        with self._lock:
            self._gone.pop(page, None)

        def look() -> None:
            if not self._news[page] and page in self.busy():
                task = asyncio.ensure_future(self._drop(page))
                self._drops.add(task)  # the loop itself would let go of it
                task.add_done_callback(self._drops.discard)

        asyncio.get_running_loop().call_later(_NEVER_CAME, look)

    async def left(self, page: str) -> None:
        """A stream of a page has broken off: drop what nobody hears of any more; for the event loop."""
        if not self._news[page]:
            await self._drop(page)

    async def _drop(self, page: str) -> None:
        with self._lock:
            stops = list(self._stops.pop(page, ()))
            self._gone[page] = None
            while len(self._gone) > _REMEMBERED:
                self._gone.popitem(last=False)
        for stop in stops:
            stop.set()
        if self.queue is not None:
            await self.queue.clean_events(session_hash=page)
            self.queue.pending_event_ids_session.pop(page, None)  # which gradio keeps for as long as it runs

    def stop_event(self) -> threading.Event:
        """An event that is set when the page that is being answered has gone; outside of gradio's calls, never."""
        event, page = threading.Event(), _page_being_served()
        if page is not None:
            with self._lock:
                if page in self._gone:
                    event.set()
                self._stops.setdefault(page, WeakSet()).add(event)
                for other in [name for name, events in self._stops.items() if not len(events)]:
                    del self._stops[other]
        return event

    def stop_all(self) -> None:
        """The server ends."""
        with self._lock:
            stops = [stop for events in self._stops.values() for stop in events]
            self._stops.clear()
        for stop in stops:
            stop.set()


def _page_being_served() -> str | None:
    context = sys.modules.get("gradio.context")
    request = context.LocalContext.request.get(None) if context else None
    return getattr(request, "session_hash", None)


PRESENCE = Presence()
