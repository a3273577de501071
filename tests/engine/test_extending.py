"""From outside the package, a few lines each: a stage, signals, a vision tower, a language model, a family."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import LlavaConfig, LlavaForConditionalGeneration
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.clip.modeling_clip import eager_attention_forward

import vtc
from tests.engine.test_engine import traces
from tests.engine.test_oracle import GREEDY, assert_rows_equal
from tests.families import FAMILIES, IMAGE, batch, model_of
from tests.models.test_decoders import Halves, pictures, toy
from tests.models.toy_decoder import ToyDecoder
from tests.oracle import decisions, oracle
from vtc import signals, stages
from vtc.engine import stage
from vtc.engine.stage import Run, Stage
from vtc.methods.base import registry as methods
from vtc.models import decoder, register_decoder, register_tower, registry, tower
from vtc.models.tower import Tower
from vtc.signals import Signal, register_signal
from vtc.stages import stage_names

ROWS: list[list[int | str]] = [[0], [1, 2], []]


@pytest.fixture(autouse=True)
def _everything_registered_is_removed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    stage.stages()  # those that ship are there from now on
    tables: list[Any] = [stages._TABLE, signals._TABLE, methods._METHODS, registry._ADAPTERS]
    tables += [tower._TOWERS, decoder._DECODERS]
    before, known = [dict(table) for table in tables], list(stage._STAGES)
    yield
    for table, old in zip(tables, before, strict=True):
        table.clear()
        table.update(old)
    stage._STAGES[:] = known


# -- a stage -------------------------------------------------------------------------------------------------------


def make_door() -> type[vtc.Method]:
    """A base class of methods of the stage `door`, which is refused as long as there is no such stage."""

    class DoorMethod(vtc.Method):
        stage = "door"

    return DoorMethod


def open_door() -> type[Stage]:
    """The stage: at the language model's door, once the stage `input` has gone by; every second token by default."""

    class DoorRun(Run):
        def enter(self, kwargs: dict[str, Any]) -> None:
            flow = self.forward.flow
            if flow is None or not flow.spans:
                return
            embeds = kwargs["inputs_embeds"]
            for method in self.stage.methods:
                seen = zip(flow.spans, flow.where, flow.index, strict=True)
                chosen = [
                    method.select(
                        vtc.VisualTokens(embeds[s.row, where], s, index, self.forward.tower(method, s))
                    ).check()
                    for s, where, index in seen
                ]
                before = sum(map(len, flow.where))
                embeds = flow.shorten(embeds, chosen, 0)
                plan = flow.part.plan
                if self.forward.companions is not None and plan is not None:
                    self.forward.companions.shorten(plan, 0)
                self.forward.trace.steps.append((0, chosen))
                self.forward.trace.note_stage(method.title, None, before, sum(map(len, flow.where)), [])
            kwargs["inputs_embeds"] = embeds

    class DoorStage(Stage):
        name, order, run = "door", 25, DoorRun
        base, can_merge = "DoorMethod", False

    return DoorStage


def every_second(base: type[vtc.Method]) -> vtc.Method:
    class EverySecond(base):  # type: ignore[misc,valid-type]
        def select(self, tokens: vtc.VisualTokens) -> vtc.Selection:
            total = len(tokens.features)
            return vtc.Selection.prune(torch.arange(0, total, 2), total)

    return EverySecond()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_stage(family: str) -> None:
    """On every family it equals the masked full-length model, and, behind the stage `input`, its method put there."""
    open_door()
    model, inputs = model_of(family), batch(family, ROWS)
    model(**inputs)  # transformers places hooks of its own in a first forward
    seen = traces(model)
    door, inside = every_second(make_door()), vtc.FastV(keep=0.1, layers=(2,))
    with vtc.wrapped(model, [door, inside]):
        logits = model(**inputs).logits
        made, ids = decisions(model), model.generate(**inputs, **GREEDY)
    with oracle(model, made, len(ROWS), False):
        assert_rows_equal(logits, model(**inputs).logits, inputs["attention_mask"].bool(), made)
        assert ids.equal(model.generate(**inputs, **GREEDY))
    with vtc.wrapped(model, [vtc.DivPrune(keep=0.5), every_second(vtc.Method), inside]):
        expected, ids = model(**inputs).logits, model.generate(**inputs, **GREEDY)
    with vtc.wrapped(model, [vtc.DivPrune(keep=0.5), door, inside]):
        assert model(**inputs).logits.equal(expected)
        report = vtc.report(model)
        assert model.generate(**inputs, **GREEDY).equal(ids)
    assert [one.name for one in report.stages] == ["divprune", "EverySecond", "fastv"]
    assert [one.tokens_in for one in report.stages[1:]] == [one.tokens_out for one in report.stages[:2]]
    assert traces(model) == seen


def test_a_stage_is_a_name_to_methods_once_it_is_there() -> None:
    says = r"^DoorMethod\.stage is 'door'; expected one of pixels, encoder, input, layer, cache\.$"
    with pytest.raises(ValueError, match=says):
        make_door()
    open_door()
    assert stage_names() == ("pixels", "encoder", "input", "door", "layer", "cache")
    base = make_door()
    with pytest.raises(
        TypeError, match=r"^Late derives from DoorMethod, but its stage is 'layer': derive it from vtc\."
    ):
        type("Late", (base,), {"stage": "layer"})
    with pytest.raises(
        TypeError, match=r"^Late derives from vtc\.Method, .* 'door': derive it from DoorMethod, or leave"
    ):
        type("Late", (vtc.Method,), {"stage": "door"})
    with pytest.raises(
        ValueError, match=r"^methods of stage 'door' derive from DoorMethod, not Method; choose another"
    ):
        type("Other", (Stage,), {"name": "door", "order": 27})


def test_a_stage_of_ones_own_refuses_what_ours_refuse() -> None:
    open_door()
    base, model = make_door(), model_of("llava")
    late, merging = every_second(base), type("Merging", (base,), {"merges": True, "select": lambda self, x: x})()
    with pytest.raises(ValueError, match="input before door before layer before cache"):
        vtc.wrap(model, [late, vtc.DivPrune(keep=0.5)])
    with pytest.raises(ValueError, match=r"^Merging merges tokens, which the stage 'door' cannot: .*\.$"):
        vtc.wrap(model, merging)
    with pytest.raises(ValueError, match="not wrapped"):
        vtc.report(model)


def test_a_method_whose_stage_nothing_runs_is_refused_at_wrap() -> None:
    stages.register_stage("nowhere", 50)
    says = "works at stage 'nowhere', which nothing runs; there are pixels, encoder, input, layer, cache"
    with pytest.raises(ValueError, match=says):
        vtc.wrap(model_of("llava"), type("Lost", (vtc.DivPrune,), {"stage": "nowhere"})(keep=0.5))


# -- signals -------------------------------------------------------------------------------------------------------


def listener(base: type[vtc.Method], signal: str, **options: Any) -> tuple[vtc.Method, list[Tensor]]:
    """A method that keeps what a signal ranks first, and what it has read."""
    heard: list[Tensor] = []

    @dataclass(frozen=True, kw_only=True)
    class Listener(base):  # type: ignore[misc,valid-type]
        needs = (signal,)

        def score(self, tokens: vtc.VisualTokens) -> Tensor:
            heard.append(tokens.signal(signal))
            return heard[-1] if heard[-1].dim() == 1 else heard[-1].mean(dim=0)

    return Listener(keep=0.3, **options), heard


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "internvl"])
def test_a_signal_of_a_decoder_layer(family: str) -> None:
    """The attention that the first text token behind the pictures gives each visual token, layer by layer."""
    register_signal(
        Signal(
            "first_word",
            ("N",),
            "layer",
            "attention of the first text token after the row's pictures",
            lambda layer, span: layer.view.rows(layer.flow.text_after[:, :1])[layer.row(span), 0, layer.keys_of(span)],
            attention=True,
        )
    )
    method, heard = listener(vtc.LayerMethod, "first_word", layers=(2,))
    model, inputs = model_of(family, "eager"), batch(family, [[0], [1]])
    expected = model(**inputs, output_attentions=True).attentions[2].mean(dim=1)  # [B, L, L]
    with vtc.wrapped(model, method):
        model(**inputs)
        kept = [span.kept.tolist() for span in vtc.report(model).spans]
    for row in range(2):
        places = (inputs["input_ids"][row] == IMAGE).nonzero()[:, 0]
        there = inputs["attention_mask"][row].bool()
        word = next(i for i in range(int(places[-1]) + 1, len(there)) if there[i])
        torch.testing.assert_close(heard[row], expected[row, word, places], atol=1e-5, rtol=1e-5)
        assert kept[row] == vtc.top_k(expected[row, word, places], len(kept[row])).tolist()


def test_a_signal_of_the_tower() -> None:
    """The largest attention that any head of the CLS token gives each patch."""
    register_signal(
        Signal(
            "cls_peak",
            ("L", "N"),
            "tower",
            "largest attention of any head of the CLS token",
            lambda segment: (segment.q[:, :, :1] @ segment.k.mT * segment.scale).softmax(dim=-1).amax(dim=1)[:, 0],
            attention=True,
        )
    )
    method, heard = listener(vtc.Method, "cls_peak")
    model, inputs = model_of("llava", "eager"), batch("llava", [[0], [1]])
    weights = model.model.vision_tower(inputs["pixel_values"], output_attentions=True).attentions[1]  # [B, H, T, T]
    with vtc.wrapped(model, method):
        model(**inputs)
        assert vtc.report(model).tokens_out == 22
    torch.testing.assert_close(torch.cat(heard), weights[:, :, 0, 1:].amax(dim=1), atol=1e-5, rtol=1e-5)


def test_a_signal_is_a_name_to_methods_once_it_is_there() -> None:
    with pytest.raises(ValueError, match="'first_word', which is not a signal"):
        listener(vtc.LayerMethod, "first_word", layers=(2,))
    with pytest.raises(ValueError, match=r"^there is a signal 'keys' already; choose another name\.$"):
        register_signal(Signal("keys", ("N",), "tower", "another"))
    with pytest.raises(ValueError, match=r"^mine is measured at 'nowhere'; expected one of tower, "):
        register_signal(Signal("mine", ("N",), "nowhere", "mine"))


# -- a tower -------------------------------------------------------------------------------------------------------


class FusedAttention(nn.Module):
    """An attention whose keys come first in one projection, with its own scale."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config, self.heads, self.is_causal = config, config.num_attention_heads, False
        self.kqv = nn.Linear(config.hidden_size, 3 * config.hidden_size)

    def forward(self, hidden_states: Tensor, attention_mask: Any = None, **kwargs: Any) -> tuple[Tensor, Any]:
        k, q, v = self.kqv(hidden_states).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        out, weights = attend(self, q, k, v, attention_mask, scaling=0.5, dropout=0.0)
        return out.flatten(-2), weights


class FusedTower(Tower):
    model_types = ("fused_vision",)
    has_cls = True

    def projections(self, attention: Any) -> tuple[nn.Module, nn.Module]:
        return attention.kqv, attention.kqv

    def queries_keys(self, attention: Any, q: Tensor, k: Tensor, inputs: Any, grid_thw: Any) -> Any:
        keys, queries, _ = q.unflatten(-1, (3, attention.heads, -1)).permute(2, 0, 3, 1, 4)
        return [(queries * 0.5 * queries.shape[-1] ** 0.5, keys)]


def test_a_tower() -> None:
    model, inputs = copy.deepcopy(model_of("llava", "eager")), batch("llava", [[0], [1]])
    vision: Any = model.model.vision_tower
    torch.manual_seed(0)
    for layer in vision.encoder.layers:
        layer.self_attn = FusedAttention(vision.config)
    vision.config.model_type = "fused_vision"
    recorded: dict[int, Tensor] = {}
    vision.encoder.layers[1].self_attn.register_forward_hook(lambda _, args, out: recorded.update({0: out[1]}))
    with pytest.raises(ValueError, match=r"tower 'fused_vision' is not supported"):
        vtc.wrap(model, "vtc-cls", keep=0.3)
    register_tower(FusedTower)
    with vtc.wrapped(model, vtc.VTCCLS(keep=8, start_layer=1)):
        model(**inputs)
        kept = [span.kept.tolist() for span in vtc.report(model).spans]
    cls = recorded[0].mean(dim=1)[:, 0, 1:]  # [B, N]
    assert kept == [vtc.top_k(row, 8).tolist() for row in cls]


# -- a language model ----------------------------------------------------------------------------------------------


def test_a_decoder() -> None:
    """Right facts are accepted and read what the model attends to; wrong ones, or none, are refused at wrap."""
    model, inputs = toy(), pictures()
    for wrong in (None, Halves):
        if wrong is not None:
            register_decoder(wrong)
        with pytest.raises(ValueError, match=r"works inside the language model \(toy_text\).*register_decoder\.$"):
            vtc.wrap(model, vtc.FastV(keep=9, layers=(2,)))
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    register_decoder(ToyDecoder)
    attention = model(**inputs, output_attentions=True).attentions[1].mean(dim=1)[:, -1]  # [B, L]
    with vtc.wrapped(model, vtc.FastV(keep=9, layers=(2,))):
        model(**inputs)
        kept = [span.kept.tolist() for span in vtc.report(model).spans]
    heard = [attention[row, inputs["input_ids"][row] == IMAGE] for row in range(2)]
    assert kept == [vtc.top_k(one, 9).tolist() for one in heard]


# -- a family ------------------------------------------------------------------------------------------------------


class OtherConfig(LlavaConfig):
    model_type = "other_vl"


class OtherForConditionalGeneration(LlavaForConditionalGeneration):
    config_class = OtherConfig


class OtherAdapter(vtc.Adapter):
    model_types = ("other_vl",)

    def layout(self, model: nn.Module, features: Tensor, known: Any) -> Any:
        return vtc.square_layout(len(features))


def test_a_family() -> None:
    like, inputs = model_of("llava"), batch("llava", [[0], [1]])
    model = OtherForConditionalGeneration(OtherConfig(**like.config.to_dict() | {"model_type": "other_vl"})).eval()
    model.load_state_dict(like.state_dict())
    with pytest.raises(ValueError, match="is of no listed family"):
        vtc.wrap(model, "vtc-cls", keep=0.3)
    assert vtc.register_adapter(OtherAdapter) is OtherAdapter
    assert "other_vl" in vtc.list_families()
    for method in ("vtc-cls", "fastv", "h2o"):
        with vtc.wrapped(like, method, keep=0.3), vtc.wrapped(model, method, keep=0.3):
            assert model(**inputs).logits.equal(like(**inputs).logits)
            assert vtc.report(model).tokens_by_layer == vtc.report(like).tokens_by_layer


# -- a method ------------------------------------------------------------------------------------------------------


def test_a_subclass_that_scores_for_itself_is_asked_picture_by_picture() -> None:
    """Its parent's score takes several pictures at once; its own need not."""

    class Louder(vtc.FastV):
        def score(self, tokens: vtc.VisualTokens) -> torch.Tensor:
            return tokens.signal("last_attention") * tokens.features.norm(dim=-1)

    class Asked(Louder):
        def select(self, tokens: vtc.VisualTokens) -> vtc.Selection:
            return vtc.Selection.prune(vtc.top_k(self.score(tokens), self.count(tokens)), len(tokens.features))

    model, kept = model_of("llava"), []
    for method in (Louder, Asked):
        with vtc.wrapped(model, method(keep=6, layers=(1,))):
            model(**batch("llava", [[0], [1]]))
            kept.append([span.kept.tolist() for span in vtc.report(model).spans])
    assert vtc.FastV.stacks
    assert not Louder.stacks
    assert kept[0] == kept[1]


def test_what_a_method_returns_must_fit_its_tokens() -> None:
    class Elsewhere(vtc.Method):
        def select(self, tokens: vtc.VisualTokens) -> vtc.Selection:
            return vtc.Selection.prune(torch.tensor([40]), 50)

    class Stacks(vtc.Method):
        needs, stacks = ("cls_attention",), True

        def score(self, tokens: vtc.VisualTokens) -> torch.Tensor:
            return tokens.signal("cls_attention").sum(dim=(0, 1))

    class Heard(vtc.H2O):
        stacks = True

        def score(self, tokens: vtc.VisualTokens) -> torch.Tensor:
            return tokens.signal("attention_record").sum(dim=0)

    model, inputs = model_of("llava"), batch("llava", [[0], [1]])
    for method, says in (
        (Elsewhere(), r"Elsewhere returned a Selection of 50 tokens for 36: .*len\(tokens.features\)\.$"),
        (Stacks(), r"score\(tokens\) of Stacks, which stacks, returned shape \(36,\); expected \(2, 36\)\.$"),
        (
            Heard(keep=4),
            r"score\(tokens\) of .*which stacks, returned shape \(2, 36\); expected \(3, 2, 36\), or \(36,\)",
        ),
    ):
        with vtc.wrapped(model, method), pytest.raises(ValueError, match=says):
            model(**inputs, use_cache=True)
