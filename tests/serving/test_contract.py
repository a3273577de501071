"""Which methods vLLM can serve, and what is said about the others and about vLLM's own settings: without vLLM."""

from __future__ import annotations

import json
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest

import vtc
from vtc.serving.vllm import contract, refuse
from vtc.serving.vllm.contract import VARIABLE, read_spec, spec_of
from vtc.serving.vllm.families import FAMILIES, tokens_of_every_picture

LLAVA, QWEN, FRAMED = FAMILIES["llava"], FAMILIES["qwen2_5_vl"], FAMILIES["internvl"]
SERVED = {
    *("divprune", "globalcom2", "hiprune", "hired", "holov", "pitome", "pool", "prumerge", "prunesid", "random"),
    *("scope", "tome", "visionzip", "vispruner", "vqtoken", "vtc-cls"),
}


def config(model_type: str = "llava", tower: str = "clip_vision_model", **more: Any) -> Any:
    return SimpleNamespace(model_type=model_type, vision_config=SimpleNamespace(model_type=tower), **more)


def refused(call: Any, *given: Any) -> str:
    """What is said: one sentence, whose end is a full stop or a question."""
    with pytest.raises((ValueError, TypeError, FileNotFoundError)) as caught:
        call(*given)
    said = str(caught.value)
    assert said[-1] in ".?"
    assert "\n" not in said
    return said


# --- methods --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [info.name for info in vtc.list_methods()])
def test_every_method_is_served_or_refused(name):
    """And the index says the same as the instance, which an option brings about: here one that is given its default."""
    if name in SERVED:
        spec = read_spec({"method": name, "keep": 0.5}, LLAVA)
        assert spec.prunes == ("image",)
        again = read_spec({"method": name, "keep": 0.5, "scope": None}, LLAVA)
        assert (set(again.reads), again.prunes) == (set(spec.reads), spec.prunes)
        assert spec.method == again.method
        return
    said = refused(read_spec, {"method": name, "keep": 0.5}, LLAVA)
    assert said.startswith((f"{name} ", "how many tokens"))
    assert name in said
    assert "such as divprune" in said
    assert refused(read_spec, {"method": name, "keep": 0.5, "scope": None}, LLAVA) == said


@pytest.mark.parametrize(
    ("given", "part"),
    [
        ("sparsevlm", "acts between the language model's layers"),
        ("snapkv", "acts in the language model's KV cache"),
        ("mustdrop", "also acts between the language model's layers"),
        ("downsample", "acts before the vision tower"),
        ("zerotprune", "acts inside the vision tower"),
        ("tome(stage=encoder)", "acts inside the vision tower"),
        ("mmtok", "reads the question"),
        ("cdpruner", "reads the question"),
        ("quota", "reads the question"),
        ("evs", "for the picture to say"),
        ("uniform-frames", "for the picture to say"),
        ("prumerge(exact_count=False)", "for the picture to say"),
        ("vqtoken(adaptive=(2, 6))", "for the picture to say"),
        ("vidcom2", "acts on videos, and vtc's plug-in for vLLM prunes pictures of llava"),
        ("todre", "also acts between the language model's layers"),
        ("todre(mode=kcenter)", "also acts between the language model's layers"),
    ],
)
def test_what_a_refusal_says(given, part):
    assert part in refused(read_spec, given, LLAVA)


@pytest.mark.parametrize(
    ("given", "reads"),
    [
        ("todre(tau=None)", ("cls_attention",)),
        ("todre(tau=None, pivot=center)", ()),
        ("cdpruner(judge=none)", ()),
        ("recoverable(guided=False)", ("joined_cls_attention", "joined_keys")),
        ("tome(stage=input)", ()),
        ("pool", ()),
        ("vtc-cls", ("cls_attention",)),
    ],
)
def test_options_decide(given, reads):
    assert read_spec(given, LLAVA).reads == reads


@pytest.mark.parametrize(
    ("given", "prunes"),
    [
        ("divprune", ("image",)),
        ("divprune(scope=crop)", ("image", "video")),
        ("divprune(scope=frame)", ("image", "video")),
        ("vtc-cls", ("image", "video")),  # which chooses crop by crop, and a clip's crops are its frames
        ("fastvid", ()),
    ],
)
def test_clips_with_words_between_their_frames(given, prunes):
    """How many tokens each frame keeps has to be known; elsewhere it does not matter."""
    if prunes:
        assert read_spec(given, FRAMED).prunes == prunes
    else:
        said = f"{given} acts on videos, and vtc's plug-in for vLLM prunes pictures and videos with scope=frame of"
        assert said in refused(read_spec, given, FRAMED)
    assert "video" in read_spec(given, QWEN).prunes


class Neighbourly(vtc.Method):
    """Looks at what else there is."""

    heeds_others = True

    def score(self, tokens: vtc.VisualTokens) -> Any:
        return tokens.features[:, 0]


class Entropic(Neighbourly):
    """Reads pixels."""

    heeds_others = False
    needs = ("patch_entropy",)


@pytest.mark.parametrize(("cls", "part"), [(Neighbourly, "alone in its prompt"), (Entropic, "reads 'patch_entropy'")])
def test_methods_of_a_users_own_are_asked_themselves(cls, part, monkeypatch):
    from vtc.methods.base import registry

    monkeypatch.setitem(registry._METHODS, "own", type("Own", (cls,), {}))
    monkeypatch.setattr(registry._METHODS["own"], "name", "own")
    assert part in refused(read_spec, "own", LLAVA)


# --- what was asked for ---------------------------------------------------------------------------------------------


def test_forms_of_the_same(monkeypatch):
    given = {"method": "divprune", "keep": 64}
    spec = spec_of(config(vtc=given))
    assert (spec.name, spec.keep, spec.family) == ("divprune", 64, LLAVA)
    assert spec == read_spec("divprune(keep=64)", LLAVA) == read_spec({"method": "divprune(keep=9)", "keep": 64}, LLAVA)
    assert str(spec) == "divprune(keep=64, positions=compact)"
    for text in (json.dumps(given), "divprune(keep=64)"):
        monkeypatch.setenv(VARIABLE, text)
        assert spec_of(config()) == spec == spec_of(config(vtc=None))
    monkeypatch.setenv(VARIABLE, "pool")
    assert spec_of(config(vtc=given)) == spec  # the flag wins


def test_the_methods_own_budget_and_lists_out_of_json():
    assert read_spec("divprune", LLAVA).keep == vtc.DivPrune().keep
    spec = read_spec({"method": "vqtoken", "cells": [1, 2, 2]}, LLAVA)
    assert spec.options["cells"] == (1, 2, 2)
    assert spec.method == vtc.VQToken(cells=(1, 2, 2), positions="compact")


def test_positions_are_the_familys():
    assert read_spec("divprune", QWEN).method.positions == "original"
    assert read_spec("random(positions=compact)", LLAVA).method.positions == "compact"
    assert 'positions="compact" cannot be had for qwen2_5_vl' in refused(read_spec, "pool(positions=compact)", QWEN)
    assert 'positions="original" cannot be had for llava' in refused(read_spec, "pool(positions=original)", LLAVA)
    assert "is not one of" in refused(read_spec, "pool(positions=middle)", LLAVA)


@pytest.mark.parametrize(
    ("given", "part"),
    [
        ("divprun", "there is no method 'divprun'. Did you mean 'divprune'?"),
        ("nothing-of-the-sort", "There are: adakv, "),
        ("divprune + pool", "are several methods"),
        ("divprune(keep=64", "does not name a method"),
        ({"method": "divprune", "kep": 64}, "divprune has no option 'kep'"),
        ({"method": "divprune", "keep": 0}, "keep=0 is not"),
        ({"method": "divprune", "keep": 1.5}, "keep=1.5 is not"),
        ({"method": "divprune", "keep": "64"}, "keep='64' is not"),
        ({"method": "divprune", "keep": True}, "keep=True is not"),
        ({"method": "divprune", "keep": None}, "keep=None is not"),
        ({"method": "divprune", "keep": {"a": 1}}, "is no value: expected a number"),
        ({"method": "pool", "scope": "page"}, "scope='page' is not one of"),
        ({"methd": "divprune"}, 'names no method: expected {"method": "divprune", "keep": 64}. Did you mean'),
        ({"keep": 64}, "names no method"),
        ({"method": 3}, "names no method"),
        ({"method": ""}, "names no method"),
        ([], "is []: expected {"),
        (64, "is 64: expected {"),
        ({"method": "vqtoken", "weights": "none"}, "none"),
    ],
)
def test_what_is_no_specification(given, part):
    assert part in refused(spec_of, config(vtc=given))


def test_no_method_at_all_and_broken_json(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    assert "was given no method: pass --hf-overrides" in refused(spec_of, config())
    for text in ('{"method": "divprune"', "{'method': 'divprune'}"):
        monkeypatch.setenv(VARIABLE, text)
        assert f"{VARIABLE}=" in refused(spec_of, config())
        assert "is not JSON" in refused(spec_of, config())


def test_models_and_towers_without_facts():
    assert "serves no 'lava': it serves llava, " in refused(spec_of, config("lava"))
    assert "Did you mean 'llava'?" in refused(spec_of, config("lava"))
    said = refused(spec_of, config("llava", "pixtral", vtc="divprune"))
    assert said == (
        "the vision tower of this llava is a 'pixtral', of which vtc's plug-in for vLLM has no facts: it has of "
        "clip_vision_model, siglip_vision_model."
    )
    assert spec_of(config("qwen2_5_vl", "qwen2_5_vl", vtc="divprune")).family is QWEN


# --- counts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keep", "total", "count"), [(64, 576, 64), (64, 40, 40), (0.2, 144, 29), (0.001, 100, 1), (1.0, 77, 77)]
)
def test_fractions_counts_and_caps(keep, total, count):
    assert read_spec({"method": "divprune", "keep": keep}, LLAVA).count(total) == count


def test_tokens_of_every_picture():
    own = {"model_type": "llava", "vision_config": {"image_size": 336, "patch_size": 14, "model_type": LLAVA.towers[0]}}
    assert tokens_of_every_picture(own) == 576
    assert tokens_of_every_picture({**own, "vision_feature_select_strategy": "default"}) == 576
    assert tokens_of_every_picture({**own, "vision_feature_select_strategy": "full"}) == 577
    assert tokens_of_every_picture({"model_type": "qwen2_5_vl", "vision_config": {"patch_size": 14}}) is None
    assert tokens_of_every_picture({"model_type": "llava"}) is None


def test_a_count_above_any_picture_is_refused():
    spec = read_spec({"method": "divprune", "keep": 600}, LLAVA)
    assert "keep=600 is more than the 576 visual tokens" in refused(refuse.check_budget, spec, 576)
    refuse.check_budget(spec, 600)
    refuse.check_budget(read_spec({"method": "divprune", "keep": 1.0}, LLAVA), 1)


def test_the_line_at_start():
    spec = read_spec({"method": "divprune", "keep": 64}, LLAVA)
    line = "vtc divprune(keep=64, positions=compact): 64 of 576 visual tokens of each picture stay"
    assert refuse.start_line(spec, 576, fixed=True) == line
    spec = read_spec({"method": "vtc-cls", "keep": 0.25}, QWEN)
    line = "vtc vtc-cls(keep=0.25, positions=original): 256 of 1024 visual tokens of the largest picture stay"
    assert refuse.start_line(spec, 1024, fixed=False).startswith(line)


# --- vLLM's own settings --------------------------------------------------------------------------------------------


def engine(**more: Any) -> Any:
    """A VllmConfig with nothing out of the ordinary, but for what is given, "group__name"."""
    groups: dict[str, dict[str, Any]] = {
        "parallel": {"tensor_parallel_size": 1, "pipeline_parallel_size": 1, "prefill_context_parallel_size": 1},
        "media": {"video_pruning_rate": None, "enable_mm_embeds": False, "mm_encoder_tp_mode": "weights"},
        "compilation": {"compile_mm_encoder": False, "cudagraph_mm_encoder": False},
    }
    for name, value in more.items():
        group, _, setting = name.partition("__")
        groups[group][setting] = value
    own = {group: SimpleNamespace(**settings) for group, settings in groups.items() if group != "own"}
    return SimpleNamespace(
        parallel_config=own["parallel"],
        model_config=SimpleNamespace(multimodal_config=own["media"]),
        compilation_config=own["compilation"],
        speculative_config=None,
    )


ANY, ATTENTION, ORIGINAL = read_spec("divprune", LLAVA), read_spec("vtc-cls", LLAVA), read_spec("divprune", QWEN)


@pytest.mark.parametrize(
    ("setting", "spec", "part"),
    [
        ({"media__video_pruning_rate": 0.5}, ANY, "--video-pruning-rate is vLLM's own pruning"),
        ({"media__enable_mm_embeds": True}, ANY, "--enable-mm-embeds lets requests bring"),
        ({"compilation__compile_mm_encoder": True}, ANY, "compile_mm_encoder compiles"),
        ({"compilation__cudagraph_mm_encoder": True}, ANY, "cudagraph_mm_encoder replays"),
        ({"parallel__tensor_parallel_size": 2}, ATTENTION, "spreads over 2 devices: set --tensor-parallel-size 1"),
        ({"media__mm_encoder_tp_mode": "data"}, ATTENTION, "--mm-encoder-tp-mode data"),
        ({"parallel__pipeline_parallel_size": 2}, ORIGINAL, "--pipeline-parallel-size above 1"),
        ({"parallel__prefill_context_parallel_size": 2}, ORIGINAL, "prefill context parallelism"),
        ({"parallel__use_ubatching": True}, ORIGINAL, "micro-batches (--enable-dbo)"),
    ],
)
def test_settings_that_will_not_do(setting, spec, part):
    assert part in refused(refuse.check_engine, spec, engine(**setting))
    others = [one for one in (ANY, ATTENTION, ORIGINAL) if spec is not ANY and one is not spec]
    for other in others:  # it is said of those alone whom it harms
        refuse.check_engine(other, engine(**setting))


def test_speculation_and_nothing_out_of_the_ordinary():
    for spec in (ANY, ATTENTION, ORIGINAL):
        refuse.check_engine(spec, engine())
    own = engine()
    own.speculative_config = object()
    assert "speculative decoding" in refused(refuse.check_engine, ORIGINAL, own)
    refuse.check_engine(ANY, own)


@pytest.mark.parametrize(("version", "within"), [("0.32.0", True), ("0.32.4", True), ("0.32.1+cpu", True)])
def test_versions(version, within):
    assert (refuse.check_version(version) == "") is within
    for other in ("0.31.9", "0.33.0", "1.0"):
        assert refuse.check_version(other) == (
            f"vtc's plug-in is tested with vLLM 0.32, and {other} is installed: outcomes may differ."
        )


@pytest.mark.parametrize("name", ["vtc", "keep", "method"])
def test_budgets_of_requests(name):
    assert f"hold {name!r}" in refused(refuse.check_request, {name: 1})
    refuse.check_request({"max_pixels": 1})


# --- the flag -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["divprune(keep=64)", "todre(keep=0.1, tau=None)", "vqtoken(cells=(1, 2, 2))"])
def test_the_flag_is_read_back(text):
    spec = read_spec(text, QWEN)
    name, value = spec.flag()
    assert name == "--hf-overrides"
    assert " " not in value
    read = json.loads(value)
    assert read["architectures"] == ["VtcQwen2_5_VLForConditionalGeneration"]
    assert "positions" not in read["vtc"]
    assert read_spec(read["vtc"], QWEN) == spec


def test_nothing_heavy_is_imported():
    code = (
        "import sys\nfrom vtc.serving.vllm.contract import read_spec\nfrom vtc.serving.vllm.families import FAMILIES\n"
        "read_spec('divprune(keep=3)', FAMILIES['llava'])\n"
        "assert not {'torch', 'vllm', 'transformers'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_families_name_classes_of_their_own():
    for model_type, family in FAMILIES.items():
        assert family.model_type == model_type
        assert family.architecture == f"Vtc{family.stock}"
        assert family.place.startswith("vtc.serving.vllm.")
    assert len({family.architecture for family in FAMILIES.values()}) == len(FAMILIES)
    assert contract.family_of("llava") is LLAVA
