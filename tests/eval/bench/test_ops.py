"""The benchmark of ops: every op and provider has a row, and shares of roofs are what they say."""

from __future__ import annotations

import pytest
import torch

from vtc.eval.bench import ops
from vtc.eval.bench.roofs import Roofs
from vtc.eval.bench.suites import OPS

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def found():
    shapes = ops.SHAPES
    ops.SHAPES = [("small", 96, 64, 8), ("smaller", 40, 32, 4)]
    try:
        cases = list(ops.measure(CPU, torch.float32, rounds=2))
    finally:
        ops.SHAPES = shapes
    return [row for case in cases for row in ops.rows(case, CPU, torch.float32)]


def test_rows(found):
    names = {row["op"] for row in found}
    assert names == {*OPS}  # what `--only` takes
    for name in names:
        own = [row for row in found if row["op"] == name]
        assert [row["provider"] for row in own] == ["reference", "naive"] * 2
        for row in own:
            assert 0 < row["ms_min"] <= row["ms"] <= row["ms_max"]
            assert row["of_roof"] >= 0  # rounded
            assert (row["over_matmul"] != "") == (
                name.startswith("greedy") or name in ("kmeans", "bipartite_match", "segment_mean")
            )


def test_printed_and_drawn(found, tmp_path):
    assert all(len(cells) == len(ops.COLUMNS) for cells in ops.cells(found))
    ops.plot(found, tmp_path / "ops.png")
    assert (tmp_path / "ops.png").stat().st_size > 10_000


def test_the_roof_is_whichever_takes_longer():
    roof = Roofs(flops=100.0, bandwidth=10.0)
    assert roof.seconds(200.0, 1.0) == 2.0
    assert roof.seconds(1.0, 50.0) == 5.0


def test_no_case_begins_when_the_time_is_over(monkeypatch):
    monkeypatch.setattr(ops, "SHAPES", [("small", 40, 32, 4)])
    assert list(ops.measure(CPU, torch.float32, ["transition"], 1, seconds=0)) == []
    (case,) = ops.measure(CPU, torch.float32, ["transition"], 3, seconds=60)
    assert {len(seconds) for seconds in case.seconds.values()} == {3}
