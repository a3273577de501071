"""What stands before the page, alone: hosts, origins, sizes, numbers and patience, in front of a small application."""

from __future__ import annotations

import asyncio
import json
import os
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vtc.demos.guard import Door, Guard, Limits, _client
from vtc.demos.presence import Presence
from vtc.demos.sessions import Sessions, held
from vtc.demos.store import Full, Store


@pytest.mark.parametrize(
    ("host", "allowed", "asked", "known"),
    [
        ("127.0.0.1", [], "127.0.0.1:7860", True),
        ("127.0.0.1", [], "LOCALHOST:7860", True),
        ("127.0.0.1", [], "[::1]:7860", True),
        ("127.0.0.1", [], "192.168.0.3:7860", False),
        ("127.0.0.1", [], "evil.example", False),
        ("127.0.0.1", [], "localhost.evil.example", False),
        ("127.0.0.1", [], "", False),
        ("127.0.0.1", [], "[::1", False),
        ("127.0.0.1", ["Demo.example.org"], "demo.example.org.", True),
        ("127.0.0.1", ["demo.example.org:443"], "demo.example.org", True),
        ("127.0.0.1", ["*"], "evil.example", True),
        ("192.168.0.3", [], "192.168.0.3:7860", True),
        ("0.0.0.0", [], "192.168.0.3:7860", True),
        ("::", [], "[fe80::1]:7860", True),
        ("0.0.0.0", [], "evil.example", False),  # a name may be made to point here, an address may not
    ],
)
def test_hosts(host, allowed, asked, known):
    assert Door.of(host, allowed).knows(asked) is known


@pytest.mark.parametrize(
    ("allowed", "origin", "host", "let_in"),
    [
        ([], "http://127.0.0.1:7860", "127.0.0.1:7860", True),
        ([], "http://127.0.0.1:8888", "127.0.0.1:7860", False),
        ([], "http://localhost:7860", "127.0.0.1:7860", False),
        ([], "http://192.168.0.3:8888", "192.168.0.3:7860", False),
        ([], "null", "127.0.0.1:7860", False),
        ([], "file://127.0.0.1:7860", "127.0.0.1:7860", False),
        (["demo.example.org"], "https://demo.example.org", "127.0.0.1:7860", True),  # behind a proxy
        (["demo.example.org"], "https://demo.example.org.evil.example", "127.0.0.1:7860", False),
    ],
)
def test_origins(allowed, origin, host, let_in):
    for listening in ("127.0.0.1", "192.168.0.3", "0.0.0.0"):
        assert Door.of(listening, allowed).lets_in(origin, host) is let_in


@pytest.mark.parametrize("name", ["", "a b", "http://a.org", "a.org/x", "ä.org"])
def test_names_that_are_none(name):
    with pytest.raises(ValueError, match=f"--allow-host '{name}' is not the name of a host"):
        Door.of("127.0.0.1", [name])


@pytest.mark.parametrize("origin", ["", "a.org", "https://a.org/x", "ftp://a.org", "https://a.org; script-src *"])
def test_origins_that_are_none(origin):
    with pytest.raises(ValueError, match=r"is not an origin: write it as in https://example\.org"):
        Door.of("127.0.0.1", [], [origin])


def test_addresses_that_are_counted_together():
    seen = [_client({"client": (host, 1)}) for host in ("10.0.0.1", "2001:db8::1", "2001:db8::ff:2", "2001:db8:0:1::1")]
    assert seen == ["10.0.0.1", "2001:db8::/64", "2001:db8::/64", "2001:db8:0:1::/64"]
    assert _client({"client": None}) == "unknown"


@dataclass
class Made:
    status: int
    headers: dict[str, str]
    text: str


async def application(scope, receive, send):
    """Says how many bytes it was sent; stays open where a page listens."""
    size, more = 0, scope["method"] == "POST"
    while more:
        message = await receive()
        size, more = size + len(message.get("body", b"")), message.get("more_body", False)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    if "heartbeat" in scope["path"]:
        await asyncio.sleep(30)
    await send({"type": "http.response.body", "body": str(size).encode()})


@pytest.fixture
def guard(tmp_path):
    limits = Limits(upload=1000, message=100, uploads_of_one=2, uploads_at_once=3, streams_of_one=2, patience=0.05)
    return Guard(application, Door.of("127.0.0.1"), limits, Store(tmp_path, 10**7), Sessions(10**6, 9), Presence())


async def request(guard, path: str = "/", bodies: Any = (), source: str = "10.0.0.1", **headers: str) -> Made:
    """One request, whose body arrives in parts; None = nothing more comes."""
    parts, sent = list(bodies), []
    method = "POST" if bodies else "GET"
    given = {"host": "127.0.0.1", **{name.replace("_", "-"): value for name, value in headers.items()}}
    scope = {
        "type": "http", "method": method, "path": path, "query_string": b"", "client": (source, 1),
        "headers": [(name.encode(), value.encode()) for name, value in given.items()],
    }  # fmt: skip

    async def receive():
        if not parts or parts[0] is None:
            await asyncio.sleep(30)
        return {"type": "http.request", "body": parts.pop(0), "more_body": bool(parts)}

    async def send(message):
        sent.append(message)

    await guard(scope, receive, send)
    told = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return Made(sent[0]["status"], told, b"".join(m.get("body", b"") for m in sent[1:]).decode())


UPLOAD, JOIN = "/gradio_api/upload", "/gradio_api/queue/join"


def test_sizes(guard):
    def upload(*bodies, length):
        return asyncio.run(request(guard, UPLOAD, bodies, content_length=str(length)))

    assert upload(b"x" * 600, b"x" * 400, length=1000).text == "1000"
    assert upload(b"x" * 1001, length=1001).status == 413
    assert upload(b"x" * 600, b"x" * 600, length=1000).text == "This upload is longer than it says."
    assert asyncio.run(request(guard, UPLOAD, [b"x"])).status == 411
    assert upload(b"x", length="1e3").status == 411
    assert asyncio.run(request(guard, JOIN, [b"x" * 60, b"x" * 60])).status == 413
    assert asyncio.run(request(guard, JOIN, [b"x" * 200], content_length="200")).status == 413
    assert asyncio.run(request(guard, "/gradio_api/cancel", [b"x" * 60, b"x" * 40])).text == "100"


def test_a_question_of_a_page_is_passed_on_whole(guard):
    body = b'{"session_hash": "7d7e0c-5a"}'
    assert asyncio.run(request(guard, JOIN, [body[:9], body[9:]])).text == str(len(body))


def test_all_proxies_on_the_way_have_to_be_known(guard):
    guard.door = Door.of("127.0.0.1", ["a.org", "b.org"])
    own = {"origin": "https://a.org", "x_forwarded_host": "a.org, b.org:8080"}
    assert asyncio.run(request(guard, **own)).status == 200
    assert asyncio.run(request(guard, x_forwarded_host="a.org, c.org")).status == 421


def test_a_refusal_does_not_wait_for_what_has_come(guard):
    guard.limits = Limits(patience=30)
    begun = time.monotonic()
    assert asyncio.run(request(guard, JOIN, [b"[]"])).status == 400
    assert asyncio.run(request(guard, UPLOAD, [b"x", b"y"], host="evil.example")).status == 421
    assert time.monotonic() - begun < 10


def test_who_sends_nothing_is_not_waited_for(guard):
    assert asyncio.run(request(guard, UPLOAD, [b"x", None], content_length="900")).status == 408
    assert asyncio.run(request(guard, JOIN, [b"{", None])).status == 408


@pytest.mark.parametrize("body", ["", "[]", "{}", '{"session_hash": 3}', '{"session_hash": "../x"}', "[" * 90])
def test_what_is_no_question(guard, body):
    made = asyncio.run(request(guard, JOIN, [body.encode()]))
    assert made.status == 400
    assert json.loads(made.text)["detail"].startswith("This is not a question")


def test_uploads_at_once(guard):
    async def several(*sources):
        calls = [request(guard, UPLOAD, [b"x", None], source, content_length="9") for source in sources]
        return [made.status for made in await asyncio.gather(*calls)]

    assert asyncio.run(several("10.0.0.1", "10.0.0.1", "10.0.0.1")) == [408, 408, 429]
    assert asyncio.run(several("10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4")) == [408, 408, 408, 503]
    assert not guard.crowd.uploads  # all of that is over


def test_open_pages(guard):
    async def several():
        calls = [asyncio.ensure_future(request(guard, f"/gradio_api/heartbeat/p{i}")) for i in range(3)]
        done, waiting = await asyncio.wait(calls, timeout=0.1)
        present = guard.presence.present()
        for call in waiting:
            call.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        return [call.result() for call in done], present

    done, present = asyncio.run(several())
    assert [(made.status, made.text) for made in done] == [
        (429, "Too many pages are open from this address: close some.")
    ]
    assert present == {"p0", "p1"}
    assert not guard.presence.present()
    assert not guard.crowd.streams


def test_sockets_are_closed(guard):
    sent = []

    async def send(message):
        sent.append(message)

    asyncio.run(guard({"type": "websocket", "path": "/", "headers": []}, None, send))
    assert sent == [{"type": "websocket.close", "code": 1008}]


def test_who_may_show_the_page_in_a_frame(guard):
    alone = asyncio.run(request(guard)).headers
    assert alone["content-security-policy"].endswith("frame-ancestors 'none'")
    assert alone["x-frame-options"] == "DENY"
    guard.door = Door.of("127.0.0.1", [], ["https://huggingface.co/"])
    framed = asyncio.run(request(guard)).headers
    assert framed["content-security-policy"].endswith("frame-ancestors 'self' https://huggingface.co")
    assert "x-frame-options" not in framed


def test_refusals_carry_the_headers_too(guard):
    refused = asyncio.run(request(guard, host="evil.example"))
    assert refused.status == 421
    assert refused.headers["x-content-type-options"] == "nosniff"
    assert refused.headers["content-type"].startswith("text/plain")
    assert "'evil.example'" in refused.text


def test_the_store_lets_the_oldest_go(tmp_path):
    store = Store(tmp_path, 500_000, fresh=10)

    def put(name: str, age: float) -> None:
        file = tmp_path / name / "a.png"
        file.parent.mkdir()
        file.write_bytes(b"x" * 100_000)
        os.utime(file, (file.stat().st_mtime - age,) * 2)

    for name, age in (("old", 300), ("older", 600), ("young", 1)):
        put(name, age)
    (tmp_path / "part").write_bytes(b"an upload that broke off")
    os.utime(tmp_path / "part", (0, 0))
    with store.room(100_000, "a"), store.room(100_000, "b"):
        assert {file.name for file in tmp_path.iterdir()} == {"old", "older", "young"}
        with store.room(100_000, "c"):
            assert {file.name for file in tmp_path.iterdir()} == {"old", "young"}
            with store.room(100_000, "d"), pytest.raises(Full, match="There is no room"), store.room(100_000, "e"):
                pass
    with pytest.raises(Full, match="Much was uploaded from this address"), store.room(100_000, "a"):
        pass


def test_what_a_value_holds():
    picture, array = Image.new("RGB", (30, 20)), np.zeros((4, 5), dtype=np.float32)
    seen: set[int] = set()
    assert held([picture, {"a": array}, Made(200, {}, "four"), None, 3.0], seen) == 1800 + 80 + 4
    assert held(picture, seen) == 0  # it is counted already
    assert held((picture, picture), set()) == 1800


def session(size: int) -> Any:
    return SimpleNamespace(state_data={1: np.zeros(size, dtype=np.uint8)})


def test_sessions_of_many_pages_are_all_counted(monkeypatch):
    monkeypatch.setattr("vtc.demos.sessions._OFTEN", 0.0)
    sessions = Sessions(950, 1000)
    pages = [f"p{i:02}" for i in range(40)]
    sessions.holder = SimpleNamespace(
        session_data=OrderedDict((page, session(100)) for page in pages),
        time_last_used={page: i for i, page in enumerate(pages)},
        lock=threading.Lock(),
    )
    sessions.trim()
    assert [*sessions.holder.session_data] == pages[-9:]


def test_sessions_are_put_away_oldest_first_but_open_pages_last(monkeypatch):
    monkeypatch.setattr("vtc.demos.sessions._OFTEN", 0.0)
    sessions = Sessions(350, 100)
    sessions.holder = SimpleNamespace(
        session_data=OrderedDict((name, session(100)) for name in "abcde"),
        time_last_used={name: i for i, name in enumerate("abcde")},
        lock=threading.Lock(),
    )
    sessions.trim(present={"a", "e"}, busy={"b"})
    assert set(sessions.holder.session_data) == {"a", "b", "e"}
    assert [sessions.put_away(name) for name in "abcdex"] == [False, False, True, True, False, False]
    sessions.most = 2
    sessions.trim(present={"a", "e"}, busy={"b"})
    assert set(sessions.holder.session_data) == {"b", "e"}
    sessions.holder.session_data["e"].state_data.clear()  # as gradio does with what was closed an hour ago
    assert sessions.put_away("e")


class Line(SimpleNamespace):
    """As gradio's: as long as those who wait are many, and so false while all are at work."""

    def __len__(self) -> int:
        return 0


def test_those_who_wait_are_counted():
    def event(source: str, page: str) -> Any:
        return SimpleNamespace(request=SimpleNamespace(scope={"client": (source, 1)}), session_hash=page)

    lines = [[event("10.0.0.1", "p"), event("10.0.0.1", "q")], [event("10.0.0.2", "q")]]
    presence = Presence()
    assert presence.line(_client) == []
    presence.queue = Line(
        event_queue_per_concurrency_id={i: SimpleNamespace(queue=line) for i, line in enumerate(lines)},
        active_jobs=[None, [event("10.0.0.3", "r")]],
    )
    assert presence.busy() == {"p", "q", "r"}
    assert presence.line(_client) == [("10.0.0.1", "p"), ("10.0.0.1", "q"), ("10.0.0.2", "q")]


def test_questions_on_their_way_into_the_line_count(guard):
    """Fifty in the same moment, of which none is in line yet."""
    guard.limits = Limits(waiting=6, waiting_of_one=4, waiting_of_page=2)
    go = asyncio.Event()

    async def slow(scope, receive, send):
        await go.wait()
        await application(scope, receive, send)

    async def asked(pages: list[str], source: str) -> list[str]:
        bodies = [json.dumps({"session_hash": page}).encode() for page in pages]
        waiting = [asyncio.ensure_future(request(guard, JOIN, [body], source)) for body in bodies]
        await asyncio.sleep(0.01)
        refused = [made.result() for made in waiting if made.done()]
        assert {made.status for made in refused} <= {429}
        return [json.loads(made.text)["detail"] for made in refused]

    async def all_of_them() -> None:
        guard.app = slow
        assert (
            await asked(["p"] * 50, "10.0.0.1")
            == ["2 questions of this page are in line already: wait for an answer."] * 48
        )
        said = await asked([f"q{i}" for i in range(50)], "10.0.0.1")
        assert said == ["4 questions from this address are in line already: wait for an answer."] * 48
        said = await asked([f"r{i}" for i in range(4)], "10.0.0.2")
        assert said == ["6 questions of others are in line already: try again in a minute."] * 2
        go.set()
        await asyncio.sleep(0.01)
        assert guard.crowd.coming == []
        assert (await request(guard, JOIN, [b'{"session_hash": "p"}'])).status == 200

    asyncio.run(all_of_them())


def test_outside_of_a_page_nothing_stops():
    presence = Presence()
    stop = presence.stop_event()
    presence.stop_all()
    assert not stop.is_set()
