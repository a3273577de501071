"""A hundred command lines that will not do: each is refused in one sentence, without a trace of anything else."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from PIL import Image

from tests.cli.bad_lines import LINES, PICTURE, make
from vtc.cli import arguments, media, mistakes
from vtc.cli.main import main
from vtc.models import tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bad")
    make(folder)
    return folder


def status_of(line: list[str]) -> object:
    try:
        return main(line)
    except SystemExit as stop:  # argparse's way out
        return stop.code


def test_there_are_a_hundred():
    assert len(LINES) >= 100
    assert len({tuple(line) for line, _ in LINES}) == len(LINES)


@pytest.mark.parametrize(("line", "said"), LINES, ids=[" ".join(line)[-40:] or "nothing" for line, _ in LINES])
def test_a_line_that_will_not_do(line, said, folder, capfd, monkeypatch):
    monkeypatch.chdir(folder)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert status_of(line) == 2
    captured = capfd.readouterr()
    assert said in captured.err
    assert captured.err.startswith("vtc")
    assert captured.err.count("\n") == 1
    assert "Traceback" not in captured.err
    assert captured.out == ""
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_many_at_once_is_not_one_too_many(folder, capsys, monkeypatch):
    """What may be given twice, and files that are there already."""
    monkeypatch.chdir(folder)
    for option, name in [("--csv", "notes.txt"), ("--csv", "new/deep/t.csv"), ("--csv", "/dev/null")]:
        arguments.check_file(option, name)
    arguments.check_folder("--out", "new/deep/er")
    arguments.check_folder("--out", "taken")
    assert (folder / "notes.txt").read_text() == "some notes"
    assert not (folder / "new").exists()
    assert status_of(["ask", "--image", "a.png", "--image", "none.png", "--question", "What?"]) == 2
    assert "there is no picture at none.png" in capsys.readouterr().err


# --- what breaks while a command is at work -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (ValueError("too\n many"), 2, "vtc: too many\n"),
        (FileNotFoundError("there is none"), 2, "vtc: there is none\n"),
        (PermissionError(13, "Permission denied", "/x"), 2, "vtc: /x: permission denied\n"),
        (OSError(28, "No space left on device"), 2, "vtc: cannot write the output: no space left on device\n"),
        (MemoryError(), 3, "vtc: out of memory: take"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), 3, "vtc: out of memory: take"),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), 3, "vtc: out of memory: take"),
        (NotImplementedError(), 3, "vtc: NotImplementedError (not expected: `vtc --traceback ...` shows where)\n"),
        (AssertionError("x" * 9999), 3, "vtc: AssertionError: xxx"),
        (KeyError("spam"), 3, "vtc: KeyError: 'spam' (not expected"),
        (KeyboardInterrupt(), 130, "vtc: stopped\n"),
        (KeyboardInterrupt("stopped; it goes on from there"), 130, "vtc: stopped; it goes on from there\n"),
        (BrokenPipeError(32, "Broken pipe"), 141, ""),
    ],
)
def test_whatever_ends_a_command_is_one_sentence(error, status, said, capsys, monkeypatch):
    def fail(*given, **more):
        raise error

    monkeypatch.setattr(mistakes, "_drop_output", lambda: None)  # it is pytest's here
    monkeypatch.setattr("vtc.cli.media.pictures", fail)
    assert main(["ask", "--image", PICTURE, "--question", "What?"]) == status
    err = capsys.readouterr().err
    assert err.startswith(said)
    assert err.count("\n") == (1 if said else 0)
    assert len(err) < 600
    assert status in mistakes.STATUS


def test_an_import_that_ctrl_c_broke_is_a_stop(capsys, monkeypatch):
    monkeypatch.setattr(mistakes, "_interrupted", True)
    assert mistakes.tell(ImportError("numpy.core.multiarray failed to import")) == 130
    assert capsys.readouterr().err == "vtc: stopped\n"


def test_help_names_every_status(capsys):
    assert status_of(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(f"{status:5}  {meaning}" in out for status, meaning in mistakes.STATUS.items())
    assert max(map(len, out.splitlines())) <= 80


# --- models ---------------------------------------------------------------------------------------------------------


def test_a_model_of_the_hub_without_a_network(capsys, monkeypatch):
    def unreached(*given):
        raise socket.gaierror(-2, "Name or service not known")

    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket, "getaddrinfo", unreached)
    assert main(["ask", "--model", "nobody/no-such-model", "--image", PICTURE, "--question", "What?"]) == 2
    said = "vtc: cannot load 'nobody/no-such-model': it is not on this machine, and huggingface.co is not reached (name"
    err = capsys.readouterr().err
    assert err.startswith(said)
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("broken", "content", "said"),
    [
        ("model.safetensors", "cut", "its weights are damaged"),
        ("config.json", '{"model_type": "bert"}', "transformers knows it as no model of text and pictures"),
        ("config.json", "{", "line 1 column 2"),
    ],
)
def test_a_folder_that_is_no_model(broken, content, said, tmp_path, capsys):
    folder = tmp_path / "mine"
    folder.mkdir()
    for file in tiny.path("tiny-llava").iterdir():
        if file.name != broken:
            (folder / file.name).symlink_to(file)
    (folder / broken).write_text(content)
    assert main(["ask", "--model", str(folder), "--image", PICTURE, "--question", "What?"]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"vtc: cannot load '{folder}': ")
    assert said in err
    assert err.count("\n") == 1


# --- processes ------------------------------------------------------------------------------------------------------


def started(*line: str, **more: object) -> subprocess.Popen[str]:
    given = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **more}
    return subprocess.Popen([sys.executable, "-m", "vtc", *line], **given)  # type: ignore[call-overload]


INTERRUPTED = """
import os, signal, sys


class Hook:
    def find_spec(name, path=None, target=None):
        if name == moment:
            os.kill(os.getpid(), signal.SIGINT)


signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored by what runs in the background
moment = sys.argv.pop(1)
sys.meta_path.insert(0, Hook)
from vtc.__main__ import main

sys.exit(main())
"""


@pytest.mark.parametrize("moment", ["vtc.cli.mistakes", "vtc.eval.cli", "numpy.linalg", "torch.nn", "transformers"])
def test_ctrl_c_at_any_moment(moment):
    """While vtc itself, what it needs, or what takes seconds is being imported."""
    command = [sys.executable, "-c", INTERRUPTED, moment, "ask", "--image", PICTURE, "--question", "What?"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "vtc: stopped\n")


@pytest.mark.parametrize("line", [("methods",), ("families", "--json"), ("completion", "fish")])
def test_a_reader_that_has_gone(line):
    reading, writing = os.pipe()
    os.close(reading)
    running = started(*line, stdout=writing)
    os.close(writing)
    _, err = running.communicate(timeout=30)
    assert (running.returncode, err) == (141, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk():
    with open("/dev/full", "w") as full:
        running = started("methods", stdout=full)
        _, err = running.communicate(timeout=30)
    assert (running.returncode, err) == (2, "vtc: cannot write the output: no space left on device\n")


def test_a_terminal_that_knows_no_signs():
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    running = started("methods", "framefusion", env=environment)
    out, err = running.communicate(timeout=30)
    assert (running.returncode, err) == (0, "")
    assert "framefusion" in out


# --- addresses ------------------------------------------------------------------------------------------------------


class _Answers(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path == "/missing.png":
            self.send_error(404)
            return
        if self.path == "/moved.png":
            self.send_response(302)
            self.send_header("Location", "/a.png")
            self.end_headers()
            return
        body = {"/a.png": self.server.picture, "/text.png": b"no picture"}.get(self.path, b"x" * 5000)  # type: ignore[attr-defined]
        self.send_response(200)
        if self.path != "/endless.png":
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *given: object) -> None:
        pass


@pytest.fixture(scope="module")
def address(folder):
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Answers)
    server.picture = (folder / "a.png").read_bytes()  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.mark.parametrize("name", ["a.png", "moved.png"])
def test_a_picture_from_an_address(address, name):
    (picture,) = media.pictures([f"{address}/{name}"])
    assert (picture.size, picture.getpixel((3, 3))) == ((40, 30), (255, 0, 0))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("missing.png", "/missing.png cannot be fetched: HTTP Error 404: Not Found"),
        ("text.png", "/text.png is not a picture that Pillow can read"),
        ("large.png", "/large.png is larger than 0.001 MB: fetch a smaller one"),
        ("endless.png", "/endless.png is larger than 0.001 MB: fetch a smaller one"),
    ],
)
def test_an_address_that_will_not_do(address, name, said, capsys, monkeypatch):
    monkeypatch.setitem(media.MEGABYTES, "picture", 0.001)
    assert main(["ask", "--image", f"{address}/{name}", "--question", "What?"]) == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.startswith(f"vtc: {address}")
    assert err.count("\n") == 1


def test_one_that_takes_too_long(address, capsys, monkeypatch):
    monkeypatch.setattr("vtc.cli.fetch.SECONDS", -1)
    assert main(["ask", "--image", f"{address}/a.png", "--question", "What?"]) == 2
    assert "cannot be fetched: it takes longer than -1 seconds" in capsys.readouterr().err


def test_a_picture_may_be_saved_where_there_is_one_already(folder):
    Image.new("RGB", (3, 3)).save(folder / "old.png")
    arguments.check_file("--save", str(folder / "old.png"), (".png",))
    assert Image.open(folder / "old.png").size == (3, 3)
