"""SIGTERM ends `vtc demo` at any moment: its status says so, nothing is left behind, nobody survives."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("gradio")
pytest.importorskip("fcntl")
from tests.demos.visitor import PICTURES, Visitor, free_port

ROOT = Path(__file__).resolve().parents[2]


class Demo:
    """A `vtc demo` of its own, whose temporary files go to `place`."""

    def __init__(self, place: Path) -> None:
        self.place, self.port = place, free_port()
        command = [sys.executable, "-m", "vtc", "demo", "--device", "cpu", "--port", str(self.port)]
        pipe, environment = subprocess.PIPE, {**os.environ, "TMPDIR": str(place)}
        self.process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=pipe, stderr=pipe, text=True, start_new_session=True
        )

    def started(self) -> str:
        assert self.process.stdout is not None
        said = self.process.stdout.readline()
        assert said.startswith("vtc demo: http://"), said + self.process.communicate()[1]
        return f"http://127.0.0.1:{self.port}/"

    def folders(self) -> list[Path]:
        return [*self.place.glob("vtc-*")]

    def end(self, number: int = signal.SIGTERM) -> tuple[int, str]:
        """Status and last words, once nothing of it is left."""
        self.process.send_signal(number)
        _, said = self.process.communicate(timeout=60)
        assert not self.folders()
        with pytest.raises(ProcessLookupError):
            os.killpg(self.process.pid, 0)
        return self.process.returncode, said


@pytest.fixture
def demo(tmp_path):
    demo = Demo(tmp_path)
    yield demo
    demo.process.kill()
    demo.process.communicate()


def upload(port: int) -> socket.socket:
    """An upload that does not come to its end."""
    sent = socket.create_connection(("127.0.0.1", port))
    start = b'--b\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n' + b"x" * 10**6
    head = f"POST /gradio_api/upload HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Length: {10**7}\r\n"
    sent.sendall(f"{head}Content-Type: multipart/form-data; boundary=b\r\n\r\n".encode() + start)
    return sent


def test_while_it_answers_and_somebody_uploads(demo):
    visitor = Visitor(demo.started())
    visitor.take(PICTURES / "0006.webp")
    assert visitor.join("load", "Describe the picture.").status_code == 200
    told = visitor.news()
    next(told)
    sent = upload(demo.port)
    uploads = demo.folders()[0] / "uploads"
    end = time.monotonic() + 60
    while not any(file.is_file() for file in uploads.iterdir()):
        assert time.monotonic() < end, "the upload does not arrive"
        time.sleep(0.01)
    status, said = demo.end()
    sent.close()
    assert status == 143
    assert said.splitlines()[-1] == "vtc: stopped"
    assert "Traceback" not in said


@pytest.mark.full
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_while_a_model_loads(demo, number):
    end = time.monotonic() + 100
    while not demo.folders():  # then it imports torch, and loads
        assert time.monotonic() < end
        time.sleep(0.01)
    time.sleep(2)
    status, said = demo.end(number)
    assert status == (143 if number == signal.SIGTERM else 130)
    assert "Traceback" not in said


@pytest.mark.full
@pytest.mark.parametrize("seconds", [0.02, 0.2, 0.5, 1, 1.5, 2.5, 4])
def test_while_it_starts(demo, seconds):
    time.sleep(seconds)
    status, said = demo.end()
    assert status in (143, -signal.SIGTERM)  # by its own handler, or before that is there
    assert "Traceback" not in said


@pytest.mark.full
def test_twice(demo):
    demo.started()
    demo.process.send_signal(signal.SIGTERM)
    status, said = demo.end()
    assert (status, said.splitlines()[-1]) == (143, "vtc: stopped")


@pytest.mark.full
def test_a_new_one_sweeps_what_a_killed_one_left(demo, tmp_path):
    demo.started()
    left = demo.folders()
    assert len(left) == 1
    demo.process.kill()
    demo.process.wait()
    assert demo.folders() == left
    other = Demo(tmp_path)
    try:
        other.started()
        assert len(other.folders()) == 1
        assert other.folders() != left
        assert other.end()[0] == 143
    finally:
        other.process.kill()
        other.process.communicate()
