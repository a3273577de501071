"""The benchmark of imports: what it starts, counts and writes."""

from __future__ import annotations

import csv

import pytest

from vtc.cli.main import main
from vtc.eval.bench import imports

STARTS = {imports.BASELINE: (("-c", "pass"), 0), "slower": (("-c", "import time; time.sleep(0.3)"), 0)}


def test_it_writes_what_it_measured(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(imports, "STARTS", STARTS)
    files = [part for kind in ("csv", "markdown") for part in (f"--{kind}", str(tmp_path / "new" / f"t.{kind}"))]
    assert main(["bench", "imports", "--rounds", "2", *files]) == 0
    with (tmp_path / "new" / "t.csv").open() as file:
        first, second = csv.DictReader(file)
    assert (first["start"], second["start"]) == tuple(STARTS)
    assert int(second["median"]) >= int(second["min"]) > int(first["min"]) > 0
    assert int(second["over_torch"]) == pytest.approx(int(second["min"]) - int(first["min"]), abs=1)
    assert first["torch"]
    assert first["device"]
    assert "| slower" in (tmp_path / "new" / "t.markdown").read_text()
    assert "2 fresh processes each" in capsys.readouterr().out


def test_every_round_starts_everything_once():
    told = []
    seconds = imports.measure(STARTS, 2, lambda done, total: told.append((done, total)))
    assert {name: len(values) for name, values in seconds.items()} == dict.fromkeys(STARTS, 2)
    assert told == [(number, 6) for number in range(1, 7)]  # with the round that does not count


def test_numbers_are_medians_and_minima():
    first, second = imports.rows({imports.BASELINE: [1.0, 3.0, 1.5], "vtc": [2.0, 1.25, 9.0]})
    assert first == {"start": imports.BASELINE, "min": 1000, "median": 1500, "over_torch": ""}
    assert second == {"start": "vtc", "min": 1250, "median": 2000, "over_torch": 250}


def test_a_start_that_fails_is_no_measurement():
    with pytest.raises(RuntimeError, match=r"(?s)broken ended with 1, not 0: .*ZeroDivisionError"):
        imports.measure({"broken": (("-c", "1 / 0"), 0)}, 1)
    assert imports.measure({"refused": (("-c", "raise SystemExit(2)"), 2)}, 1)


def test_what_is_measured_ends_as_it_should():
    imports.measure({name: start for name, start in imports.STARTS.items() if name.startswith("vtc")}, 0)
