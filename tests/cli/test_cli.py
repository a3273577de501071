"""The command line from outside: what it prints, what it writes, and how it refuses."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import vtc
from vtc.cli.main import main
from vtc.methods.base import registry

TINY = Path(__file__).resolve().parents[2] / "eval" / "data" / "tiny"
PICTURE = str(TINY / "pictures" / "0001.webp")
QUESTION = "How many flowers are there?"
PLUGIN = '''
import vtc


class Checkerboard(vtc.Method):
    """Every other token."""

    name = "checkerboard"

    def score(self, tokens):
        return (tokens.index % 2).float()
'''


def ask(*extra):
    return main(["ask", "--image", PICTURE, "--question", QUESTION, "--max-new-tokens", "4", *extra])


def test_ask_without_a_method(capsys):
    assert ask() == 0
    out = capsys.readouterr().out
    assert "answer" in out
    assert "time to first token" in out
    assert "KV cache" not in out


def test_ask_with_a_method_draws_what_it_kept(capsys, tmp_path):
    overlay = tmp_path / "new" / "overlay.png"
    assert ask("--method", "divprune", "--keep", "0.1", "--save", str(overlay)) == 0
    out = capsys.readouterr().out
    for expected in ("divprune", "576", "58 (10 %)", "prefill FLOPs", "KV cache", "median of 6", "overlay: "):
        assert expected in out
    assert Image.open(overlay).width > 500


def test_ask_about_a_smaller_picture(capsys, tmp_path):
    """Its own tokens and cost beside the whole picture's; a fixed grid says that it costs what it did."""
    overlay = tmp_path / "kept.png"
    options = ("--model", "tiny-qwen", "--method", "downsample", "--keep", "64", "--save", str(overlay))
    assert ask(*options) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "441 64 (15 %)" in out
    assert "64 of 441 tokens, for a budget of 64" in out
    assert overlay.is_file()
    assert ask("--method", "downsample(keep=16)") == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "576 576 (100 %)" in out
    assert "more than the 16 asked for" in out


def test_ask_about_two_pictures(capsys, tmp_path):
    overlay = tmp_path / "o.png"
    assert ask("--image", PICTURE, "--method", "pool", "--keep", "16", "--save", str(overlay)) == 0
    assert "1152" in capsys.readouterr().out
    assert (tmp_path / "o-1.png").exists()
    assert (tmp_path / "o-2.png").exists()


@pytest.mark.parametrize("size", [(1, 1), (2, 300), (700, 90)])
def test_ask_about_a_picture_of_any_size(size, tmp_path):
    Image.new("RGB", size, "red").save(tmp_path / "a.png")
    overlay = tmp_path / "o.png"
    options = ["--method", "random", "--keep", "16", "--save", str(overlay), "--max-new-tokens", "1"]
    assert main(["ask", "--image", str(tmp_path / "a.png"), "--question", QUESTION, *options]) == 0
    panel = Image.open(overlay)
    assert abs((panel.width - 32) - (panel.height - 56)) <= 1  # the model saw the middle square


def test_eval_prints_a_table_and_leaves_folders(capsys, tmp_path):
    options = ["--methods", "divprune", "--keep", "32,0.5", "--limit", "2", "--blind", "--timing", "0"]
    assert main(["eval", *options, "--out", str(tmp_path / "runs")]) == 0
    captured = capsys.readouterr()
    names = {"full", "blind", *(f"{name}@{k}" for name in ("random", "downsample", "divprune") for k in ("32", "0.5"))}
    assert {folder.name for folder in (tmp_path / "runs" / "tiny-llava").iterdir()} == names
    for expected in ("divprune", "accuracy", "vs full", "--wide", f"results: {tmp_path / 'runs'}"):
        assert expected in captured.out
    assert "answers" in captured.err  # progress
    assert main(["eval", *options, "--out", str(tmp_path / "runs"), "--max-new-tokens", "3"]) == 2
    assert "another configuration: max_new_tokens is None there and 3 here" in capsys.readouterr().err


def test_eval_says_what_broke(capsys, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"?")
    Image.new("RGB", (50, 50), "red").save(tmp_path / "good.png")
    lines = [{"image": f"{name}.png", "question": "What color is it?", "answer": "red"} for name in ("good", "bad")]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    options = ["--methods", "pool", "--keep", "9", "--timing", "0", "--out", str(tmp_path / "runs")]
    assert main(["eval", "--data", str(tmp_path / "mine.jsonl"), *options]) == 1
    captured = capsys.readouterr()
    assert "question 2 is left out" in captured.err
    assert "1 questions could not be answered" in captured.err
    assert "1 of them could not be answered" in " ".join(captured.out.split())


def test_eval_by_a_file(capsys, tmp_path):
    config = tmp_path / "sweep.toml"
    config.write_text(
        'methods = [{name = "todre", mode = "kcenter"}]\nkeep = 16\nlimit = 2\ntiming = 0\nout = "none"\n'
    )
    assert main(["eval", "--config", str(config), "--out", str(tmp_path / "runs")]) == 0
    assert "todre(mode=kcenter)" in capsys.readouterr().out


def test_methods_with_their_options(capsys, tmp_path):
    methods = "todre(mode=kcenter, keep=(16, 8)),dart(layers=(0.25,))"
    limits = ["--keep", "16", "--limit", "2", "--timing", "0"]
    assert main(["eval", "--methods", methods, *limits, "--out", str(tmp_path / "runs")]) == 0
    shown = capsys.readouterr().out
    assert "todre(mode=kcenter)" in shown
    assert "dart(layers=(0.25,))" in shown
    folders = {folder.name for folder in (tmp_path / "runs" / "tiny-llava").iterdir()}
    assert {"todre(mode=kcenter)@16", "todre(mode=kcenter)@8", "dart(layers=(0.25,))@16"} < folders
    config = json.loads((tmp_path / "runs" / "tiny-llava" / "todre(mode=kcenter)@8" / "config.json").read_text())
    assert vtc.resolve(config["method"], keep=config["keep"]) == vtc.ToDRE(mode="kcenter", keep=8)


def test_ask_with_a_pipeline(capsys):
    assert ask("--method", "vtc-cls(keep=64) + fastv(keep=16)") == 0
    assert " 16 (3 %)" in capsys.readouterr().out


def test_a_plugin_and_a_data_set_of_ones_own(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "_METHODS", dict(registry.discover()))  # what is registered here goes with the test
    plugin, data = tmp_path / "mine.py", tmp_path / "data.jsonl"
    plugin.write_text(PLUGIN)
    Image.new("RGB", (50, 50), "red").save(tmp_path / "a.png")
    data.write_text(json.dumps({"image": "a.png", "question": "What color is it?", "answer": "red"}) + "\n")
    options = ["--plugin", str(plugin), "--methods", "checkerboard", "--keep", "288", "--data", str(data)]
    assert main(["eval", *options, "--timing", "0", "--out", str(tmp_path / "runs")]) == 0
    out = capsys.readouterr().out
    assert "checkerboard" in out
    assert "data: 1 questions on 1 pictures" in out
    overlay = tmp_path / "o.png"
    assert ask("--plugin", str(plugin), "--method", "checkerboard", "--keep", "288", "--save", str(overlay)) == 0
    assert "288 (50 %)" in capsys.readouterr().out
    assert overlay.exists()


def test_a_broken_plugin_is_named_with_its_error(tmp_path, capsys):
    plugin = tmp_path / "mine.py"
    plugin.write_text("import vtc\nnothing_of_the_sort\n")
    assert main(["eval", "--plugin", str(plugin)]) == 2
    assert "NameError" in capsys.readouterr().err


def test_traceback_on_request():
    with pytest.raises(FileNotFoundError):
        main(["--traceback", "ask", "--image", "none.png", "--question", "What?"])


def test_as_a_module():
    done = subprocess.run([sys.executable, "-m", "vtc", "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "eval" in done.stdout
