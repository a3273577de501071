"""The benchmark of growth: what runs, what is fitted, and what the table and the picture show."""

from __future__ import annotations

import csv
import math
from typing import Any

import pytest
import torch

from vtc.cli.main import main
from vtc.eval.bench import growth, suites
from vtc.eval.bench.growth import GRAM, Point
from vtc.methods.base import index

CPU = torch.device("cpu")
INPUT = [name for name, info in index.shipped().items() if info.stage.split("+")[0] == "input"]


def points(power: float, scale: float = 1.0, name: str = "x") -> list[Point]:
    return [Point(name, n, scale * (n / 144) ** power, 10 * n, 5 * n) for n in (144, 288, 576)]


@pytest.mark.parametrize("name", INPUT)
def test_every_method_that_chooses_before_the_language_model_can_be_asked(name: str, monkeypatch: Any) -> None:
    monkeypatch.setattr(growth, "WIDTH", 32)
    chosen = growth.runner(name, growth.features_of(288, CPU, torch.float32))()
    assert 0 < chosen.tokens_out < 288 or name == "mustdrop"  # which merges only what is nearly equal


def test_the_exponent_is_that_of_the_law() -> None:
    for power in (0.0, 1.0, 2.0, 2.7):
        assert growth.exponent(points(power)) == pytest.approx(power)
        assert growth.steepest(points(power)) == pytest.approx(power)
    cliff = [*points(1.0), Point("x", 1152, 800.0, 0, 1)]  # 4 s at half of it
    assert growth.steepest(cliff) == pytest.approx(math.log2(200))
    assert 1 < growth.exponent(cliff) < growth.steepest(cliff)


def test_what_is_too_short_to_tell_says_nothing() -> None:
    assert math.isnan(growth.exponent(points(1.0, scale=1e-3)))
    assert math.isnan(growth.steepest(points(1.0, scale=1e-3)))
    (row, *_) = growth.rows(points(1.0, scale=1e-3))
    assert math.isnan(row["exponent"])
    assert growth.cells([row], [144])[0][-1] == ""


def test_rows_compare_with_the_products_of_as_many_tokens() -> None:
    found = growth.rows([*points(2.0, 0.5, GRAM), *points(1.0)])
    assert [(row["method"], row["tokens"], row["of_products"]) for row in found[3:]] == [
        ("x", 144, 2.0),
        ("x", 288, 1.0),
        ("x", 576, 0.5),
    ]
    assert {row["of_features"] for row in found} == {2.0}
    lines = growth.cells(found, [144, 288, 576])
    assert lines[1] == ["x", "1,000", "2,000", "4,000", "2.0×", "0.50×", "1.0", "1.0"]
    assert len(growth.columns([144, 288, 576])) == len(lines[0])


def measured(**options: Any) -> list[tuple[str, int]]:
    found = growth.measure(["tome"], CPU, torch.float32, (144, 288, 576), **options)
    return [(point.method, point.tokens) for point in found]


WHOLE = [(name, size) for name in (GRAM, "tome") for size in (144, 288, 576)]


def test_more_tokens_wait_until_there_is_time(monkeypatch: Any) -> None:
    monkeypatch.setattr(growth, "WIDTH", 32)
    with monkeypatch.context() as patch:
        patch.setattr(growth, "peak_bytes", lambda run, device: run() or 40_000)  # the profiler takes long to begin
        assert measured(seconds=1e-6) == [(GRAM, 144), ("tome", 144)] == measured(limit=1e-6)
    points = list(growth.measure(["tome"], CPU, torch.float32, (144, 288, 576)))
    assert [(point.method, point.tokens) for point in points] == WHOLE
    for point in points:
        assert point.seconds > 0
        assert point.features == 4 * 32 * point.tokens
        assert point.features / 8 < point.peak < 50 * point.features


def test_no_more_tokens_than_memory_holds(monkeypatch: Any) -> None:
    monkeypatch.setattr(growth, "WIDTH", 32)
    monkeypatch.setattr(growth, "_point", lambda name, x, expected: Point(name, len(x), 1e-3, len(x) ** 2, x.nbytes))
    monkeypatch.setattr(growth, "memory", lambda device: 2.0 * 400**2)
    assert measured() == [(name, size) for name in (GRAM, "tome") for size in (144, 288)]


def test_what_is_expected_of_more_tokens() -> None:
    """As it has grown, but neither below the first power nor above the second."""
    assert growth.ahead([], 144) == (0.0, 0.0)
    for power, told in ((0.5, 1.0), (1.3, 1.3), (2.0, 2.0), (3.0, 2.0)):
        seconds, peak = growth.ahead(points(power)[:2], 1152)
        assert seconds == pytest.approx(2**power * 4**told)
        assert peak == pytest.approx(11_520)
    assert growth.ahead(points(1.0)[:1], 288) == (4.0, 5760.0)


def test_it_goes_on_from_what_is_known(monkeypatch: Any) -> None:
    """Point by point: nothing that is there is measured again."""
    monkeypatch.setattr(growth, "WIDTH", 32)
    fresh = list[tuple[str, int]]()

    def point(name: str, x: torch.Tensor, expected: float) -> Point:
        fresh.append((name, len(x)))
        return Point(name, len(x), 1e-3, x.nbytes, x.nbytes)

    monkeypatch.setattr(growth, "_point", point)
    assert measured(known=[*points(2.0, name=GRAM), *points(2.0, name="tome")[:1]]) == WHOLE
    assert fresh == WHOLE[4:]


COMMAND = "bench ops --growth --device cpu --only evs,pitome(scope=frame) --tokens 288,144,576"
ROWS = [(name, size) for name in (GRAM, "evs", "pitome(scope=frame)") for size in ("144", "288", "576")]


def told(file: Any) -> list[tuple[str, str]]:
    with file.open() as lines:
        return [(row["method"], row["tokens"]) for row in csv.DictReader(lines)]


def test_it_writes_what_it_measured(tmp_path: Any, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setattr(growth, "WIDTH", 32)
    monkeypatch.setattr(growth, "peak_bytes", lambda run, device: run() or 40_000)  # the profiler takes long to begin
    files = [part for kind in ("csv", "markdown", "plot") for part in (f"--{kind}", str(tmp_path / f"t.{kind}.png"))]
    assert main([*COMMAND.split(), *files]) == 0
    assert told(tmp_path / "t.csv.png") == ROWS
    assert "| pitome(scope=frame) |" in (tmp_path / "t.markdown.png").read_text()
    assert (tmp_path / "t.plot.png").stat().st_size > 10_000
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines()[:8])) <= 104
    assert "exponent" in shown
    assert "more\nthan 60 s" in shown


def test_a_run_that_was_stopped_goes_on(tmp_path: Any, monkeypatch: Any, capsys: Any) -> None:
    """What it had measured stands in its file; elsewhere, or from another table, it does not go on."""
    monkeypatch.setattr(growth, "WIDTH", 32)
    monkeypatch.setattr(growth, "peak_bytes", lambda run, device: run() or 40_000)
    words, plain, left = [*COMMAND.split(), "--csv", str(tmp_path / "new" / "t.csv"), "--resume"], growth._point, [4]

    def some(*args: Any) -> Point:
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        return plain(*args)

    monkeypatch.setattr(growth, "_point", some)
    assert main(words) == 130
    assert told(tmp_path / "new" / "t.csv") == ROWS[:4]
    left[0] = 5
    assert main(words) == 0
    assert told(tmp_path / "new" / "t.csv") == ROWS
    capsys.readouterr()
    assert main([*words, "--dtype", "bfloat16"]) == 2
    assert "t.csv has dtype float32, this run has bfloat16: go on where it was" in capsys.readouterr().err
    (tmp_path / "new" / "t.csv").write_text("a,b\n1,2\n")
    assert main(words) == 2
    assert "t.csv has dtype None, this run has float32" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("--growth --only fastv", "--only fastv: --growth has methods that choose before the language model"),
        ("--growth --only kmeans", "there is no method 'kmeans'"),
        ("--growth --only tome(scope=fram)", "scope='fram' is not one of"),
        ("--growth --tokens 576", "--tokens 576: give two numbers or more of whole frames (144 tokens a frame)"),
        ("--growth --tokens 576,1000", "--tokens 576,1000: give two numbers or more"),
        ("--tokens 576,1152", "--tokens goes with --growth"),
        ("--limit 5", "--limit goes with --growth"),
        ("--resume", "--resume goes with --growth"),
        ("--growth --resume", "--resume goes on from the file of --csv: say which"),
    ],
)
def test_what_will_not_do(words: str, sentence: str, capsys: Any) -> None:
    assert main(["bench", "ops", "--device", "cpu", *words.split()]) == 2
    said = capsys.readouterr().err
    assert sentence in said
    assert len(said.strip().splitlines()) == 1


def test_the_sizes_are_whole_frames_and_nearly_double() -> None:
    assert all(size % suites.FRAME == 0 for size in suites.SIZES)
    assert all(1.7 * a < b <= 2 * a for a, b in zip(suites.SIZES, suites.SIZES[1:], strict=False))
    assert 0 <= 2**17 - suites.SIZES[-1] < suites.FRAME  # as many as 131,072 hold
