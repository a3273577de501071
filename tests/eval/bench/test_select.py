"""The benchmark of choosing: plain rules keep what the methods keep, and rows say so."""

from __future__ import annotations

import csv
from typing import Any

import pytest
import torch

from vtc.cli.main import main
from vtc.eval.bench import select
from vtc.eval.bench.select import CASES, Case, kept_alike, scaled

CPU = torch.device("cpu")


def small(case: Case) -> Case:
    return scaled(case, (16, 4, 5) if case.grid[0] > 1 else (1, 12, 20), 32)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.name}-{case.grid[1]}")
def test_the_plain_rule_keeps_the_same_tokens(case: Case) -> None:
    row = select.measure(small(case), CPU, torch.float32, pairs=2)
    assert row["same"] == ("as many" if case.draws else "yes")
    assert 0 < row["kept"] < 320
    assert row["pairs"] == 2
    assert min(row["plain_ms"], row["vtc_ms"], row["ratio"]) > 0


def test_what_differs_is_counted() -> None:
    assert kept_alike(torch.tensor([3, 1, 2]), torch.tensor([1, 2, 3])) == "yes"
    assert kept_alike(torch.tensor([3, 1, 2]), torch.tensor([1, 2, 5])) == "1 of 3 differ"
    assert kept_alike(torch.tensor([3, 1, 2]), torch.tensor([1, 2])) == "0 of 2 differ"
    assert kept_alike(torch.tensor([3]), torch.tensor([5]), draws=True) == "as many"


def test_it_writes_what_it_measured(tmp_path: Any, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setattr(select, "CASES", tuple(small(case) for case in CASES))
    files = [part for kind in ("csv", "markdown", "plot") for part in (f"--{kind}", str(tmp_path / f"t.{kind}.png"))]
    assert main(["bench", "select", "--device", "cpu", "--only", "fastv,evs", "--pairs", "3", *files]) == 0
    with (tmp_path / "t.csv.png").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["method"], row["shape"]) for row in rows] == [("fastv", "1x12x20x32"), ("evs", "16x4x5x32")]
    assert float(rows[0]["ratio_low"]) <= float(rows[0]["ratio"]) <= float(rows[0]["ratio_high"])
    assert "| fastv" in (tmp_path / "t.markdown.png").read_text()
    assert (tmp_path / "t.plot.png").stat().st_size > 5000
    assert "same tokens" in capsys.readouterr().out


def test_a_case_that_is_none(capsys: Any) -> None:
    assert main(["bench", "select", "--only", "fastvv", "--device", "cpu"]) == 2
    assert "--only fastvv: no such case here; there are random, vtc-cls" in capsys.readouterr().err
