"""The benchmark of threads: what it times, counts and writes."""

from __future__ import annotations

import csv
from typing import Any

import pytest

import vtc
from tests.engine.cells import prompts
from tests.families import model_of
from vtc.cli.main import main
from vtc.eval.bench import archs, threads
from vtc.eval.bench.model import FULL


def test_every_round_times_every_setting() -> None:
    model, inputs = model_of("llava"), prompts("llava", "divprune")[0]
    told: list[tuple[int, int]] = []
    found = threads.measure(model, inputs, [("divprune", 4), ("h2o", 0.5)], 2, 2, lambda *done: told.append(done))
    assert list(found) == [(FULL, None), ("divprune", 4), ("h2o", 0.5)]
    assert all(len(own["threads"]) == len(own["one_thread"]) == 2 for own in found.values())
    assert told == [(number, 9) for number in range(1, 10)]  # with the round that does not count
    with pytest.raises(ValueError, match="not wrapped"):
        vtc.report(model)


def test_ratios_are_of_one_round_each() -> None:
    plain = {"one_thread": [1.0, 1.0, 1.0], "threads": [2.0, 4.0, 1.0]}
    own = {"one_thread": [2.0, 2.0, 1.0], "threads": [3.0, 4.0, 4.0]}
    first, second = threads.rows({(FULL, None): plain, ("h2o", 0.5): own})
    assert first["ratio"] == first["ratio_min"] == first["ratio_max"] == 1
    assert second == {
        **{"method": "h2o", "keep": 0.5, "one_thread": 2.0, "threads": 4.0},
        **{"ratio": 1.5, "ratio_min": 1.0, "ratio_max": 4.0, "gain": 2.0},
    }


def test_it_writes_what_it_measured(tmp_path: Any, monkeypatch: Any, capsys: Any) -> None:
    small = archs.Arch("llava", 2, 32, 2, 48, archs.SMALL_CLIP)
    monkeypatch.setitem(archs.ARCHS, "cpu-4x256", small)
    files = [part for kind in ("csv", "markdown") for part in (f"--{kind}", str(tmp_path / f"t.{kind}"))]
    how = ["--device", "cpu", "--threads", "2", "--rounds", "1", "--methods", "divprune"]
    assert main(["bench", "threads", *how, *files]) == 0
    with (tmp_path / "t.csv").open() as file:
        first, second = csv.DictReader(file)
    assert (first["method"], second["method"]) == (FULL, "divprune")
    assert float(second["ratio"]) > 0
    assert second["workers"] == "2"
    assert "| divprune" in (tmp_path / "t.markdown").read_text()
    assert "2 threads on cpu-4x256" in capsys.readouterr().out
