"""The benchmark measures what it says, on a model small enough for a test."""

from __future__ import annotations

import pytest
import torch

from vtc.eval import bench


@pytest.fixture(scope="module")
def lines():
    model = bench.build(bench.Shape(layers=4, width=64, heads=4, mlp=96), "cpu", torch.float32)
    settings = [("divprune", 64), ("transprune", 64), ("h2o", 64)]
    seen = []
    lines = bench.measure(model, settings, rounds=2, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1][0] == seen[-1][1]
    return lines


def test_one_line_per_setting(lines):
    assert [line.method for line in lines] == ["uncompressed", "divprune", "transprune", "h2o"]
    full, divprune, transprune, h2o = lines
    assert all(len(line.seconds) == len(line.speedups) == 2 for line in lines)
    assert full.speedups == [1.0, 1.0]
    assert (divprune.tokens, h2o.tokens) == (64, 576)
    assert 64 < transprune.tokens < 576
    assert 1 < transprune.ideal < divprune.ideal
    assert divprune.kv_bytes == h2o.kv_bytes < full.kv_bytes
    assert all(line.peak_bytes > 0 for line in lines)


def test_tables(lines):
    assert bench.terminal(lines).row_count == 4
    text = bench.markdown(lines)
    assert text.count("\n") == 6
    assert "| uncompressed |" in text


def test_a_method_that_is_wrong_is_not_timed(monkeypatch):
    import vtc

    model = bench.build(bench.Shape(layers=2, width=64, heads=4, mlp=96), "cpu", torch.float32)
    monkeypatch.setattr(vtc.Selection, "apply", lambda self, x: x[self.anchor] * 2)
    monkeypatch.setattr(vtc.Selection, "merges", True)
    with pytest.raises(RuntimeError, match="divprune changes the answer"):
        bench.measure(model, [("divprune", 64)], rounds=1)
