"""Killed at any moment, or shared by two processes: the end is the same as of one undisturbed run."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.eval.runs import few
from vtc.cli.main import main

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("full", "random@16", "divprune@16")


def command(data, out):
    options = ["--methods", "divprune", "--keep", "16", "--timing", "0", "--batch-size", "2", "--max-new-tokens", "8"]
    return ["--data", str(data), "--out", str(out), "--device", "cpu", *options]


def contents(out):
    found = {}
    for name in NAMES:
        folder = out / "tiny-llava" / name
        assert sorted(file.name for file in folder.iterdir()) == ["config.json", "metrics.json", "samples.jsonl"]
        found[name] = [(folder / file).read_text() for file in ("samples.jsonl", "metrics.json")]
    return found


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return few(tmp_path_factory.mktemp("data"), 7)


@pytest.fixture(scope="module")
def undisturbed(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "undisturbed"
    assert main(["eval", *command(data, out)]) == 0
    return contents(out)


def start(arguments, **environment):
    return subprocess.Popen(
        [sys.executable, "-m", *arguments],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def when_there(file, process, lines=1, seconds=300):
    """Wait until a file has so many lines."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        if file.exists() and file.read_bytes().count(b"\n") >= lines:
            return
        time.sleep(0.005)
    raise AssertionError(f"{file} never came: {process.communicate()[0]}")


def test_killed_and_going_on(data, undisturbed, tmp_path, capsys):
    out = tmp_path / "killed"
    process = start(["vtc.eval", *command(data, out)])
    when_there(out / "tiny-llava" / "random@16" / "samples.jsonl", process)
    process.send_signal(signal.SIGSTOP)  # at work, for as long as the next line takes
    assert main(["eval", *command(data, out)]) == 2
    assert f"another `vtc eval` is at work in {out}: wait until" in capsys.readouterr().err
    process.send_signal(signal.SIGKILL)
    process.communicate()
    files = [out / "tiny-llava" / name / "samples.jsonl" for name in NAMES]
    assert not list(out.rglob("metrics.json")), "killed too late to tell anything"
    before = {file: file.read_text().splitlines() for file in files if file.exists()}
    with files[0].open("a") as torn:  # as if it had died within a write
        torn.write('{"id": "0002-')
    assert main(["eval", *command(data, out)]) == 0
    assert contents(out) == undisturbed
    for file, lines in before.items():
        ids = [json.loads(line)["id"] for line in file.read_text().splitlines()]
        assert set(lines) <= set(file.read_text().splitlines())
        assert len(set(ids)) == len(ids) == 7


def side_by_side(arguments):
    """Two processes with what `accelerate launch` tells each of its own; what they say."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    world = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    processes = [start(["vtc.eval", *arguments], **world, RANK=rank, LOCAL_RANK=rank) for rank in ("0", "1")]
    said = "".join(process.communicate(timeout=550)[0] for process in processes)
    assert [process.returncode for process in processes] == [0, 0], said
    return said


def launched(arguments):
    launch = ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"]
    launch += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    process = start([*launch, "-m", "vtc.eval", *arguments])
    said = process.communicate(timeout=550)[0]
    assert process.returncode == 0, said
    return said


@pytest.mark.parametrize("how", [side_by_side, pytest.param(launched, marks=pytest.mark.full)])
def test_two_processes_find_what_one_finds(data, undisturbed, tmp_path, how):
    pytest.importorskip("accelerate")
    out = tmp_path / "two"
    said = how(command(data, out))
    assert contents(out) == undisturbed
    assert json.loads((out / "tiny-llava" / "full" / "config.json").read_text())["how"]["processes"] == 2
    assert said.count("results: ") == 1


def test_stopped_by_hand(data, undisturbed, tmp_path, capsys, monkeypatch):
    from vtc.eval import answer

    generate, calls = answer.Answerer._generate, []

    def interrupted(self, *args):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return generate(self, *args)

    out = tmp_path / "stopped"
    with monkeypatch.context() as patch:
        patch.setattr(answer.Answerer, "_generate", interrupted)
        assert main(["eval", *command(data, out)]) == 130
    said = capsys.readouterr().err.splitlines()[-1]
    assert said == "vtc: stopped; what was answered is kept, and the same command goes on from there"
    assert main(["eval", *command(data, out)]) == 0
    assert contents(out) == undisturbed
