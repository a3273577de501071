"""`--model_args` of the lmms-eval plug-in: what they mean, and that mistakes are one sentence before weights load."""

from __future__ import annotations

import importlib
import sys

import pytest

import vtc
from tests.small_qwen import save
from vtc.eval.lmms import FAMILIES, manifests
from vtc.eval.lmms.arguments import check_model, parse


def parsed(**arguments):
    return parse({"pretrained": "tiny-llava", **arguments})


def test_one_method():
    settings = parsed(method="divprune", keep=0.1, batch_size="8", device="cpu", dtype="float32", max_batch_size=None)
    assert settings.methods == (vtc.DivPrune(keep=0.1),)
    assert (settings.batch_size, settings.device, settings.dtype) == (8, "cpu", "float32")
    assert (settings.max_frames, settings.fps, settings.attn_implementation) == (32, None, None)


def test_counts_fractions_and_options():
    assert parsed(method="vtc-cls", keep=64).methods == (vtc.VTCCLS(keep=64),)
    assert parsed(method="vtc-cls", keep=1.0, positions="original").methods == (
        vtc.VTCCLS(keep=1.0, positions="original"),
    )
    steps = parsed(method="pyramiddrop", layers="[0.25,0.5]", keeps="[300,0.1]").methods
    assert steps == (vtc.PyramidDrop(layers=(0.25, 0.5), keeps=(300, 0.1)),)
    assert parsed(method="todre").methods == (vtc.ToDRE(),)


def test_several_methods():
    assert parsed(method="vtc-cls+transprune", keep="192+64").methods == (vtc.VTCCLS(keep=192), vtc.TransPrune(keep=64))
    random, h2o = parsed(method="random+h2o", keep="0.5+32", seed=3, every=16).methods
    assert random == vtc.Random(keep=0.5, seed=3)  # each option goes to whom it belongs
    assert h2o == vtc.H2O(keep=32, every=16)


def test_options_along_with_the_name():
    """As Python hands them over; lmms-eval itself would split them at the commas."""
    assert parsed(method="fastv(layers=(2,), keep=0.2)").methods == (vtc.FastV(keep=0.2, layers=(2,)),)
    both = parsed(method="vtc-cls(positions=original)+fastv(layers=(2,))", keep="192+64").methods
    assert both == (vtc.VTCCLS(keep=192, positions="original"), vtc.FastV(keep=64, layers=(2,)))
    assert parsed(method="random(seed=1)", seed=2).methods == (vtc.Random(seed=2),)


def test_the_uncompressed_model():
    assert parsed(method="none").methods == ()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({}, "lacks method="),
        ({"method": "divprun"}, "unknown method 'divprun'. Did you mean 'divprune'"),
        ({"method": "divprune", "keep": 1.5}, r"keep=1.5 is not a number in \(0, 1\]"),
        ({"method": "divprune", "keep": 0}, "keep=0 is not a whole number of 1 or more"),
        ({"method": "divprune", "keep": "ten"}, "keep='ten' is not a number in"),
        ({"method": "divprune+h2o", "keep": 0.1}, "holds 1 budgets for 2 methods"),
        ({"method": "none", "keep": 0.1}, "method=none has all"),
        ({"method": "divprune", "kep": 0.1}, "has no 'kep' .* Did you mean 'keep'"),
        ({"method": "none", "seed": 1}, "has no 'seed' with method=none"),
        ({"method": "random", "seed": "x"}, "seed='x' is not a whole number"),
        ({"method": "none", "batch_size": "auto"}, "batch_size='auto' is not a whole number"),
        ({"method": "none", "batch_size": "²"}, "batch_size=.². is not a whole number"),
        ({"method": "none", "max_frames": 0}, "max_frames=0 is not a whole number"),
        ({"method": "none", "fps": "fast"}, "fps='fast' is not a number"),
        ({"method": "none", "device": "gpu0"}, "device='gpu0' is not a device"),
    ],
)
def test_mistakes(arguments, sentence):
    with pytest.raises((ValueError, TypeError), match=sentence):
        parsed(**arguments)


def test_no_model():
    with pytest.raises(ValueError, match="lacks pretrained="):
        parse({"method": "none"})


def test_the_family_is_checked_from_the_configuration(tmp_path):
    settings = parsed(method="divprune", keep=0.1)
    assert check_model("vtc_llava", settings).endswith("tiny-llava")
    with pytest.raises(
        ValueError, match=r"runs checkpoints of type qwen2_5_vl, and tiny-llava .* use --model vtc_llava"
    ):
        check_model("vtc_qwen2_5_vl", settings)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match="is of type bert: vtc has vtc_llava"):
        check_model("vtc_llava", parse({"pretrained": str(tmp_path), "method": "none"}))
    with pytest.raises(FileNotFoundError, match="no configuration to load"):
        check_model("vtc_llava", parse({"pretrained": str(tmp_path / "none"), "method": "none"}))


def test_what_wrap_refuses_is_refused_without_weights(tmp_path):
    folder = save(tmp_path)
    (folder / "model.safetensors").unlink()
    assert check_model("vtc_qwen2_5_vl", parse({"pretrained": str(folder), "method": "todre"}))
    with pytest.raises(ValueError, match="needs the whole grid"):
        check_model("vtc_qwen2_5_vl", parse({"pretrained": str(folder), "method": "random+pool", "keep": "9+4"}))


def test_every_name_is_of_a_supported_family():
    assert {model_type for types in FAMILIES.values() for model_type in types} == set(vtc.list_families())


def test_without_lmms_eval(monkeypatch):
    monkeypatch.setitem(sys.modules, "lmms_eval", None)
    with pytest.raises(ImportError, match=r"plug-in of lmms-eval .*: pip install 'vtc-vlm\[lmms\]'"):
        manifests()
    monkeypatch.delitem(sys.modules, "vtc.eval.lmms.model", raising=False)
    with pytest.raises(ImportError, match="plug-in of lmms-eval"):
        importlib.import_module("vtc.eval.lmms.model")
