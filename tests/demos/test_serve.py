"""The demo as a server: its own files only, uploads bounded and private, mistakes as one sentence and status 2."""

from __future__ import annotations

import json
import os
import socket
import sys
from pathlib import Path

import pytest

pytest.importorskip("gradio")
import httpx

from vtc.cli.main import main
from vtc.demos.serve import running


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def client():
    with running(["tiny-llava"], free_port(), device="cpu") as address, httpx.Client(base_url=address) as client:
        folder = Path(os.environ["GRADIO_TEMP_DIR"])
        assert folder.is_dir()
        yield client
    assert not folder.exists()  # uploads go with the demo
    assert "GRADIO_TEMP_DIR" not in os.environ


def test_the_page_may_load_nothing_from_outside(client):
    page = client.get("/")
    assert page.status_code == 200
    policy = page.headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "http" not in policy
    assert "googleapis" not in page.text
    assert not client.get("/config").json()["analytics_enabled"]


@pytest.mark.parametrize("path", ["/etc/passwd", str(Path(__file__).resolve()), "pyproject.toml", "../../etc/passwd"])
def test_files_outside_the_upload_folder_cannot_be_fetched(client, path):
    for route in ("/gradio_api/file=", "/file=", "/gradio_api/deep_link="):
        assert client.get(f"{route}{path}").status_code in (403, 404)


def upload(client, name: str, content: bytes) -> httpx.Response:
    return client.post("/gradio_api/upload", files={"files": (name, content)})


def call(client, target: str, data: list) -> dict:
    """Run the event whose first trigger is `target` as a page would, and return what it ends with."""
    config = client.get("/config").json()
    number = next(d["id"] for d in config["dependencies"] if d["targets"][0][1] == target)
    job = {"fn_index": number, "data": data, "session_hash": "test", "trigger_id": None, "event_data": None}
    assert client.post("/gradio_api/queue/join", json=job).status_code == 200
    with client.stream("GET", "/gradio_api/queue/data", params={"session_hash": "test"}) as lines:
        for line in lines.iter_lines():
            if line.startswith("data:") and (news := json.loads(line[5:]))["msg"] == "process_completed":
                return news
    raise AssertionError("the event never ended")


def file(path: str) -> dict:
    return {"path": path, "meta": {"_type": "gradio.FileData"}}


def test_files_outside_the_upload_folder_cannot_be_asked_about(client):
    picture = Path(__file__).resolve().parents[2] / "eval" / "data" / "tiny" / "pictures" / "0001.webp"
    news = call(client, "upload", [file(str(picture)), "tiny-llava"])
    assert not news["success"]
    sent = upload(client, "mine.webp", picture.read_bytes()).json()[0]
    news = call(client, "upload", [file(sent), "tiny-llava"])
    assert news["success"]
    assert "mine.webp is in place" in json.dumps(news)


def test_a_broken_upload_is_a_sentence(client):
    sent = upload(client, "broken.png", b"\x89PNG\r\n\x1a\nnonsense").json()[0]
    said = json.dumps(call(client, "upload", [file(sent), "tiny-llava"]))
    assert "broken.png is truncated or damaged" in said
    assert sent not in said


def test_uploads_are_bounded(client):
    assert upload(client, "large.png", b"x" * (21 * 2**20)).status_code == 413


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
