"""`vtc bench kvpress`: what it shows of methods and presses, and what it says where kvpress is not there."""

from __future__ import annotations

import csv
import sys
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from vtc.cli.main import main
from vtc.eval.bench import archs, kvpress

SMALL = ["bench", "kvpress", "--device", "cpu", "--arch", "cpu-4x256", "--steps", "1"]


class Ends:
    """A press: the first `n_sink` tokens and the last; `hides` those that go instead of dropping them."""

    def __init__(self, compression_ratio: float, n_sink: int, hides: bool = False) -> None:
        self.goes, self.sinks, self.hides = compression_ratio, n_sink, hides

    def post_init_from_model(self, model: Any) -> None:
        pass

    def forward_hook(self, module: Any, args: Any, kwargs: dict[str, Any], output: Any) -> Any:
        layer = kwargs["past_key_values"].layers[module.layer_idx]
        n = layer.keys.shape[2]
        gone = n - int(n * (1 - self.goes))
        assert kwargs["cache_position"].tolist() == list(range(n))
        keep = [i for i in range(n) if not self.sinks <= i < self.sinks + gone]
        if self.hides:
            heads = layer.keys.shape[1]
            token = torch.tensor([i for i in range(n) if i not in keep]).repeat(heads)
            head = torch.arange(heads).repeat_interleave(gone)
            module.masked_key_indices = (torch.zeros_like(token), head, token)
        else:
            layer.keys, layer.values = layer.keys[:, :, keep], layer.values[:, :, keep]
        return output


@pytest.fixture
def fake(monkeypatch):
    """A package of that name with one press, what is compared with it, and a small model."""
    small = archs.Arch("llava", 2, 32, 4, 48, archs.SMALL_CLIP, kv_heads=2)
    monkeypatch.setitem(archs.ARCHS, "cpu-4x256", small)
    spec = SimpleNamespace(name="kvpress")
    monkeypatch.setitem(sys.modules, "kvpress", SimpleNamespace(Ends=Ends, __spec__=spec))
    method = "streaming(keep={keep}, scope=all, sinks=%d)"
    pairs = (
        kvpress.Pair("ends", method % 4, "Ends", (("n_sink", 4),)),
        kvpress.Pair("ends", method % 4, "Ends", (("n_sink", 4), ("hides", True))),
        kvpress.Pair("ends", method % 6, "Ends", (("n_sink", 4),)),
    )
    monkeypatch.setattr(kvpress, "PAIRS", pairs)


def test_what_is_shown(fake, tmp_path, capsys):
    main([*SMALL, "--keep", "0.1,40", "--csv", str(tmp_path / "found.csv"), "--markdown", str(tmp_path / "found.md")])
    with (tmp_path / "found.csv").open() as file:
        found = list(csv.DictReader(file))
    length = 64 + 24 * 24
    assert [(row["keep"], row["heads"], row["equal"]) for row in found] == [
        ("0.1", "4", "4"),
        ("0.1", "4", "4"),
        ("0.1", "4", "0"),
        ("40", "4", "4"),
        ("40", "4", "4"),
        ("40", "4", "0"),
    ]
    assert float(found[5]["overlap"]) == pytest.approx(38 / 42, abs=1e-4)
    row = 2 * 2 * 2 * 8 * 4  # bytes of a token: layers, heads, keys and values, their width, fp32
    assert [int(line["press_bytes"]) for line in found] == [row * n for n in (64, length, 64, 40, length, 40)]
    assert all(row * 40 < int(line["vtc_bytes"]) < 2 * row * 40 for line in found[3:])
    assert all(float(line["vtc_ms"]) > 0 and float(line["press_ms"]) > 0 for line in found)
    assert "4 of 4" in capsys.readouterr().out
    assert (tmp_path / "found.md").read_text().count("\n| ends | Ends |") == 6


def test_modules_are_left_as_they_were(fake):
    model = archs.build(archs.ARCHS["cpu-4x256"], torch.device("cpu"), torch.float32)
    layers = model.model.language_model.layers
    before = {name: set(vars(module)) for name, module in layers.named_modules()}
    kvpress.measure(model, archs.inputs(archs.ARCHS["cpu-4x256"], model, 1), [20], 4, 1)
    assert model.config._attn_implementation == "sdpa"
    assert {name: set(vars(module)) for name, module in layers.named_modules()} == before
    assert not any(module._forward_hooks for module in layers.modules())


def test_without_kvpress(monkeypatch, capsys):
    monkeypatch.setattr(kvpress, "find_spec", lambda name: None)
    assert main(SMALL) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("vtc: kvpress is not installed: run `pip install --no-deps --target kvpress_site kvpress ")


def test_a_window_that_leaves_nothing(fake, capsys):
    assert main([*SMALL, "--keep", "0.25,30", "--window", "30"]) == 2
    assert "--window 30 leaves nothing to choose at a budget of --keep" in capsys.readouterr().err


@pytest.mark.full
@pytest.mark.skipif(find_spec("kvpress") is None, reason="kvpress is not installed")
def test_beside_kvpress():
    """Equal but where the definitions differ, which docs/kvpress.md explains."""
    arch = archs.ARCHS["cpu-kv"]
    model = archs.build(arch, torch.device("cpu"), torch.float32)
    archs.sharpen(model)
    lines = kvpress.measure(model, archs.inputs(arch, model, 1), [0.25], 32, 1)
    unlike = {line.method.partition("(")[0] for line in lines if line.equal < line.heads}
    assert unlike == {"pyramidkv", "adakv"}
    assert next(line for line in lines if "floor=0.0" in line.method).equal == 16
