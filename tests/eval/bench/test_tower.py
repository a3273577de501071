"""The benchmark of vision towers: what it times, and what it writes."""

from __future__ import annotations

import csv
from typing import Any

import pytest
import torch

from vtc.cli.main import main
from vtc.eval.bench import suites, tower


def small(monkeypatch: Any) -> None:
    sizes = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2)
    clip = tower.Shape("clip_vision_model", sizes | {"image_size": 28, "patch_size": 7}, 4)
    own = dict(hidden_size=32, intermediate_size=48, depth=2, num_heads=2, out_hidden_size=16, patch_size=4)
    qwen = tower.Shape("qwen2_5_vl_vision", own | {"window_size": 16, "fullatt_block_indexes": [1]}, 8)
    monkeypatch.setitem(tower.SHAPES, "clip-l-336", clip)
    monkeypatch.setitem(tower.SHAPES, "qwen2.5-vl-1296", qwen)


def test_the_towers_are_those_of_the_list() -> None:
    assert list(tower.SHAPES) == list(suites.TOWERS)


def test_every_round_times_every_setting(monkeypatch: Any) -> None:
    small(monkeypatch)
    built, inputs = tower.SHAPES["qwen2.5-vl-1296"].build(torch.device("cpu"), torch.float32)
    told: list[tuple[int, int]] = []
    lines = tower.measure(built, inputs, [("tome", 0.5), ("pitome", 0.75)], 2, lambda *done: told.append(done))
    assert [(line.method, line.keep, line.patches) for line in lines] == [
        (tower.PLAIN, None, 16),
        ("tome", 0.5, 8),
        ("pitome", 0.75, 12),
    ]
    assert all(len(line.seconds) == 2 for line in lines)
    assert lines[1].flops[1] < lines[2].flops[1] < lines[2].flops[0]
    assert told[-1] == (9, 9)


def test_ratios_are_of_one_round_each() -> None:
    plain = tower.Line(tower.PLAIN, None, 100, seconds=[1.0, 1.0, 4.0], choosing=[0.0] * 3)
    own = tower.Line("tome", 0.5, 50, (10, 5), [1.0, 0.5, 2.5], [3.0, 1.0, 2.0])
    first, second = tower.rows([plain, own])
    assert (first["speedup"], first["reached"]) == (1, 1)
    assert (second["speedup"], second["speedup_min"], second["speedup_max"]) == (1.6, 1.0, 2.0)
    assert (second["flops"], second["reached"], second["choose_ms"]) == (2, 0.8, 2)


def test_it_writes_what_it_measured(tmp_path: Any, monkeypatch: Any, capsys: Any) -> None:
    small(monkeypatch)
    files = [part for kind in ("csv", "markdown") for part in (f"--{kind}", str(tmp_path / f"t.{kind}"))]
    how = ["--device", "cpu", "--rounds", "1", "--towers", "clip-l-336", "--keep", "0.5", "--blocks", "3"]
    assert main(["bench", "tower", *how, *files, "--plot", str(tmp_path / "t.png")]) == 0
    with (tmp_path / "t.csv").open() as file:
        first, second = csv.DictReader(file)
    assert (first["tower"], first["patches"], second["method"], second["patches"]) == ("clip-l-336", "16", "tome", "8")
    assert "| tome" in (tmp_path / "t.markdown").read_text()
    assert "clip-l-336, 3 blocks" in capsys.readouterr().out
    assert (tmp_path / "t.png").stat().st_size > 1000


@pytest.mark.parametrize(("line", "message"), [(["--towers", "clip"], "no such tower here; there are clip-l-336, ")])
def test_bad_lines_are_refused(line: list[str], message: str, capsys: Any) -> None:
    assert main(["bench", "tower", *line]) == 2
    assert message in capsys.readouterr().err
