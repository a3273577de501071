"""Files from web addresses, within a time and a size that hold whatever the server does."""

from __future__ import annotations

import io
import socket
import string
import time
from email.message import Message
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection, IncompleteRead
from pathlib import Path
from typing import Any
from urllib import request
from urllib.error import URLError
from urllib.parse import quote, urljoin, urlsplit

SECONDS = 60  # to fetch one file
_WAIT = 15  # s without a byte
_PIECE = 1 << 16
_SCHEMES = ("http", "https")


def fetch(address: str, file: Path, most: int) -> None:
    """Write what lies at a web address into a file.

    Args:
        most: bytes that are accepted.

    Raises:
        OSError: it cannot be had as a whole, or not within SECONDS (and what the system takes to find the host), or it
            is no address. ValueError: it is larger than `most`.
    """
    try:
        size = _fetch(address, file, most)
    except (OSError, HTTPException, ValueError) as error:  # ValueError: of broken addresses
        raise OSError(f"{address} cannot be fetched: {_reason(error)}") from None
    if size > most:
        raise ValueError(f"{address} is larger than {most / 10**6:g} MB: fetch a smaller one, or give a file")


def _fetch(address: str, file: Path, most: int) -> int:
    """Bytes that there are, or at least, where that is more than `most`."""
    until = time.monotonic() + SECONDS
    asked = request.Request(quoted(address), headers={"User-Agent": "vtc"})
    with _opener(until).open(asked, timeout=_left(until)) as answer, file.open("wb") as out:
        told = answer.headers.get("Content-Length")
        promised = None if answer.chunked else answer.length
        if told is not None and promised is None and not answer.chunked:
            raise ValueError(f"the server says that it has {told!r} bytes, which is no number")
        size = promised or 0
        while size <= most:
            try:
                piece = answer.read1(_PIECE)
            except IncompleteRead:
                raise OSError(f"cut off after {out.tell()} bytes") from None
            if not piece:
                break
            out.write(piece)
            size = max(size, out.tell())
        if out.tell() < size <= most:
            raise OSError(f"cut off after {out.tell()} of {size} bytes")
    return size


def quoted(address: str) -> str:
    """An address in ASCII: its host in IDNA, all else that is not ASCII in percent signs.

    Example: http://bücher.de/ä b.png -> http://xn--bcher-kva.de/%C3%A4%20b.png
    """
    parts = urlsplit(address.strip())
    host, port, place = parts.hostname or "", parts.port, parts.netloc
    if not host.isascii():
        before, at, _ = place.rpartition("@")
        place = before + at + host.encode("idna").decode() + (f":{port}" if port is not None else "")
    return quote(parts._replace(netloc=place).geturl(), safe=string.punctuation)


def _left(until: float) -> float:
    """Seconds to wait for the next byte; TimeoutError if time is up."""
    left = until - time.monotonic()
    if left <= 0:
        raise TimeoutError(f"it takes longer than {SECONDS} seconds")
    return min(_WAIT, left)


def _reason(error: Exception) -> str:
    """What an error says, in one line."""
    if isinstance(error, UnicodeError):
        return "it is not a well-formed address"
    reason = error.reason if type(error) is URLError else error
    if isinstance(reason, OSError) and reason.strerror:
        reason = reason.strerror[:1].lower() + reason.strerror[1:]
    text = "".join(sign if sign.isprintable() else " " for sign in str(reason))
    return " ".join(text.split()) or type(error).__name__


class _Redirects(request.HTTPRedirectHandler):
    """Follows to http and https alone, and with the time that is left."""

    def __init__(self, until: float) -> None:
        self.until = until

    def redirect_request(
        self, req: request.Request, fp: Any, code: int, msg: str, headers: Message, newurl: str
    ) -> request.Request | None:
        fp.close()  # or all of its body would be read
        req.timeout = _left(self.until)
        return super().redirect_request(req, fp, code, msg, headers, newurl)  # type: ignore[arg-type]

    def http_error_302(self, req: request.Request, fp: Any, code: int, msg: str, headers: Message) -> Any:
        to = urljoin(req.full_url, headers.get("Location") or headers.get("URI") or "")
        if urlsplit(to).scheme not in _SCHEMES:
            raise ValueError(f"it is redirected to {to}, and only http:// and https:// are fetched")
        return super().http_error_302(req, fp, code, msg, headers)  # type: ignore[arg-type]

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302


class _Until(io.RawIOBase):
    """What a socket reads, until a time; each read waits no longer than for what is left of it."""

    def __init__(self, raw: io.RawIOBase, sock: socket.socket, until: float) -> None:
        self.raw, self.sock, self.until = raw, sock, until

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        self.sock.settimeout(_left(self.until))
        try:
            return self.raw.readinto(buffer)
        except TimeoutError:
            _left(self.until)
            raise TimeoutError(f"nothing came for {_WAIT} seconds") from None

    def close(self) -> None:
        self.raw.close()
        super().close()


def _opener(until: float) -> request.OpenerDirector:
    """What opens http and https addresses, the system's proxies minded, with a time for all of it."""

    class Response(HTTPResponse):
        def __init__(self, sock: socket.socket, *args: Any, **options: Any) -> None:
            super().__init__(sock, *args, **options)
            self.fp = io.BufferedReader(_Until(self.fp.detach(), sock, until))  # headers are read from it, too

    class Plain(HTTPConnection):
        response_class = Response

    class Secure(HTTPSConnection):
        response_class = Response

    class Handler(request.HTTPHandler):
        def http_open(self, req: request.Request) -> HTTPResponse:
            return self.do_open(Plain, req)

    class SecureHandler(request.HTTPSHandler):
        def https_open(self, req: request.Request) -> HTTPResponse:
            return self.do_open(Secure, req)

    opener = request.OpenerDirector()
    for handler in (
        request.ProxyHandler(),
        request.UnknownHandler(),
        request.HTTPDefaultErrorHandler(),
        request.HTTPErrorProcessor(),
        _Redirects(until),
        Handler(),
        SecureHandler(),
    ):
        opener.add_handler(handler)
    return opener
