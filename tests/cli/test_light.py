"""Help, lists and refusals come without torch: in a fresh Python, one command line after another."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.cli.bad_lines import EARLY, PICTURE
from vtc.cli import arguments

ANSWERED = [
    ["--help"],
    ["--version"],
    ["methods"],
    *(["completion", shell] for shell in ("bash", "zsh", "fish")),
    ["methods", "todre"],
    ["methods", "--json"],
    ["families"],
    ["families", "qwen3_vl"],
    ["eval", "--help"],
    ["bench", "model", "--help"],
    ["demo", "--help"],
    ["serve-args", "--help"],
    ["serve-args", "tiny-llava", "--method", "divprune(keep=64)"],
    ["serve-args", "tiny-qwen", "--method", "vtc-cls", "--keep", "0.2", "--command"],
]
ASK = ["ask", "--image", PICTURE, "--question", "What?"]
REFUSED = [
    *(line for line, _ in EARLY),
    [*ASK, "--bogus"],
    [*ASK, "--method", "divprune", "--weights", "none"],
    [*ASK, "--method", "vqtoken", "--weights", "none"],
    [*ASK, "--frames", "4"],
    ["ask", "--video", "none.mp4", "--question", "What?"],
    [*ASK, "--model", "tiny-vit"],
    ["demo", "--model", "tiny-vit"],
    ["eval", "--model", "./none"],
    ["eval", "--metric", "caption", "--tasks", "none"],
    ["train", "--data", "none.jsonl", "--method", "vqtoken", "--out", "none"],
    ["train", "--data", "none.jsonl", "--method", "vqtokn", "--out", "none"],
    ["train", "--data", "none.jsonl", "--method", "pool", "--out", "none"],
    ["bench", "ops", "--only", "nope"],
    ["bench", "ops", "--growth", "--only", "fastv"],
    ["bench", "ops", "--growth", "--tokens", "7,9"],
    ["bench", "ops", "--tokens", "576,1152"],
    ["bench", "ops", "--device", "auto"],
    ["bench", "model", "--methods", "nope"],
    ["bench", "model", "--arch", "nope"],
    ["bench", "clip", "--video", "none.mp4"],
    ["bench", "clip", "--video", "none.mp4", "--model", "./none"],
    ["demo", "--port", "0"],
    ["demo", "--model", "./none"],
    ["serve-args", "tiny-llava", "--method", "divprun"],
    ["serve-args", "tiny-llava", "--method", "sparsevlm"],
    ["serve-args", "tiny-llava", "--method", "divprune", "--keep", "577"],
    ["serve-args", "tiny-vit", "--method", "divprune"],
]
SCRIPT = """
import contextlib, io, json, sys
from vtc.cli.main import main
heavy = ("torch", "transformers", "torchvision", "matplotlib", "gradio", "pandas")
for line in json.loads(sys.argv[1]):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = main(line)
        except SystemExit as stop:
            status = stop.code
    imported = [name for name in heavy if name in sys.modules]
    print(json.dumps([line, status, imported, out.getvalue(), err.getvalue()]))
"""


def run(lines: list[list[str]]) -> list[tuple[list[str], int, list[str], str, str]]:
    """(command line, exit status, heavy modules, stdout, stderr) of each."""
    command = [sys.executable, "-c", SCRIPT, json.dumps(lines)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_help_and_lists():
    answers = run(ANSWERED)
    assert len(answers) == len(ANSWERED)
    for line, status, imported, out, err in answers:
        assert (status, imported, err) == (0, [], ""), line
        assert out, line
    assert answers[1][3].startswith("vtc ")
    assert answers[1][3].count("\n") == 1


@pytest.fixture(scope="module")
def refusals():
    return run(REFUSED)


def test_refusals(refusals):
    assert len(refusals) == len(REFUSED)
    for line, status, imported, out, err in refusals:
        assert (status, imported, out) == (2, [], ""), line
        assert err.count("\n") == 1, err


def test_what_the_new_refusals_say(refusals):
    said = {" ".join(line): err for line, _, _, _, err in refusals}
    expected = {
        " ".join([*ASK, "--method", "divprune", "--weights", "none"]): "divprune has no option 'weights'",
        " ".join([*ASK, "--method", "vqtoken", "--weights", "none"]): "there are no weights in none",
        "eval --model ./none": "there is no model folder './none'",
        "demo --model ./none": "there is no model folder './none'",
        "train --data none.jsonl --method pool --out none": "pool has no parameters to train",
        "bench ops --device auto": "name the one to measure",
        "bench ops --only nope": "no such op here; there are greedy_diversity",
    }
    for line, sentence in expected.items():
        assert sentence in said[line]


@pytest.mark.parametrize("name", ["cpu", "cuda", "cuda:1", "mps", "xpu", "xpu:0", "auto"])
def test_devices(name):
    assert arguments.device(name) == name


@pytest.mark.parametrize("name", ["", "gpu0", "cuda:", "cuda:x", "cuda:-1", " cpu", "cpu\n", "auto:0", "CUDA"])
def test_what_is_no_device(name):
    with pytest.raises(arguments.argparse.ArgumentTypeError, match="is not a device: try cpu"):
        arguments.device(name)
