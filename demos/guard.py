"""What stands before the page: who may call it, from where, how much at once, and what browsers are told about it.

All of it is ASGI middleware of our own before gradio's application, so that what is refused costs nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
import re
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlsplit

from vtc.demos.presence import Presence
from vtc.demos.sessions import Sessions
from vtc.demos.store import Full, Store

_POLICY = (
    "default-src 'none'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; media-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' data: blob:; "
    "worker-src 'self' blob:; manifest-src 'self'; form-action 'self'; base-uri 'self'; frame-ancestors {frames}"
)
_JOIN, _UPLOAD, _NEWS = "/gradio_api/queue/join", "/gradio_api/upload", "/gradio_api/queue/data"
_POSTS = {_JOIN, _UPLOAD, "/gradio_api/cancel", "/gradio_api/reset"}
_CLOSED = ("/gradio_api/proxy=", "/proxy=", "/monitoring", "/gradio_api/stream/", "/gradio_api/call/")
_HEARTBEAT, _PROGRESS = "/gradio_api/heartbeat/", "/gradio_api/upload_progress"
_LOCAL = ("localhost", "127.0.0.1", "::1")

Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


@dataclass(frozen=True)
class Limits:
    """What visitors may ask of the server.

    Attributes:
        upload: bytes of one upload. message: bytes of any other request.
        uploads_at_once, uploads_of_one: uploads that arrive at the same time, of everybody and of one address.
        waiting: questions in line. waiting_of_one, waiting_of_page: of one address, of one page.
        streams_of_one: connections that stay open, of one address: a page has two.
        patience: s without a byte, after which a request is given up.
    """

    upload: int = 21 * 2**20
    message: int = 2**20
    uploads_at_once: int = 64
    uploads_of_one: int = 4
    waiting: int = 64
    waiting_of_one: int = 24
    waiting_of_page: int = 8
    streams_of_one: int = 128
    patience: float = 30.0


@dataclass
class Door:
    """Which hosts the page may be asked for under, and who may show it in a frame.

    Attributes:
        hosts: names, in lower case; "*" = any.
        proxied: those of them that are a proxy's before this server, which may rewrite what a page calls it.
        addresses: whether any IP address will do, as on a server that listens on all of its own.
        frames: origins, "https://huggingface.co".
    """

    hosts: set[str]
    proxied: frozenset[str] = frozenset()
    addresses: bool = False
    frames: Sequence[str] = ()

    @classmethod
    def of(cls, host: str, allowed: Sequence[str] = (), frames: Sequence[str] = ()) -> Door:
        """For a server that listens at `host`.

        Raises:
            ValueError: one of `allowed` is no name of a host, or one of `frames` no origin.
        """
        names = {_name(text, "--allow-host") for text in allowed}
        for frame in frames:
            if not re.fullmatch(r"https?://[\w.\-]+(:\d+)?/?", frame, re.ASCII):
                raise ValueError(f"--allow-frame {frame!r} is not an origin: write it as in https://example.org")
        everywhere = host in ("0.0.0.0", "::", "")
        own = () if everywhere else (host.strip("[]").lower(),)
        shown = tuple(frame.rstrip("/") for frame in frames)
        return cls({*_LOCAL, *own, *names}, frozenset(names), everywhere, shown)

    def knows(self, host: str) -> bool:
        """Whether the page may be asked for under this host, "example.org:7860"."""
        name = _hostname(host)
        return bool(name) and (name in self.hosts or "*" in self.hosts or (self.addresses and _is_address(name)))

    def lets_in(self, origin: str, host: str) -> bool:
        """Whether a page of `origin` may call this one, which was asked for under `host`: its own pages may."""
        parts = urlsplit(origin)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            return False  # "null", of sandboxed frames and files
        return parts.netloc.lower() == host.lower() or parts.hostname in self.proxied


def _name(text: str, option: str) -> str:
    name = _hostname(text)
    if text != "*" and (not name or "/" in text or not name.isascii() or " " in text):
        raise ValueError(f"{option} {text!r} is not the name of a host: write it as in example.org")
    return name or text


def _hostname(host: str) -> str:
    """The host without its port, in lower case; nothing if it is none."""
    try:
        return (urlsplit(f"//{host}").hostname or "").rstrip(".")
    except ValueError:
        return ""


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


class Refused(Exception):
    """A request that is not let in: HTTP status and sentence."""

    def __init__(self, status: int, said: str) -> None:
        self.status, self.said = status, said
        super().__init__(said)


@dataclass
class Crowd:
    """Who is doing how much at the moment: per address, uploads and open connections.

    Attributes:
        coming: address and page of questions that have been let in and are on their way into the line.
    """

    uploads: Counter[str] = field(default_factory=Counter)
    streams: Counter[str] = field(default_factory=Counter)
    coming: list[tuple[str, str]] = field(default_factory=list)

    @staticmethod
    @contextmanager
    def one_of(kind: Counter[str], client: str, most: int, said: str):
        if kind[client] >= most:
            raise Refused(429, said)
        kind[client] += 1
        try:
            yield
        finally:
            kind[client] -= 1
            if not kind[client]:
                del kind[client]


class Guard:
    """ASGI middleware, around gradio's application."""

    def __init__(
        self,
        app: Any,
        door: Door,
        limits: Limits,
        store: Store,
        sessions: Sessions,
        presence: Presence,
    ) -> None:
        self.app, self.door, self.limits = app, door, limits
        self.store, self.sessions, self.presence = store, sessions, presence
        self.crowd = Crowd()

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})  # the page uses none
            return
        tell, begun = self._telling(send), False

        async def telling(message: dict[str, Any]) -> None:
            nonlocal begun
            begun = True
            await tell(message)

        body = Body(receive, self.limits.patience)
        try:
            self._check(scope)
            await self._serve(scope, body.receive if scope["method"] == "POST" else receive, telling)
        except Refused as refused:
            if not begun:  # else the connection is cut
                await self._refuse(scope, body, tell, refused)

    async def _refuse(self, scope: Any, body: Body, send: Send, refused: Refused) -> None:
        """Answer with the sentence, once what is being sent is through, within reason."""
        most = 3 * self.limits.upload
        if scope["method"] == "POST" and refused.status != 408 and (_length(scope) or 0) <= most:
            with contextlib.suppress(Refused):
                await body.drain(most)
        as_json = scope["path"].rstrip("/") == _JOIN
        text = json.dumps({"detail": refused.said}, ensure_ascii=False) if as_json else refused.said
        kind = b"application/json" if as_json else b"text/plain; charset=utf-8"
        headers = [(b"content-type", kind), (b"content-length", str(len(text.encode())).encode())]
        await send({"type": "http.response.start", "status": refused.status, "headers": headers})
        await send({"type": "http.response.body", "body": text.encode()})

    def _check(self, scope: Any) -> None:
        """Raise Refused if the request comes from another site, or asks for what the page does not need."""
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        host = headers.get("host", "")
        forwarded = [part.strip() for part in headers.get("x-forwarded-host", "").split(",") if part.strip()]
        for name in (host, *forwarded):
            if not self.door.knows(name):
                raise Refused(
                    421, f"This server does not answer to the name {name[:100]!r}: start it with --allow-host."
                )
        origin, site = headers.get("origin"), headers.get("sec-fetch-site", "none")
        if origin is not None and not any(self.door.lets_in(origin, name) for name in (host, *forwarded)):
            raise Refused(403, "Requests from pages of other sites are refused.")
        abroad = origin is None and site in ("cross-site", "same-site") and headers.get("sec-fetch-mode") != "navigate"
        if abroad:
            raise Refused(403, "Requests from pages of other sites are refused.")
        path, method = scope["path"], scope["method"]
        if method not in ("GET", "HEAD", "OPTIONS", "POST") or path.startswith(_CLOSED):
            raise Refused(404, "There is nothing here.")
        if method == "POST" and path.rstrip("/") not in _POSTS:
            raise Refused(404, "There is nothing here.")

    async def _serve(self, scope: Any, receive: Receive, send: Send) -> None:
        path, client = scope["path"].rstrip("/"), _client(scope)
        if scope["method"] == "POST" and path == _UPLOAD:
            await self._upload(scope, receive, send, client)
        elif scope["method"] == "POST":
            body = await _whole(receive, _length(scope), self.limits.message)
            with self._join(body, client) if path == _JOIN else contextlib.nullcontext():
                await self.app(scope, _once(body, receive), send)
        elif path in (_NEWS, _PROGRESS) or path.startswith(_HEARTBEAT):
            most, said = self.limits.streams_of_one, "Too many pages are open from this address: close some."
            with self.crowd.one_of(self.crowd.streams, client, most, said):
                await (self.app if path == _PROGRESS else self._stream)(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    async def _upload(self, scope: Any, receive: Receive, send: Send, client: str) -> None:
        length = _length(scope)
        if length is None:
            raise Refused(411, "This upload does not say how long it is.")
        if length > self.limits.upload:
            raise Refused(
                413, f"This upload is larger than {self.limits.upload // 2**20} MB, the maximum allowed size."
            )
        uploads, limits = self.crowd.uploads, self.limits
        if uploads.total() >= limits.uploads_at_once:
            raise Refused(503, "Many others upload at the moment: try again in a minute.")
        said = f"{limits.uploads_of_one} uploads from one address are the limit at a time: wait for one of them."
        with self.crowd.one_of(uploads, client, limits.uploads_of_one, said):
            try:
                with self.store.room(length, client):
                    await self.app(scope, _bounded(receive, length), send)
            except Full as full:
                raise Refused(503, str(full)) from None

    @contextmanager
    def _join(self, body: bytes, client: str):
        """Let a question in, unless too many are in line already, or its page's session has been put away.

        Between here and the line it waits for others: whoever asks a hundred things in the same moment would find an
        empty line a hundred times, so that those on the way count as in it.
        """
        (page, number, values), limits = _question(body), self.limits
        if not self.presence.is_event(number, values):
            raise Refused(400, "This page asks for something that is not there: load it again.")
        if self.sessions.put_away(page):
            raise Refused(410, "This page was left alone for long, and its picture was put away: load the page again.")
        line = [*self.presence.line(_client), *self.crowd.coming]
        theirs, its = sum(source == client for source, _ in line), sum(asking == page for _, asking in line)
        if its >= limits.waiting_of_page:
            raise Refused(429, f"{its} questions of this page are in line already: wait for an answer.")
        if theirs >= limits.waiting_of_one:
            raise Refused(429, f"{theirs} questions from this address are in line already: wait for an answer.")
        if len(line) >= limits.waiting:
            raise Refused(429, f"{len(line)} questions of others are in line already: try again in a minute.")
        self.presence.joined(page)
        self.sessions.trim(self.presence.present(), self.presence.busy())
        self.crowd.coming.append((client, page))
        try:
            yield
        finally:
            self.crowd.coming.remove((client, page))

    async def _stream(self, scope: Any, receive: Receive, send: Send) -> None:
        """Serve a connection that stays open, and notice at once when the page at its other end goes."""
        asked = scope["path"].rstrip("/") == _NEWS
        query = parse_qs(scope["query_string"].decode("latin-1"))
        page = query.get("session_hash", [""])[0] if asked else scope["path"].rstrip("/").rpartition("/")[2]
        gone = asyncio.Event()

        async def listen() -> dict[str, Any]:
            message = await receive()
            if message["type"] == "http.disconnect":
                gone.set()
            return message

        work = asyncio.ensure_future(self.app(scope, listen, send))
        watch = asyncio.ensure_future(_until_gone(receive, gone))
        try:
            with self.presence.here(page, news=asked):
                await asyncio.wait([work, watch], return_when=asyncio.FIRST_COMPLETED)
            self.sessions.saw(page)
            if not work.done():
                await self.presence.left(page)
                await asyncio.wait([work], timeout=5)
        finally:
            watch.cancel()
            if not work.done():
                work.cancel()
            await asyncio.gather(work, watch, return_exceptions=True)

    def _telling(self, send: Send) -> Send:
        """`send`, with what browsers are to be told."""
        frames = " ".join(["'self'", *self.door.frames]) if self.door.frames else "'none'"
        extra = {
            b"content-security-policy": _POLICY.format(frames=frames).encode(),
            b"x-content-type-options": b"nosniff",
            b"referrer-policy": b"no-referrer",
            b"cross-origin-resource-policy": b"same-origin",
            b"permissions-policy": b"camera=(), microphone=(), geolocation=(), payment=(), usb=()",
        }
        if not self.door.frames:
            extra |= {b"x-frame-options": b"DENY", b"cross-origin-opener-policy": b"same-origin"}

        async def telling(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                kept = [pair for pair in message.get("headers", []) if pair[0].lower() not in extra]
                message = {**message, "headers": [*kept, *extra.items()]}
            await send(message)

        return telling


def _client(scope: Any) -> str:
    """The address that a request comes from; of IPv6, whose addresses nobody counts, the network."""
    host = (scope.get("client") or ("unknown", 0))[0]
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    if isinstance(address, ipaddress.IPv6Address):
        return str(ipaddress.ip_network((address, 64), strict=False))
    return str(address)


def _question(body: bytes) -> tuple[str, Any, int]:
    """The page that asks, the number of the event that it triggers, and how many values it gives."""
    try:
        asked = json.loads(body)
        page, number, values = asked.get("session_hash"), asked.get("fn_index"), asked.get("data", [])
    except (ValueError, AttributeError, RecursionError):
        raise Refused(400, "This is not a question.") from None
    if not isinstance(page, str) or not re.fullmatch(r"[\w-]{1,64}", page, re.ASCII):
        raise Refused(400, "This is not a question of a page.")
    if not isinstance(values, list):
        raise Refused(400, "This is not a question.")
    return page, number, len(values)


def _length(scope: Any) -> int | None:
    text = next((value for name, value in scope["headers"] if name == b"content-length"), b"")
    return int(text) if text.isdigit() and len(text) < 19 else None


class Body:
    """`receive` of a request that sends something, with patience.

    Attributes:
        ended: whether all of it has come; what comes after that is only that the client goes.
    """

    def __init__(self, receive: Receive, patience: float) -> None:
        self._receive, self._patience, self.ended = receive, patience, False

    async def receive(self) -> dict[str, Any]:
        if self.ended:
            return await self._receive()
        try:
            message = await asyncio.wait_for(self._receive(), self._patience)
        except TimeoutError:
            raise Refused(408, f"Nothing came for {self._patience:g} s: try again.") from None
        self.ended = not message.get("more_body")
        return message

    async def drain(self, most: int) -> None:
        """Forget what is still to come: who is not heard to the end does not listen to the answer."""
        while not self.ended and most > 0:
            most -= len((await self.receive()).get("body", b""))


def _bounded(receive: Receive, most: int) -> Receive:
    """`receive`, until more bytes come than were announced."""
    left = most

    async def bounded() -> dict[str, Any]:
        nonlocal left
        message = await receive()
        left -= len(message.get("body", b""))
        if left < 0:
            raise Refused(413, "This upload is longer than it says.")
        return message

    return bounded


async def _whole(receive: Receive, length: int | None, most: int) -> bytes:
    """The body of a request."""
    body, more = bytearray(), True
    while more and max(len(body), length or 0) <= most:
        message = await receive()
        if message["type"] != "http.request":
            raise Refused(400, "The request broke off.")
        body += message.get("body", b"")
        more = message.get("more_body", False)
    if max(len(body), length or 0) > most:
        raise Refused(413, f"This is longer than {most / 1000:g} kB, the maximum allowed size.")
    return bytes(body)


def _once(body: bytes, receive: Receive) -> Receive:
    """`receive`, for one who has not had the body yet."""
    handed = False

    async def again() -> dict[str, Any]:
        nonlocal handed
        if handed:
            return await receive()
        handed = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


async def _until_gone(receive: Receive, gone: asyncio.Event) -> None:
    while not gone.is_set():
        if (await receive())["type"] == "http.disconnect":
            gone.set()
