"""The demo as a server: its own files only, uploads bounded and private, mistakes as one sentence and status 2."""

from __future__ import annotations

import json
import os
import re
import resource
import socket
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

pytest.importorskip("gradio")
from tests.demos.visitor import PICTURES, Visitor, free_port
from tests.media.hostile import equal_samples, movie
from vtc.cli.main import main
from vtc.demos import studio
from vtc.demos.presence import PRESENCE
from vtc.demos.serve import running

WAITING = 6


@pytest.fixture(scope="module")
def address():
    with running(["tiny-llava"], free_port(), device="cpu", waiting=WAITING, uploads=64, memory=64) as address:
        folder = Path(os.environ["GRADIO_TEMP_DIR"])
        assert folder.is_dir()
        yield address
    assert not folder.parent.exists()  # uploads go with the demo
    assert "GRADIO_TEMP_DIR" not in os.environ


@pytest.fixture
def come(address):
    """Call it, with an address to come from, to open a page."""
    visitors = []

    def new(source: str = "127.0.0.1") -> Visitor:
        visitors.append(Visitor(address, source))
        return visitors[-1]

    yield new
    for visitor in visitors:
        visitor.leave()


@pytest.fixture
def client(come):
    return come().client


@pytest.fixture
def work(monkeypatch):
    """Every answer waits for `work.go`; questions are listed in `work.begun`, those given up in `work.stopped`."""
    work = SimpleNamespace(go=threading.Event(), begun=[], stopped=[])
    answer = studio._answer

    def gated(loaded, media, question, run, news, stop, *more):
        work.begun.append(question)
        while not (work.go.wait(0.01) or stop.is_set()):
            continue
        if stop.is_set():
            work.stopped.append(question)
            return run
        return answer(loaded, media, question, run, news, stop, *more)

    monkeypatch.setattr(studio, "_answer", gated)
    yield work
    work.go.set()


def until(true, what: str) -> None:
    end = time.monotonic() + 60
    while not true():
        assert time.monotonic() < end, f"waited in vain for {what}"
        time.sleep(0.02)


def test_the_page_may_load_nothing_from_outside(client):
    page = client.get("/")
    assert page.status_code == 200
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "connect-src 'self' data: blob:;" in policy
    assert policy.endswith("frame-ancestors 'none'")
    assert "http" not in policy
    assert page.headers["x-content-type-options"] == "nosniff"
    assert page.headers["referrer-policy"] == "no-referrer"
    assert page.headers["x-frame-options"] == "DENY"
    assert "googleapis" not in page.text
    assert not client.get("/config").json()["analytics_enabled"]


@pytest.mark.parametrize("path", ["/etc/passwd", str(Path(__file__).resolve()), "pyproject.toml", "../../etc/passwd"])
def test_files_outside_the_upload_folder_cannot_be_fetched(client, path):
    for route in ("/gradio_api/file=", "/file=", "/gradio_api/deep_link="):
        assert client.get(f"{route}{path}").status_code in (403, 404)


def test_files_outside_the_upload_folder_cannot_be_asked_about(come):
    visitor = come()
    refused = visitor.end_of("upload", path=str(PICTURES / "0001.webp"))
    assert not refused["success"]
    assert not {"/", "\\"} & set(json.dumps(refused["output"]))
    assert "0001.webp is in place" in visitor.take(PICTURES / "0001.webp")


def test_a_broken_upload_is_a_sentence(come, address):
    said = come().take("broken.png", b"\x89PNG\r\n\x1a\nnonsense")
    assert "broken.png is truncated or damaged" in said
    assert tempfile.gettempdir() not in said


def test_a_hostile_clip_is_a_sentence(come, tmp_path):
    file = movie(tmp_path / "small.mp4", equal_samples(50_000_000))
    assert file.stat().st_size < 2000
    said = come().take(file)
    assert "small.mp4 has more than 20,000 frames, which is the limit: make it shorter or smaller." in said
    assert tempfile.gettempdir() not in said


def test_uploads_are_bounded(come):
    visitor = come()
    assert visitor.send("large.png", b"x" * (21 * 2**20)).status_code == 413
    chunks = (b"x" * 1000 for _ in range(3))
    endless = visitor.client.post("/gradio_api/upload", content=chunks, headers={"content-type": "multipart/form-data"})
    assert (endless.status_code, endless.text) == (411, "This upload does not say how long it is.")
    assert visitor.client.post("/gradio_api/queue/join", content=b"x" * (2**20 + 1)).status_code == 413
    assert visitor.client.post("/gradio_api/queue/join", content=b"[]").status_code == 400


def test_the_space_of_uploads_is_bounded_and_the_share_of_each(come, address):
    sent, visitor = [], come("127.0.0.11")
    for i in range(5):  # of 6 MB: a quarter of 64 holds two
        sent.append(visitor.send("a.png", bytes([i]) * (6 * 2**20)))
    assert [answer.status_code for answer in sent] == [200, 200, 503, 503, 503]
    assert sent[-1].text == "Much was uploaded from this address just now: try again in a minute."
    codes = [come(f"127.0.0.{20 + i}").send("b.png", bytes([i]) * (12 * 2**20)).status_code for i in range(7)]
    assert codes == [200] * 4 + [503] * 3
    folder = Path(os.environ["GRADIO_TEMP_DIR"])
    assert sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) <= 64 * 2**20
    for file in folder.rglob("*.png"):
        os.utime(file, (0, 0))
    assert come("127.0.0.30").send("c.png", b"c" * (12 * 2**20)).status_code == 200  # the oldest have gone for it


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": "evil.example"}, 421),  # a name that an attacker lets point to this machine
        ({"host": "127.0.0.1.evil.example"}, 421),
        ({"host": "192.168.0.9"}, 421),
        ({"host": ""}, 421),
        ({"x-forwarded-host": "evil.example"}, 421),
        ({"origin": "https://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "http://localhost:9999"}, 403),  # another server of this machine
        ({"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"}, 403),
        ({"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}, 200),  # a link
        ({"sec-fetch-site": "same-origin"}, 200),
        ({"host": "localhost"}, 200),
    ],
)
def test_other_sites_are_refused(come, headers, status):
    visitor = come()
    assert visitor.client.get("/config", headers=headers).status_code == status
    if status != 200:
        sent = visitor.client.post("/gradio_api/upload", files={"files": ("a.png", b"x")}, headers=headers)
        joined = visitor.client.post("/gradio_api/queue/join", json={}, headers=headers)
        assert {sent.status_code, joined.status_code} == {status}
        assert "://" not in sent.text + joined.text


def test_the_pages_own_requests_are_let_in(come, address):
    own = {"origin": address.rstrip("/"), "sec-fetch-site": "same-origin"}
    sent = come().client.post("/gradio_api/upload", files={"files": ("a.png", b"x")}, headers=own)
    assert sent.status_code == 200


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/gradio_api/run/predict"), ("POST", "/gradio_api/api/x"), ("POST", "/gradio_api/call/x"),
        ("POST", "/gradio_api/component_server"), ("POST", "/gradio_api/process_recording"), ("POST", "/login"),
        ("POST", "/gradio_api/vibe-edit"), ("POST", "/gradio_api/stream/x"), ("GET", "/gradio_api/proxy=http://a.org"),
        ("GET", "/monitoring"), ("PUT", "/"), ("DELETE", "/"),
    ],
)  # fmt: skip
def test_what_the_page_does_not_need_is_not_there(client, method, path):
    assert client.request(method, path).status_code == 404


@pytest.mark.parametrize("number", [-1, 0, 99, None, "x", "0", 1.0, True, [0], {}])
def test_an_event_that_the_page_does_not_have_is_refused(client, number, capfd):
    asked = {"session_hash": "abc", "fn_index": number, "data": []}
    answer = client.post("/gradio_api/queue/join", json=asked)
    assert (answer.status_code, answer.json()["detail"][:36]) == (400, "This page asks for something that is")
    assert "Traceback" not in capfd.readouterr().err


def test_an_event_with_too_few_values_is_refused(come):
    visitor = come()
    asked = {"session_hash": "abc", "fn_index": visitor.event("load")["id"], "data": ["example:0"]}
    assert visitor.client.post("/gradio_api/queue/join", json=asked).status_code == 400


def test_one_visitor_cannot_fill_the_line(come, work):
    """Not even with questions of many pages in the same moment; a page's own older question would end."""
    greedy = [come("127.0.0.40") for _ in range(WAITING + 8)]
    with ThreadPoolExecutor(len(greedy)) as pool:
        joined = dict(zip(greedy, pool.map(lambda visitor: visitor.join("load", "What is it?"), greedy), strict=True))
    let_in = [visitor for visitor, answer in joined.items() if answer.status_code == 200]
    refused = [answer for visitor, answer in joined.items() if visitor not in let_in]
    assert WAITING <= len(let_in) <= WAITING + 4  # in line, and at work
    assert {answer.status_code for answer in refused} == {429}
    assert (
        refused[0].json()["detail"] == f"{WAITING} questions from this address are in line already: wait for an answer."
    )
    other = come("127.0.0.41")
    assert other.join("load", "And me?").status_code == 200
    for visitor in let_in:  # they go, and with them what they asked
        stream = visitor.news()
        next(stream)
        stream.close()
    work.go.set()
    assert [message for message in other.news() if message["msg"] == "process_completed"][-1]["success"]
    assert other.join("load", "And once more?").status_code == 200
    list(other.news())


def test_work_for_one_who_has_gone_is_dropped_and_stopped(come, work):
    first, second, third = come("127.0.0.50"), come("127.0.0.51"), come("127.0.0.52")
    questions = {visitor: f"Is it {i} who has gone?" for i, visitor in enumerate((first, second, third))}
    streams = {}
    for visitor, question in questions.items():
        assert visitor.join("load", question).status_code == 200
        streams[visitor] = visitor.news()
        next(streams[visitor])
        if visitor is first:
            until(lambda: work.begun == [questions[first]], "the first question to be at work")
    streams[second].close()  # it waits for the model
    streams[first].close()  # it is at work
    until(lambda: work.stopped == [questions[first]], "the first to be stopped")
    until(lambda: questions[third] in work.begun, "the third to be at work")
    assert questions[second] not in work.begun
    work.go.set()
    assert [m for m in streams[third] if m["msg"] == "process_completed"][-1]["success"]


def test_a_question_that_nobody_listens_to_is_dropped(come, work, monkeypatch):
    monkeypatch.setattr("vtc.demos.presence._NEVER_CAME", 2.0)
    visitor, begun = come(), time.monotonic()
    assert visitor.join("load", "Does anybody listen?").status_code == 200
    until(lambda: visitor.page in PRESENCE.busy(), "it to be in line")

    def dropped() -> bool:
        looks = [visitor.page in PRESENCE.busy(), time.sleep(0.3), visitor.page in PRESENCE.busy()]
        return not any(looks)  # a question that passes from the line to work is in neither for a moment

    until(dropped, "it to be dropped")
    assert time.monotonic() - begun > 2.0
    assert work.stopped == work.begun  # it was at work, or the machine is slow


def test_sessions_are_bounded_and_their_owners_told(come, monkeypatch):
    early = come()
    early.take(PICTURES / "0006.webp")
    monkeypatch.setattr("vtc.demos.sessions._OFTEN", 0.0)
    noise = BytesIO()
    for i in range(14):  # each takes 1600 x 1600 pixels of 3 bytes: 8 fit into 64 MB
        noise.seek(0)
        Image.new("RGB", (1600, 1600), (i, 0, 0)).save(noise, "png")
        come(f"127.0.1.{i}").take("a.png", noise.getvalue())
    late = come()
    late.take(PICTURES / "0001.webp")
    back = early.join("load", "What shape is red?")
    assert back.status_code == 410
    assert "its picture was put away: load the page again" in back.json()["detail"]
    assert late.join("load", "What is it?").status_code == 200  # the latest is there
    list(late.news())


@pytest.mark.full
def test_twenty_ask_at_once(come):
    asked = {
        "0001": "Is the yellow star above or below the cone?",
        "0003": "What word is printed?",
        "0006": "What shape is red?",
        "0008": "How many smileys are in the picture?",
        "0012": "What number is printed?",
    }
    expected = {}
    for name, question in asked.items():
        visitor = come("127.0.2.1")
        visitor.take(PICTURES / f"{name}.webp")
        expected[name] = answer_in(visitor.ask(question))
    assert len(set(expected.values())) == len(expected)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    def one(i: int) -> tuple[str, str]:
        name = [*asked][i % len(asked)]
        visitor = come(f"127.0.3.{i + 1}")
        visitor.take(PICTURES / f"{name}.webp")
        return name, answer_in(visitor.ask(f"{asked[name]}{' ' * (i % 3)}"))

    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(one, range(20)))
    assert all(answer == expected[name] for name, answer in answers)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300 * 1024  # kB


def answer_in(told: str) -> str:
    """The answer on the first card, as the page was last told of it."""
    found = re.findall(r"<q>(.*?)</q>", told)
    assert found, told[:2000]
    return found[-1]


def test_a_port_in_use_is_one_sentence(capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["demo", "--port", str(port)]) == 2
    assert (
        capsys.readouterr().err
        == f"vtc: port {port} of 127.0.0.1 is in use: give another one, such as --port {port + 1}\n"
    )


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--port", "70000"], "--port=70000 is not a whole number in [1, 65535]"),
        (["--host", "192.0.2.1"], "of 192.0.2.1 cannot be had"),
        (["--allow-host", "a b"], "--allow-host 'a b' is not the name of a host"),
        (["--allow-host", "http://a.org/"], "is not the name of a host: write it as in example.org"),
        (["--allow-frame", "a.org"], "--allow-frame 'a.org' is not an origin: write it as in https://example.org"),
        (["--uploads", "3"], "--uploads=3 is not a whole number in [64, 100000]"),
        (["--model", "/nowhere"], "there is no model folder '/nowhere'"),
    ],
)
def test_mistakes_are_one_sentence(capsys, more, says):
    port = [] if "--port" in more else ["--port", str(free_port())]
    assert main(["demo", *port, *more]) == 2
    err = capsys.readouterr().err
    assert says in err
    assert err.count("\n") == 1


def test_without_gradio_the_extra_is_named(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert main(["demo", "--port", str(free_port())]) == 2
    assert 'pip install "vtc-vlm[demo]"' in capsys.readouterr().err
