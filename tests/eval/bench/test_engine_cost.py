"""The benchmark of the engine: what is compared with what, and what it says of its targets."""

from __future__ import annotations

import csv
from typing import Any

import pytest
import torch

import vtc
from vtc.cli.main import main
from vtc.eval.bench import engine
from vtc.eval.bench.engine import DECODE, PREFILL, SETTINGS, Line, Setting, Size
from vtc.eval.bench.model import Bench

CPU = torch.device("cpu")
SMALL = Size(2, 64)


@pytest.fixture(scope="module")
def lines() -> list[Line]:
    return list(engine.measure([Size(4, 64)], CPU, torch.float32, 4, pairs=2, steps=3))


def test_every_stage_is_timed_in_both_phases(lines: list[Line]) -> None:
    assert [line.setting for line in lines] == list(SETTINGS)
    assert {line.setting.stage for line in lines} == {"identity", "input", "layer", "cache", "read"}
    for line in lines:
        assert line.tokens == 64 + 16 + (2 if line.setting.video else 0)  # start and end of a video are tokens, too
        for phase, pairs in ((PREFILL, 2), (DECODE, 6)):
            assert len(line.plain[phase]) == len(line.wrapped[phase]) == pairs
            assert min(*line.plain[phase], *line.wrapped[phase]) > 0


def test_twins_share_their_weights_and_are_wrapped_alone() -> None:
    plain = Bench(SMALL.arch(4, False), CPU, torch.float32, 1)
    other = engine.twin(plain)
    ours, theirs = dict(plain.model.named_parameters()), dict(other.model.named_parameters())
    assert ours.keys() == theirs.keys()
    assert all(ours[name] is theirs[name] for name in ours)
    with torch.inference_mode(), vtc.wrapped(other.model, "random", 0.5):
        other.forward(other.encode(["random"]))
        assert not any(module._forward_pre_hooks for module in plain.model.modules())
        assert vtc.report(other.model).tokens_out == 8
    with pytest.raises(ValueError, match="not wrapped"):
        vtc.report(plain.model)


def test_the_plain_prompt_is_as_short_as_what_is_left(monkeypatch: Any) -> None:
    lengths: dict[str, set[int]] = {"plain": set(), "wrapped": set()}
    prefill = engine.Asked.prefill

    def watched(self: engine.Asked) -> Any:
        out = prefill(self)
        cache = out["cache"] if "cache" in out else out["past_key_values"]
        lengths["plain" if self.keep is not None else "wrapped"].add(cache.layers[-1].keys.shape[2])
        return out

    monkeypatch.setattr(engine.Asked, "prefill", watched)
    short = Setting.of("input", "random(keep=0.25)", short=True)
    list(engine.measure([SMALL], CPU, torch.float32, 4, 1, 1, settings=[short]))
    assert lengths == {"plain": {64 + 4}, "wrapped": {64 + 4}}


def _line(size: Size, plain: float, extra: float, stage: str = "identity") -> Line:
    times = [plain + i * 1e-9 for i in range(9)]
    more = [value + extra for value in times]
    setting = Setting.of(stage, "random(keep=1.0)")
    return Line(size, setting, 80, {PREFILL: times, DECODE: times}, {PREFILL: more, DECODE: more})


def test_targets() -> None:
    prefill, decode = engine.rows(_line(Size(24, 1024), 0.1, 0.0015))
    assert (prefill["target_us"], prefill["met"]) == (2000.0, "yes")
    assert (decode["target_us"], decode["met"]) == (1000.0, "no")
    assert (prefill["extra_us"], prefill["extra_share"], prefill["us_per_layer"]) == (1500.0, 0.015, 62.5)
    prefill, decode = engine.rows(_line(Size(64, 64), 0.02, 319e-6))
    assert (prefill["target_us"], prefill["met"]) == ("", "")
    assert (decode["target_us"], decode["met"]) == (320.0, "yes")
    assert engine.rows(_line(Size(24, 1024), 0.1, 0.0, "layer"))[0]["met"] == ""
    unsure = _line(Size(64, 64), 0.02, 0.0)
    unsure.wrapped[DECODE] = [value + (i % 2) * 1e-3 for i, value in enumerate(unsure.plain[DECODE])]
    assert engine.rows(unsure)[1]["met"] == "open"


def test_a_size_is_layers_by_width() -> None:
    assert Size.read("24x1024") == Size(24, 1024)
    assert str(Size(64, 128)) == "64x128"
    for text in ("24", "24x", "²x64", "0x64", "24x100", "2x64x3", "axb"):
        with pytest.raises(ValueError, match="is no size: give layers x width"):
            Size.read(text)


def test_it_writes_what_it_measured(tmp_path: Any, capsys: Any) -> None:
    files = [part for kind in ("csv", "markdown", "plot") for part in (f"--{kind}", str(tmp_path / f"t.{kind}.png"))]
    how = ["--device", "cpu", "--sizes", "2x64", "--grid", "4", "--pairs", "1", "--steps", "1", "--seconds", "60"]
    assert main(["bench", "engine", *how, *files]) == 0
    with (tmp_path / "t.csv.png").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["phase"] for row in rows] == ["prefill", "decode step"] * len(SETTINGS)
    assert rows[0]["stage"] == "identity"
    assert "| identity" in (tmp_path / "t.markdown.png").read_text()
    assert (tmp_path / "t.plot.png").stat().st_size > 10_000
    assert "target for the identity wrap of 2x64, decode step: at most 10 µs" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [
        ("--grid", "5", "--grid 5 is odd"),
        ("--stages", "input,layers", "--stages layers: no such stage; there are identity, input, layer, cache, read"),
        ("--sizes", "24", "'24' is no size"),
    ],
)
def test_what_makes_no_sense_is_refused(option: str, value: str, says: str, capsys: Any) -> None:
    assert main(["bench", "engine", "--device", "cpu", option, value]) == 2
    assert says in capsys.readouterr().err
