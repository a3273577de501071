"""The stage `encoder` in vision-language models: what the language model reads, and what later stages are told."""

from __future__ import annotations

import threading
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

import vtc
from tests.families import FAMILIES, batch, model_of
from vtc.engine.tower_blocks import visit_here
from vtc.models import adapter_for
from vtc.models.tower import tower_for

FIXED = ["llava", "llava_siglip", "llava_next", "llava_next_video", "llava_onevision", "internvl"]
TOKENS = ["llava", "llava_siglip", "llava_next", "llava_next_video", "llava_onevision"]  # one patch each


def embeds_of(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    """What the language model reads."""
    found: list[Tensor] = []
    handle = model.model.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: found.append(kwargs["inputs_embeds"]), with_kwargs=True
    )
    model(**inputs)
    handle.remove()
    return found[0]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", TOKENS)
def test_the_language_model_reads_each_row_once(family: str, side: str) -> None:
    """The full-length features with copies in them, of which all but one are masked, give the same logits."""
    model, inputs = model_of(family), batch(family, [[0, 1], [2], []], side)
    with vtc.wrapped(model, vtc.ToMe(stage="encoder", keep=0.4, shorten=False)):
        embeds = embeds_of(model, inputs)
        assert vtc.report(model).tokens_out == vtc.report(model).tokens_in
    with vtc.wrapped(model, vtc.ToMe(stage="encoder", keep=0.4, positions="original")):
        logits = model(**inputs).logits
        report, spans = vtc.report(model), model._vtc_engine.trace.spans
    mask = inputs["attention_mask"].clone()
    for span, said in zip(spans, report.spans, strict=True):
        places = span.index
        rows = embeds[span.row, places]
        assert torch.equal(rows, rows[said.kept][said.source])  # copies are equal in every bit
        left = torch.ones(len(places), dtype=torch.long)
        left[said.kept] = 0
        mask[span.row, places[left.bool()]] = 0
        assert said.tokens_out < said.tokens_in or family == "llava_onevision"  # which scales this picture down
    length = embeds.shape[1]
    expected = model(
        inputs_embeds=embeds, attention_mask=mask, position_ids=torch.arange(length).expand(len(mask), -1)
    ).logits
    text = (inputs["input_ids"] > 5).bool()
    torch.testing.assert_close(logits[text], expected[text], atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_generation_and_the_report(family: str) -> None:
    model, inputs = model_of(family), batch(family, [[0], [1]])
    with vtc.wrapped(model, vtc.ToMe(stage="encoder", keep=0.5)):
        model.generate(**inputs, max_new_tokens=3)
        report = vtc.report(model)
    assert report.tower is not None
    full, kept = report.tower.flops
    assert kept < full
    assert "tower FLOPs" in str(report)
    if family == "llava_onevision":  # which scales both pictures down
        assert report.notes
    elif family in TOKENS:
        assert report.tokens_out < report.tokens_in
        assert not report.notes
    else:
        assert report.tokens_out == report.tokens_in
        assert "hands over all patches again" in report.notes[0]


@pytest.mark.parametrize("family", ["llava", "llava_siglip"])
def test_keep_is_exact_where_a_picture_is_one_crop(family: str) -> None:
    model, inputs = model_of(family), batch(family, [[0, 1]])
    with vtc.wrapped(model, vtc.ToMe(stage="encoder", keep=11)):
        model(**inputs)
        assert [span.tokens_out for span in vtc.report(model).spans] == [11, 11]


class Probe(vtc.Method):
    """Keeps what it is shown."""

    needs: ClassVar[tuple[str, ...]] = ("cls_attention", "received_attention", "joined_cls_attention", "keys")
    shown: ClassVar[list[dict[str, Tensor]]] = []

    def tower_layers(self, depth: int, feature_layer: int) -> tuple[int, ...]:
        return tuple(range(feature_layer + 1))

    def select(self, tokens: vtc.VisualTokens) -> vtc.Selection:
        self.shown.append({name: tokens.signal(name).clone() for name in self.needs})
        return vtc.Selection.identity(len(tokens.features))


@pytest.mark.parametrize("proportional", [True, False])
@pytest.mark.parametrize("family", ["llava", "llava_siglip", "internvl"])
def test_signals_of_later_layers_are_those_of_the_models_own_attention(
    family: str, proportional: bool, monkeypatch: Any
) -> None:
    """A row's attention is shared by the patches in it; spread like that, what eager attention says is what a method
    is told."""
    import sys

    model, inputs = model_of(family, "eager"), batch(family, [[0], [2]])
    facts, tower = tower_for(adapter_for(model).tower(model)), adapter_for(model).tower(model)
    attentions, said = facts.attentions(tower), []
    source = sys.modules[type(attentions[0]).__module__]
    eager = source.eager_attention_forward

    def spy(module: Any, query: Tensor, key: Tensor, *args: Any, **kwargs: Any) -> Any:
        output, weights = eager(module, query, key, *args, **kwargs)
        if module is attentions[1]:
            said.append((weights, (query[:, :, :1] * key).sum(dim=(1, 3)) / query[0, :, 0].numel() ** 0.5))
        return output, weights

    monkeypatch.setattr(source, "eager_attention_forward", spy)
    Probe.shown.clear()
    method = vtc.ToMe(stage="encoder", keep=0.4, proportional=proportional, shorten=False)
    with vtc.wrapped(model, [method, Probe()]):
        rows: list[Any] = []

        def before(module: Any, args: Any) -> None:
            visit = visit_here()
            assert visit is not None
            rows.append(visit.passed.rows)

        handle = attentions[1].register_forward_pre_hook(before)
        model(**inputs)
        handle.remove()
    ((weights, products),), (row,) = said, rows
    first, size = int(facts.has_cls), row.size
    for b in range(len(weights)):
        shared = weights[b].mean(dim=0) / size[b]  # [T, T], what each patch in a row attracts
        queries = row.shown[b]
        received = shared[queries].mean(dim=0)[queries][first:]
        cls = shared[0][queries][first:] if first else received
        logits = products[b] + size[b].log() * proportional
        joined = (logits.softmax(dim=-1) / size[b])[queries][first:] if first else received
        shown = Probe.shown[b]
        if family == "internvl":
            side = round(len(received) ** 0.5)
            fold = lambda x: x.view(side // 2, 2, side // 2, 2).sum(dim=(1, 3)).flatten()  # noqa: E731, B023
            received, cls, joined = fold(received), fold(cls), fold(joined)
        torch.testing.assert_close(shown["received_attention"][1], received, atol=1e-6, rtol=1e-4)
        torch.testing.assert_close(shown["cls_attention"][1], cls, atol=1e-6, rtol=1e-4)
        torch.testing.assert_close(shown["joined_cls_attention"][1], joined, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("family", TOKENS)
@pytest.mark.parametrize(
    "later", ["vtc-cls(keep=0.2)", "visionzip(keep=0.2)", "divprune(keep=0.2)", "fastv(keep=0.2)", "h2o(keep=0.2)"]
)
def test_later_stages_go_on_from_what_is_left(family: str, later: str) -> None:
    model, inputs = model_of(family), batch(family, [[0], [1]])
    with vtc.wrapped(model, [vtc.ToMe(stage="encoder", keep=0.5), later]):
        model.generate(**inputs, max_new_tokens=2)
        report = vtc.report(model)
    assert report.stages[0].name == "tome"
    assert report.stages[1].tokens_in == report.stages[0].tokens_out or "h2o" in later
    assert report.stages[-1].tokens_out < report.stages[0].tokens_out


def test_a_method_that_needs_the_grid_is_refused_unless_the_grid_stays() -> None:
    model, inputs = model_of("llava"), batch("llava", [[0]])
    with pytest.raises(ValueError, match=r"pool needs the whole grid of tokens, which tome .* shorten=False"):
        vtc.wrap(model, [vtc.ToMe(stage="encoder"), "pool"])
    with vtc.wrapped(model, [vtc.ToMe(stage="encoder", shorten=False), "pool(keep=0.25)"]):
        model(**inputs)
        assert vtc.report(model).tokens_out == 9


def test_encoded_features_say_what_has_merged() -> None:
    model, inputs = model_of("llava"), batch("llava", [[0, 1]])
    method = vtc.ToMe(stage="encoder", keep=9)
    with vtc.wrapped(model, method):
        expected = model(**inputs).logits
        encoded = vtc.encode(model, method, pixel_values=inputs["pixel_values"])
        text = {k: v for k, v in inputs.items() if k != "pixel_values"}
        torch.testing.assert_close(model(**text, **encoded.take([0, 1])).logits, expected)


def test_features_that_were_encoded_without_it_are_refused() -> None:
    model, inputs = model_of("llava"), batch("llava", [[0]])
    encoded = vtc.encode(model, "divprune", pixel_values=inputs["pixel_values"])
    text = {k: v for k, v in inputs.items() if k != "pixel_values"}
    with (
        vtc.wrapped(model, vtc.ToMe(stage="encoder", keep=9)),
        pytest.raises(ValueError, match=r"tome acts inside the vision tower, which has run already and without it"),
    ):
        model(**text, **encoded.take([0]))


@pytest.mark.parametrize("method", ["vtc-cls(stage=encoder, keep=9, block=0)", "zerotprune(keep=9, blocks=(0, 1))"])
@pytest.mark.parametrize("family", ["llava", "llava_siglip"])
def test_what_was_dropped_in_the_tower_is_not_read(family: str, method: str) -> None:
    model, inputs = model_of(family), batch(family, [[0], [1]])
    with vtc.wrapped(model, method):
        model.generate(**inputs, max_new_tokens=2)
        report = vtc.report(model)
    for span in report.spans:
        assert (span.tokens_out, int((span.source < 0).sum())) == (9, 27)
    assert report.tower is not None
    assert report.tower.tokens_by_block[-1] >= 18


@pytest.mark.parametrize(
    "method", ["vtc-cls(stage=encoder, keep=0.5)", "zerotprune", "pitome(stage=encoder, keep=0.5)"]
)
@pytest.mark.parametrize("family", FIXED)
def test_every_method_acts_in_every_tower(family: str, method: str) -> None:
    model, inputs = model_of(family), batch(family, [[0, 1], [2]])
    with vtc.wrapped(model, method):
        model(**inputs)
        full, kept = vtc.report(model).tower.flops  # type: ignore[union-attr]
    assert kept < full


def test_rows_of_a_batch_do_not_meet() -> None:
    model = model_of("llava")
    both = batch("llava", [[0], [1]])
    with vtc.wrapped(model, [vtc.ToMe(stage="encoder", keep=0.5), "vtc-cls(keep=8)"]):
        together = model(**both).logits
        kept = [span.kept.tolist() for span in vtc.report(model).spans]
        for row in range(2):
            alone = {k: v[row : row + 1] for k, v in both.items()}
            mask = alone["attention_mask"].bool()[0]
            alone = {k: v[:, mask] if v.dim() == 2 else v for k, v in alone.items()}
            logits = model(**alone).logits
            assert [span.kept.tolist() for span in vtc.report(model).spans] == [kept[row]]
            torch.testing.assert_close(logits[0], together[row, mask], atol=1e-4, rtol=1e-3)


def test_threads_do_not_meet() -> None:
    model = model_of("llava")
    inputs = [batch("llava", [[seed]] * (1 + seed % 2)) for seed in range(4)]
    with vtc.wrapped(model, [vtc.ToMe(stage="encoder", keep=0.5), "vtc-cls(keep=8)"]):
        expected = [model(**one).logits for one in inputs]
        found: dict[int, list[Tensor]] = {i: [] for i in range(len(inputs))}

        def work(i: int) -> None:
            with torch.no_grad():
                found[i] += [model(**inputs[i]).logits for _ in range(3)]

        threads = [threading.Thread(target=work, args=(i,)) for i in found]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for i, logits in found.items():
        assert len(logits) == 3
        for one in logits:
            torch.testing.assert_close(one, expected[i])
