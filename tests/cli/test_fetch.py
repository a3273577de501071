"""Servers of all sorts: a file comes whole, or there is one sentence that names the address, and in time."""

from __future__ import annotations

import re
import socketserver
import threading
import time

import pytest

from vtc.cli import fetch

BODY = bytes(range(256)) * 8
LONG = b"HTTP/1.1 200 OK\r\nContent-Length: 2048\r\n\r\n"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
#: of each path, what is sent at once and what drips after it, again and again
ANSWERS: dict[str, tuple[bytes, bytes]] = {
    "/whole": (LONG + BODY, b""),
    "/open": (b"HTTP/1.0 200 OK\r\n\r\n" + BODY, b""),
    "/chunked": (CHUNKED + b"800\r\n" + BODY + b"\r\n0\r\n\r\n", b""),
    "/%C3%A4%20b?q=%C3%BC": (LONG + BODY, b""),
    "/100%25": (LONG + BODY, b""),
    "/more": (LONG + BODY + b"more than was promised", b""),
    "/moved": (b"HTTP/1.1 302 Found\r\nLocation: /whole\r\nContent-Length: 99999\r\n\r\nhere", b""),
    "/cut": (LONG + BODY[:1000], b""),
    "/nothing": (LONG, b""),
    "/cut-chunk": (CHUNKED + b"800\r\n" + BODY[:1000], b""),
    "/no-end": (CHUNKED + b"800\r\n" + BODY + b"\r\n", b""),
    "/words": (b"HTTP/1.1 200 OK\r\nContent-Length: ab\x1bc\r\n\r\n", b""),
    "/negative": (b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n" + BODY, b""),
    "/bad-chunk": (CHUNKED + b"zzz\r\n" + BODY, b""),
    "/nonsense": (b"nonsense\r\nmore\r\n\r\n", b""),
    "/hang-up": (b"", b""),
    "/many": (b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 200 + b"\r\n", b""),
    "/file": (b"HTTP/1.1 302 Found\r\nLocation: file:///etc/passwd\r\n\r\n", b""),
    "/ftp": (b"HTTP/1.1 301 Moved\r\nLocation: ftp://127.0.0.1:1/a.png\r\n\r\n", b""),
    "/data": (b"HTTP/1.1 308 Moved\r\nlocation: data:image/png;base64,AA\r\n\r\n", b""),
    "/nowhere": (b"HTTP/1.1 302 Found\r\n\r\n", b""),
    "/broken": (b"HTTP/1.1 302 Found\r\nLocation: http://[::1\r\n\r\n", b""),
    "/loop": (b"HTTP/1.1 302 Found\r\nLocation: /loop\r\n\r\n", b""),
    "/drip": (LONG, b"x"),
    "/drip-chunks": (CHUNKED, b"1\r\nx\r\n"),
    "/drip-headers": (b"HTTP/1.1 200 OK\r\nA: ", b"x"),
    "/drip-status": (b"HTTP/1.1 200 ", b"O"),
    "/drip-moved": (b"HTTP/1.1 302 Found\r\nLocation: /drip\r\nContent-Length: 2048\r\n\r\n", b"x"),
}


class _Server(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        path = self.rfile.readline().split()[1].decode()
        while self.rfile.readline().strip():
            pass
        start, drop = ANSWERS[path]
        try:
            self.wfile.write(start)
            for _ in range(100 if drop else 0):
                time.sleep(0.03)
                self.wfile.write(drop)
        except OSError:  # whoever asked is gone
            pass


class _Threads(socketserver.ThreadingTCPServer):
    daemon_threads = True


@pytest.fixture(scope="module")
def address():
    with _Threads(("127.0.0.1", 0), _Server) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.mark.parametrize(
    "path", ["/whole", "/open", "/chunked", "/ä b?q=ü#part", "/%C3%A4%20b?q=ü", "/100%25", "/more", "/moved"]
)
def test_a_file_comes_whole(address, tmp_path, path):
    fetch.fetch(address + path, tmp_path / "file", 4096)
    assert (tmp_path / "file").read_bytes() == BODY


@pytest.mark.parametrize("path", ["/whole", "/open", "/chunked"])
def test_a_file_is_as_large_as_is_accepted(address, tmp_path, path):
    fetch.fetch(address + path, tmp_path / "file", 2048)
    with pytest.raises(ValueError, match=f"^{address}{path} is larger than 0.002047 MB: fetch a smaller one"):
        fetch.fetch(address + path, tmp_path / "file", 2047)


def refused(address: str, file) -> str:
    """What is said of an address, which it begins with."""
    with pytest.raises(OSError, match=f"^{re.escape(address)} cannot be fetched: ") as refusal:
        fetch.fetch(address, file, 4096)
    return str(refusal.value).removeprefix(f"{address} cannot be fetched: ")


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/cut", "cut off after 1000 of 2048 bytes"),
        ("/nothing", "cut off after 0 of 2048 bytes"),
        ("/cut-chunk", "cut off after 1000 bytes"),
        ("/no-end", "cut off after 2048 bytes"),
        ("/bad-chunk", "cut off after 0 bytes"),
        ("/words", "the server says that it has 'ab\\x1bc' bytes, which is no number"),
        ("/negative", "the server says that it has '-5' bytes, which is no number"),
        ("/nonsense", "nonsense"),
        ("/hang-up", "Remote end closed connection without response"),
        ("/many", "got more than 100 headers"),
        ("/file", "it is redirected to file:///etc/passwd, and only http:// and https:// are fetched"),
        ("/ftp", "it is redirected to ftp://127.0.0.1:1/a.png, and only http:// and https:// are fetched"),
        ("/data", "it is redirected to data:image/png;base64,AA, and only http:// and https:// are fetched"),
        ("/nowhere", "HTTP Error 302: Found"),
        ("/broken", "Invalid IPv6 URL"),
    ],
)
def test_one_that_does_not_is_refused(address, tmp_path, path, reason):
    assert refused(address + path, tmp_path / "file") == reason


def test_a_loop_of_redirections(address, tmp_path):
    assert "infinite loop" in refused(f"{address}/loop", tmp_path / "file")


@pytest.mark.parametrize("path", [path for path, (_, drop) in ANSWERS.items() if drop])
def test_a_server_that_drips_does_not_take_longer(address, tmp_path, path, monkeypatch):
    monkeypatch.setattr(fetch, "SECONDS", 0.2)
    start = time.monotonic()
    assert refused(address + path, tmp_path / "file") == "it takes longer than 0.2 seconds"
    assert time.monotonic() - start < 1.5  # dripping on for 3


def test_a_server_that_says_nothing(address, tmp_path, monkeypatch):
    monkeypatch.setitem(ANSWERS, "/mute", (LONG, b"x"))
    monkeypatch.setattr(fetch, "_WAIT", 0.01)
    assert refused(f"{address}/mute", tmp_path / "file") == "nothing came for 0.01 seconds"


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("http://", "no host given"),
        ("http:///a.png", "no host given"),
        ("http://[::1", "Invalid IPv6 URL"),
        ("http://127.0.0.1:port/a.png", "Port could not be cast to integer value as 'port'"),
        ("http://127.0.0.1:99999/a.png", "Port out of range 0-65535"),
        ("http://" + "a" * 70 + ".invalid/", "it is not a well-formed address"),
        ("http://ä" + "a" * 70 + ".invalid/", "it is not a well-formed address"),
        ("http://ä..invalid/", "it is not a well-formed address"),
        ("http://.invalid/", "it is not a well-formed address"),
        ("http://\udcff/", "it is not a well-formed address"),
        ("http://127.0.0.1/\udcff", "it is not a well-formed address"),
        ("https://127.0.0.1:9/ä b.png", "connection refused"),
    ],
)
def test_a_broken_address_is_named(tmp_path, address, reason):
    assert refused(address, tmp_path / "file") == reason


def test_addresses_in_ascii():
    assert fetch.quoted("http://bücher.de:80/ä b.png?c=d%20e#f") == (
        "http://xn--bcher-kva.de:80/%C3%A4%20b.png?c=d%20e#f"
    )
    assert fetch.quoted("https://a.de/b(1),%C3%A4[2]~'c'.png?x=1&y=a+b") == (
        "https://a.de/b(1),%C3%A4[2]~'c'.png?x=1&y=a+b"
    )
    assert fetch.quoted("http://[::1]:8000/a") == "http://[::1]:8000/a"
