"""`vtc completion`: the script, read by a shell that then completes words."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest

import vtc
from vtc.cli.main import main
from vtc.models import tiny

BASH = """
source "$1"
shift
COMP_WORDS=("$@")
COMP_CWORD=$(($# - 1))
_shtab_vtc
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    file = tmp_path_factory.mktemp("completion") / "vtc.bash"
    done = subprocess.run(
        [sys.executable, "-m", "vtc", "completion", "bash"], capture_output=True, text=True, check=True
    )
    file.write_text(done.stdout)
    return file


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash here")
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["m"], ["methods"]),
        (["ask", "--me"], ["--method"]),
        (["ask", "--method", "div"], ["divprune"]),
        (["ask", "--model", "tiny-"], tiny.names()),
        (["serve"], ["serve-args"]),
        (["serve-args", "tiny-"], tiny.names()),
        (["serve-args", "--method", "visionz"], ["visionzip"]),
        (["methods", "tod"], ["todre"]),
        (["families", "qwen3_vl"], ["qwen3_vl", "qwen3_vl_moe"]),
        (["bench", "eng"], ["engine"]),
        (["bench", "ops", "--cs"], ["--csv"]),
        (["ask", "--dtype", "b"], ["bfloat16"]),
        (["ask", "--image", "pyproject."], ["pyproject.toml"]),
        (["completion", "z"], ["zsh"]),
    ],
)
def test_bash_completes(script, words, expected):
    done = subprocess.run(
        ["bash", "-c", BASH, "bash", str(script), "vtc", *words], capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == expected, done.stderr


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_know_every_command_and_method(shell, capsys):
    assert main(["completion", shell]) == 0
    out = capsys.readouterr().out
    for word in (
        "ask",
        "families",
        "compare",
        "threads",
        "max-new-tokens",
        *(info.name for info in vtc.list_methods()),
    ):
        assert word in out


def test_without_shtab_it_is_named(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main(["completion", "bash"]) == 2
    assert 'pip install "shtab' in capsys.readouterr().err
