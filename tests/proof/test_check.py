"""`vtc.check` on models that are right, and on ones with one planted fault each."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForImageTextToText

import vtc
from tests.families import EVERY, IMAGE, START, TEXT, VISION, batch, model_of
from tests.sweep import refused
from vtc.engine.companions import CompanionRows
from vtc.engine.plan import Plan
from vtc.models import registry
from vtc.models.decoder import Decoder
from vtc.models.default import DefaultAdapter
from vtc.models.tower import Tower, tower_for

ROWS: Any = [[0], [1, 2]]
STAGES: dict[str, Any] = {
    "divprune": 0.5,
    "tome": 0.3,
    "fastv(layers=(1,))": 0.4,
    "h2o": 0.4,
    "vtc-cls + transprune(keep=0.2, layers=(1, 2))": None,
}


def checked(family: str, method: str = "divprune", keep: Any = None, **more: Any) -> vtc.Checked:
    return vtc.check(model_of(family), method, keep, inputs=batch(family, ROWS), show=None, **more)


@pytest.mark.parametrize("method", STAGES)
@pytest.mark.parametrize("family", ["llava", "qwen3_vl", "mistral3"])
def test_right_models_are_found_right(family: str, method: str) -> None:
    found = checked(family, method, STAGES[method])
    assert found.ok, found
    assert all(one.ok for one in found.comparisons)
    limits = [one for one in found.comparisons if one.error is not None and one.limit is not None]
    assert len(limits) >= 4


@pytest.mark.parametrize("family", EVERY)
def test_every_family(family: str) -> None:
    found = checked(family)
    assert found.ok, found
    assert found.of("decoder").ok
    assert found.of("generation").ok


@pytest.mark.parametrize("method", ["pixelprune", "tome(stage=encoder)"])
def test_methods_before_and_inside_the_tower(method: str) -> None:
    found = checked("llava", method, 0.5)
    assert found.ok, found


def test_what_it_prints(capsys: pytest.CaptureFixture[str]) -> None:
    model = model_of("llava")
    vtc.wrap(model, "random", keep=0.2)
    found = vtc.check(model, "divprune", 0.5, inputs=batch("llava", ROWS))
    said = capsys.readouterr().out
    assert said.strip() == str(found)
    assert max(map(len, said.splitlines())) <= 100
    assert vtc.report(model) is not None  # it is wrapped as before
    assert model.config._attn_implementation == "sdpa"
    vtc.unwrap(model)


def test_nothing_to_ask() -> None:
    with pytest.raises(ValueError, match=r"^vtc.check needs something to ask: give processor=, or inputs=.*\.$"):
        vtc.check(model_of("llava"))


# -- planted faults --------------------------------------------------------------------------------------------


def wrong(found: vtc.Checked) -> set[str]:
    return {one.name for one in found.comparisons if one.ok is False}


def test_a_fault_of_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is left is numbered anew, though the tokens' own positions were asked for."""
    true = Plan.positions
    monkeypatch.setattr(Plan, "positions", lambda self, ids, compact: true(self, ids, True))
    found = checked("llava")
    assert {"some dropped"} <= wrong(found) <= {"some dropped", "generation"}
    assert not found.ok


def test_a_fault_of_rotary_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    """A family whose positions are (t, h, w) rows, said to count tokens."""
    monkeypatch.setattr(type(registry.adapter_of("glm4v")), "mrope", False)
    assert not checked("glm4v").ok


def test_a_fault_of_the_rotation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Queries and keys that are read without it."""
    monkeypatch.setattr(Decoder, "rotated", lambda self, attention, x, tables: x)
    found = checked("llava")
    assert wrong(found) == {"decoder"}
    assert (found.of("decoder").error or 0.0) > 1e-2


def test_a_fault_of_the_tower(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures that lie in one row, read as if they saw each other."""
    monkeypatch.setattr(type(tower_for(model_of("mistral3").model.vision_tower)), "queries_keys", _together)
    assert wrong(checked("mistral3")) == {"tower"}


def _together(self: Tower, attention: Any, q: Any, k: Any, inputs: Any, grid: Any) -> Any:
    queries, keys = self.heads(attention, q, k)
    return [(queries, keys)]


def test_a_fault_of_the_window(monkeypatch: pytest.MonkeyPatch) -> None:
    """A language model that sees 16 tokens back, said to see everything: what is left moves into the window."""
    config = AutoConfig.for_model(
        "llava",
        vision_config={"model_type": "clip_vision_model", **VISION, "projection_dim": 16},
        text_config={"model_type": "mistral", **TEXT, "sliding_window": 16},
        image_token_index=IMAGE,
    )
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(config).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.25)
    monkeypatch.setattr(Decoder, "kinds", lambda self, config: ["full_attention"] * config.num_hidden_layers)
    found = vtc.check(model, "divprune", 0.5, inputs=batch("llava", ROWS), show=None)
    assert {"some dropped"} <= wrong(found)


@pytest.mark.parametrize("family", ["qwen3_vl", "granite4_vision"])
def test_a_fault_of_what_travels(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that decoder layers add to visual tokens: those of others, where tokens go before the language model; those
    of the layer before, where they go inside it."""
    monkeypatch.setattr(Plan, "merged", lambda self, rows: rows[: len(self.taken)])
    assert "some dropped" in wrong(checked(family))
    assert checked(family, "h2o", 0.4).ok
    monkeypatch.undo()
    true = CompanionRows.add
    monkeypatch.setattr(CompanionRows, "add", lambda self, layer, hidden: true(self, layer - 1, hidden))
    assert {"everything kept", "some dropped"} <= wrong(checked(family, "fastv(layers=(1,))"))


def test_a_fault_of_where_it_is_added(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that are added before layers, said to be added behind them."""
    true = registry.adapter_of("granite4_vision").companions
    assert true is not None
    told = replace(true, before=False)
    monkeypatch.setattr(type(registry.adapter_of("granite4_vision")), "companions", told)
    assert "placeholders" in wrong(checked("granite4_vision"))


@pytest.mark.parametrize("token", [START, 10])
def test_a_fault_of_the_placeholder(monkeypatch: pytest.MonkeyPatch, token: int) -> None:
    """Another word is taken for the picture's."""
    monkeypatch.setattr(DefaultAdapter, "token_id", lambda self, model, modality: token)
    inputs = batch("deepseek_vl", ROWS)
    found = vtc.check(model_of("deepseek_vl"), "divprune", 0.5, inputs=inputs, show=None)
    assert "placeholders" in wrong(found)
    assert not found.ok


@pytest.mark.parametrize("method", ["snapkv", "adakv", "lookm", "minicache"])
def test_rows_of_a_heads_own_are_not_said_to_be_wrong(method: str) -> None:
    """What decode steps read is then nothing that hiding tokens could make; their own oracle judges it."""
    found = vtc.check(model_of("llava"), method, inputs=batch("llava", ROWS), show=None)
    assert not wrong(found)
    assert found.ok == (method != "minicache")  # of which no token goes: nothing that is dropped shows it to be right
    assert "heads or layers hold rows of their own making" in str(found.of("generation"))


@pytest.mark.parametrize("method", ["h2o", "pyramidkv(per_head=False)"])
def test_rows_that_all_heads_hold_are_compared(method: str) -> None:
    found = vtc.check(model_of("llava"), method, inputs=batch("llava", ROWS), show=None)
    assert found.of("generation").ok


# -- family="auto" ---------------------------------------------------------------------------------------------


def unlisted(family: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(registry, "_ADAPTERS", {k: v for k, v in registry._ADAPTERS.items() if k != family})
    return model_of(family)


@pytest.mark.parametrize("family", ["deepseek_vl", "janus", "glm4v", "paddleocr_vl", "aria", "emu3", "ovis2"])
def test_a_model_of_no_listed_family(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = unlisted(family, monkeypatch), batch(family, ROWS)
    with pytest.raises(ValueError, match=r'is of no listed family: try it with family="auto", and prove it with vtc\.'):
        vtc.wrap(model, "divprune")
    for method in ("divprune", "fastv(layers=(1,))", "h2o"):
        assert vtc.check(model, method, 0.5, inputs=inputs, family="auto", show=None).ok


def test_auto_refuses_what_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    model = copy.deepcopy(unlisted("deepseek_vl", monkeypatch))
    del model.model.vision_model
    with pytest.raises(ValueError, match="its vision tower is not where other models have it") as said:
        vtc.wrap(model, "divprune", family="auto")
    assert str(said.value).endswith(".")
    with pytest.raises(ValueError, match=r"family='llava' is none: leave it out, or give \"auto\""):
        vtc.wrap(model_of("llava"), "divprune", family="llava")


def test_a_mask_of_the_models_own_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """PaliGemma lets its prefix see itself: shortened as if it were causal, it would answer wrongly."""
    model, inputs = unlisted("paligemma", monkeypatch), batch("paligemma", [[0]])
    with pytest.raises(ValueError, match="is of no listed family"):
        vtc.wrap(model, "divprune")
    with (
        vtc.wrapped(model, "divprune", keep=0.5, family="auto"),
        refused(model, "makes an attention mask of its own", True),
    ):
        model(**inputs)
    found = vtc.check(model, "divprune", inputs=inputs, family="auto", show=None)
    assert not found.ok
    assert "makes an attention mask of its own" in str(found)


def test_values_per_token_that_nobody_has_declared(monkeypatch: pytest.MonkeyPatch) -> None:
    """ERNIE's kinds of experts, without the adapter that names them."""
    model, inputs = unlisted("ernie4_5_vl_moe", monkeypatch), batch("ernie4_5_vl_moe", ROWS)
    found = vtc.check(model, "divprune", inputs=inputs, family="auto", show=None)
    assert not found.ok
    assert "hands its language model moe_mm_token_type_ids" in str(found)
