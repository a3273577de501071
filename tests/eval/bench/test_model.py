"""The benchmark of models measures what it says, on models small enough for a test."""

from __future__ import annotations

import csv

import pytest
import torch

from vtc import ops
from vtc.engine.stages.read import ReadRun
from vtc.eval.bench import archs, table
from vtc.eval.bench.model import CEILING, FULL, Bench, Budget, measure, timed_choices

CPU = torch.device("cpu")
SMALL = archs.Arch("llava", 4, 64, 4, 96, archs.SMALL_CLIP)


@pytest.fixture(scope="module")
def lines():
    settings = [("divprune", 64), ("transprune", 64), ("h2o", 64)]
    seen = []
    bench = Bench(SMALL, CPU, torch.float32, 2)
    lines = measure("small", bench, settings, rounds=2, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1][0] == seen[-1][1]
    return lines


def test_one_line_per_setting(lines):
    assert [line.method for line in lines] == [FULL, CEILING, "divprune", "transprune", "h2o"]
    full, ceiling, divprune, transprune, h2o = lines
    for line in lines:
        assert len(line.prefill) == len(line.decode) == len(line.speedups) == 2
        assert len(line.encode) == (0 if line is ceiling else 2)
        assert line.peak_bytes > 0
    assert full.speedups == [1.0, 1.0]
    assert (divprune.tokens, ceiling.tokens, h2o.tokens, full.tokens) == (64, 64, 576, 576)
    assert 64 < transprune.tokens < 576
    assert 1 < transprune.ideal < divprune.ideal
    assert divprune.ideal == pytest.approx(ceiling.ideal, rel=0.05)
    assert divprune.kv_bytes == h2o.kv_bytes == ceiling.kv_bytes < full.kv_bytes
    assert divprune.flops > transprune.flops > h2o.flops == 1.0


def test_csv_markdown_and_picture(lines, tmp_path):
    rows = table.model_rows(lines)
    table.write_csv(rows, {"device": "this one"}, tmp_path / "t.csv")
    with (tmp_path / "t.csv").open() as file:
        read = list(csv.DictReader(file))
    assert [row["method"] for row in read] == [line.method for line in lines]
    assert {row["device"] for row in read} == {"this one"}
    assert float(read[2]["ttft_ms"]) == pytest.approx(
        float(read[2]["encode_ms"]) + float(read[2]["prefill_ms"]), rel=0.3
    )
    assert read[1]["ttft_ms"] == ""
    text = table.markdown(list(table.MODEL_COLUMNS.values()), table.model_cells(rows))
    assert text.count("\n") == 7
    assert f"| {FULL} |" in text
    table.plot_model(rows, tmp_path / "t.png")
    assert (tmp_path / "t.png").stat().st_size > 10_000


@pytest.mark.parametrize("name", ["llava_next", "qwen2_5_vl", "llava_onevision"])
def test_other_families(name):
    tower = archs.SMALL_QWEN if name == "qwen2_5_vl" else archs.SMALL_CLIP
    picture = {"llava_next": (336, 672), "qwen2_5_vl": (112, 112), "llava_onevision": (384, 768)}[name]
    bench = Bench(archs.Arch(name, 2, 64, 4, 96, tower, 2, picture), CPU, torch.float32, 2)
    assert bench.tokens > 10
    lines = measure(name, bench, [("divprune", 8)], rounds=1)
    assert lines[-1].tokens == 8


def test_where_models_take_no_features():
    """As under transformers before 5.18: each prefill sees the pixels."""
    bench = Bench(SMALL, CPU, torch.float32, 1)
    bench.takes_features = False
    full, ceiling, divprune = measure("small", bench, [("divprune", 64)], rounds=1)
    assert len(full.encode) == len(divprune.encode) == 1
    assert (full.tokens, ceiling.tokens, divprune.tokens) == (576, 64, 64)


@pytest.mark.parametrize("name", ["qwen2_5_vl", "llava_onevision"])
def test_videos(name):
    tower = archs.SMALL_QWEN if name == "qwen2_5_vl" else archs.SMALL_CLIP
    picture = (112, 112) if name == "qwen2_5_vl" else (384, 384)
    bench = Bench(archs.Arch(name, 2, 64, 4, 96, tower, 2, picture, frames=4), CPU, torch.float32, 2)
    lines = measure(name, bench, [("uniform-frames", 0.5), ("divprune", 8)], rounds=1)
    assert bench.tokens in (32, 785)
    assert [round(line.tokens) for line in lines if line.compressed] == [bench.tokens // 2, 8]


def test_a_method_that_is_wrong_is_not_timed(monkeypatch):
    bench = Bench(SMALL, CPU, torch.float32, 1)
    right = ops.gather_rows
    monkeypatch.setattr("vtc.engine.stages.input.identical", lambda selections: False)

    def wrong(index, tensors):
        first, *others = right(index, tensors)
        return [first * torch.linspace(0.5, 2, first.shape[-1]), *others]

    monkeypatch.setattr(ops, "gather_rows", wrong)
    with pytest.raises(RuntimeError, match="divprune changes the answer"):
        measure("small", bench, [("divprune", 64)], rounds=1)


def test_the_choice_of_a_decode_step_is_timed_where_there_is_one():
    bench = Bench(
        archs.Arch("qwen2_5_vl", 4, 64, 4, 96, archs.SMALL_QWEN, 2, (112, 112), frames=8), CPU, torch.float32, 1
    )
    lines = measure("video", bench, [("dycoke(p=None)", 0.5), ("dycoke", 0.5)], rounds=2)
    plain, _, whole, part = rows = table.model_rows(lines)
    assert [len(line.choice) for line in lines] == [0, 0, 0, 2]
    assert 0 < part["choice_ms_per_token"] < 100
    assert whole["choice_ms_per_token"] == whole["spared_ms_per_token"] == plain["spared_ms_per_token"] == ""
    less = [a - b + c for a, b, c in zip(lines[2].decode, lines[3].decode, lines[3].choice, strict=True)]
    assert part["spared_ms_per_token"] == pytest.approx(500 * sum(less), abs=1e-3)  # the median of two is their mean
    for row in rows:
        assert 0 < row["decode_ms_min"] <= row["decode_ms_per_token"] <= row["decode_ms_max"]
    assert [cells[7] != "" for cells in table.model_cells(rows)] == [False, False, False, True]


def test_choices_are_timed_within_the_block_alone():
    before = ReadRun.decide
    with timed_choices(CPU) as seconds:
        assert ReadRun.decide is not before
    assert seconds == []
    assert ReadRun.decide is before


def test_no_round_but_the_first_begins_when_the_time_is_over():
    lines = measure("small", Bench(SMALL, CPU, torch.float32, 1), [("divprune", 8)], 3, budget=Budget(-1.0))
    assert [len(line.prefill) for line in lines] == [1, 1, 1]
