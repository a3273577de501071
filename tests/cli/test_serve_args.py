"""`vtc serve-args`: what it prints is what a shell, and then vLLM, reads."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys

import pytest

from vtc.cli import loading
from vtc.cli.main import main
from vtc.models import tiny
from vtc.serving.vllm.contract import read_spec
from vtc.serving.vllm.families import FAMILIES

OPTIONS = "visionzip(contextual=0.2)"


def printed(capsys, *line: str) -> list[str]:
    """The words that a shell makes of what is printed."""
    assert main(["serve-args", *line]) == 0
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    return shlex.split(out)


@pytest.mark.parametrize(
    ("model", "given", "text"),
    [
        ("tiny-llava", ["--method", "divprune", "--keep", "64"], "divprune(keep=64)"),
        ("tiny-llava", ["--method", OPTIONS, "--keep", "0.1"], "visionzip(keep=0.1, contextual=0.2)"),
        ("tiny-llava", ["--method", "pool(keep=9)", "--keep", "576"], "pool(keep=576)"),
        ("tiny-qwen", ["--method", "vtc-cls(keep=0.2)"], "vtc-cls(keep=0.2)"),
        ("tiny-qwen", ["--method", "vqtoken(cells=(1, 2, 2))"], "vqtoken(cells=(1, 2, 2))"),
    ],
)
def test_the_flag(model, given, text, capsys):
    name, value = printed(capsys, model, *given)
    read = json.loads(value)
    family = next(one for one in FAMILIES.values() if [one.architecture] == read["architectures"])
    assert (name, family.model_type) == ("--hf-overrides", {"tiny-llava": "llava", "tiny-qwen": "qwen2_5_vl"}[model])
    assert read_spec(read["vtc"], family) == read_spec(text, family)


def test_a_trained_methods_weights(capsys, monkeypatch):
    """They are found from wherever the server is started."""
    folder = str(tiny.path().parent / "tiny-qwen-vqtoken")
    monkeypatch.chdir(tiny.path().parent)
    _, value = printed(capsys, "tiny-qwen", "--method", "vqtoken", "--keep", "32", "--weights", "tiny-qwen-vqtoken")
    assert json.loads(value)["vtc"] == {"method": "vqtoken", "keep": 32, "weights": folder}
    assert main(["serve-args", "tiny-llava", "--method", "vqtoken", "--weights", folder]) == 2
    assert "were trained for qwen2_5_vl of width 192; this model is llava" in capsys.readouterr().err


@pytest.mark.parametrize("vision", [{"depth": 32}, {"model_type": "qwen2_vl"}, {"model_type": "qwen2_vl_vision"}])
def test_old_checkpoints_do_not_say_what_their_tower_is(vision, tmp_path, capsys):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2_vl", "vision_config": vision}))
    _, value = printed(capsys, str(tmp_path), "--method", "divprune")
    assert json.loads(value)["architectures"] == ["VtcQwen2VLForConditionalGeneration"]


def test_the_whole_command_starts_a_server(tmp_path):
    """A shell evaluates it, with a `vllm` that tells what it was given."""
    stand_in = tmp_path / "vllm"
    stand_in.write_text(f"#!{sys.executable}\nimport json, sys\nprint(json.dumps(sys.argv[1:]))\n")
    stand_in.chmod(0o755)
    vtc = shlex.join([sys.executable, "-m", "vtc"])
    line = f'PATH={tmp_path}:$PATH; eval "$({vtc} serve-args tiny-llava --method "{OPTIONS}" --keep 64 --command)"'
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [
        "serve",
        str(tiny.path("tiny-llava")),
        "--hf-overrides",
        '{"architectures":["VtcLlavaForConditionalGeneration"],"vtc":{"method":"visionzip","keep":64,"contextual":0.2}}',
    ]


def test_a_model_of_the_hub(capsys, monkeypatch):
    """Of which config.json alone is fetched, and whose name stays."""
    file = tiny.path("tiny-llava") / "config.json"
    fetched = []
    monkeypatch.setattr(loading, "_check_network", lambda place: None)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *given: fetched.append(given) or str(file))
    words = printed(capsys, "someone/model", "--method", "pool", "--command")
    assert words[:4] == ["vllm", "serve", "someone/model", "--hf-overrides"]
    assert fetched == [("someone/model", "config.json")]
