"""What the KV cache holds by head: told by the report, measured in bytes, refused where it cannot be."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

import vtc
from tests.engine.heads import KINDS, Even, MergesKeys, MergesValues, Uneven
from tests.families import batch, model_of
from vtc.held import Held


def prefill(method: Any, family: str = "qwen2_5_vl") -> tuple[Any, Any]:
    """The cache of a prompt of one picture, and the report."""
    model = model_of(family)
    with vtc.wrapped(model, method):
        cache = model(**batch(family, [[0]]), use_cache=True).past_key_values
        return cache, vtc.report(model)


@pytest.mark.parametrize("kind", [name for name, method in KINDS.items() if method.per_head])
def test_the_report_says_what_each_head_holds(kind: str) -> None:
    cache, report = prefill(KINDS[kind])
    (span,) = report.spans
    text = cache.get_seq_length() - span.tokens_in
    assert sorted(span.held) == [0, 1, 2]
    for i, heads in span.held.items():
        layer = cache.layers[i]
        assert len(heads) == layer.keys.shape[1]
        real = layer.tags.get("real")
        for g, selection in enumerate(heads):
            own = layer.held if real is None else int(real[0, g].sum())
            assert selection.check().tokens_out == own - text
            assert selection.merges == KINDS[kind].merges
        lost = set(range(span.tokens_in)) - {a for selection in heads for a in selection.anchor.tolist()}
        assert set(span.evicted[i].tolist()) == lost


def test_layers_that_hold_the_same_in_all_heads_say_it_once() -> None:
    _, report = prefill(KINDS["keys taken in as cached"])
    assert [len(heads) for heads in report.spans[0].held.values()] == [1, 1, 1]


@pytest.mark.parametrize("method", [None, vtc.H2O(keep=0.25), Even(keep=0.25), Uneven(keep=0.25)])
def test_bytes_are_those_of_the_rows(method: Any) -> None:
    model, inputs = model_of("qwen2_5_vl"), batch("qwen2_5_vl", [[0]])
    cache = model(**inputs, use_cache=True).past_key_values if method is None else prefill(method)[0]
    config = model.model.language_model.config
    heads, width = config.num_key_value_heads, config.hidden_size // config.num_attention_heads
    rows = 0
    for layer in cache.layers:
        real = getattr(layer, "tags", {}).get("real")
        rows += layer.held * heads if hasattr(layer, "held") and real is None else 0
        rows += int(real.sum()) if real is not None else 0
        rows += layer.keys.shape[2] * heads if not hasattr(layer, "held") else 0
    found = vtc.cache_bytes(cache)
    assert found.rows == rows * width * 2 * 4
    assert found.total == found.rows + found.notes
    assert (found.notes == 0) == (method is None)


def test_bytes_of_what_is_no_cache() -> None:
    with pytest.raises(TypeError, match="cache is list: expected a transformers Cache"):
        vtc.cache_bytes([])
    with pytest.raises(TypeError, match="cache is NoneType"):
        vtc.cache_bytes({"logits": 1})


# -- refused ---------------------------------------------------------------------------------------------------------


def test_heads_of_their_own_number_cannot_choose_again() -> None:
    with pytest.raises(ValueError, match="gives each KV head a number of tokens of its own, once: leave every= out"):
        vtc.wrap(model_of("llava"), Uneven(every=2))


@pytest.mark.parametrize("method", [Uneven(), KINDS["rows that weigh more"]], ids=["uneven", "weighs"])
def test_flash_attention_has_no_room_for_a_mask_of_each_head(monkeypatch: Any, method: Any) -> None:
    model = model_of("llava")
    monkeypatch.setattr(model.model.language_model.config, "_attn_implementation_internal", "flash_attention_2")
    with pytest.raises(ValueError, match="needs a mask for each KV head, which flash_attention_2 has"):
        vtc.wrap(model, method)


def test_reading_a_part_beside_heads_of_their_own() -> None:
    with pytest.raises(ValueError, match="the same in every KV head, and Even leaves each head its own"):
        vtc.wrap(model_of("llava_onevision"), [Even(), vtc.DyCoke(p=0.6).parts()[1]])


def test_reading_a_part_of_a_cache_whose_heads_differ() -> None:
    model, inputs = model_of("llava_onevision"), batch("llava_onevision", [["v0"]])
    with vtc.wrapped(model, Even()):
        cache = model(**inputs, use_cache=True).past_key_values
    with vtc.wrapped(model, "dycoke"), pytest.raises(ValueError, match="the heads of this cache hold different ones"):
        model(input_ids=torch.tensor([[40]]), past_key_values=cache, use_cache=True)


@pytest.mark.parametrize("second", [vtc.H2O(keep=2), Uneven(keep=0.1)], ids=["for all heads", "each its own number"])
def test_another_method_cannot_choose_among_heads_of_unlike_tokens(second: Any) -> None:
    """It would have to compare what different heads hold."""
    with pytest.raises(ValueError, match="among tokens of which each KV head of this cache holds its own"):
        prefill([Uneven(keep=0.4), second])


@dataclass(frozen=True, kw_only=True)
class Says(Even):
    """Returns what it is told to."""

    held: Any = None

    def hold(self, tokens: Any) -> Held:
        return self.held(tokens.features.shape[0])


BAD = {
    "of three heads": (lambda n: Held(torch.zeros(3, 1, dtype=torch.long), n), "expected 1 or 2 KV heads first"),
    "beyond the tokens": (lambda n: Held(torch.tensor([[0, n]]), n), "ascending indices"),
    "not in order": (lambda n: Held(torch.tensor([[2, 1]]), n), "ascending indices"),
    "an empty head": (lambda n: Held(torch.tensor([[1], [-1]]), n), "at least one per head"),
    "weights of another shape": (
        lambda n: Held(torch.tensor([[1]]), n, torch.zeros(1, n, dtype=torch.long), torch.ones(1, 2)),
        r"Held.keys has shape \(1, 2\)",
    ),
    "weights without a source": (lambda n: Held(torch.tensor([[1]]), n, values=torch.ones(1, n)), "says in `source`"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_does_not_fit(case: str) -> None:
    held, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        prefill(Says(held=held))


@pytest.mark.parametrize("kind", [MergesKeys, MergesValues])
def test_a_quantised_cache_cannot_take_rows_in(kind: Any) -> None:
    from transformers.cache_utils import DynamicCache, DynamicLayer

    class QuantizedLayer(DynamicLayer):
        pass

    model = model_of("llava")
    cache: Any = DynamicCache()
    cache.layers = [QuantizedLayer() for _ in range(3)]
    with vtc.wrapped(model, kind()), pytest.raises(ValueError, match="a QuantizedLayer KV cache is not supported"):
        model(**batch("llava", [[0]]), past_key_values=cache, use_cache=True)


def test_selection_of_a_head_with_fewer() -> None:
    """The example of Held's docstring, as the second of two heads."""
    held = Held(
        torch.tensor([[0, 1, 2], [-1, 1, 4]]),
        5,
        torch.tensor([[0, 1, 2, -1, -1], [-1, 1, 2, -1, 2]]),
        values=torch.tensor([[1.0, 1, 1, 0, 0], [0, 1, 0.5, 0, 0.5]]),
    )
    selection = held.selection(1).check()
    assert selection.anchor.tolist() == [1, 4]
    assert selection.source.tolist() == [-1, 0, 1, -1, 1]
    assert selection.weight.tolist() == [0, 1, 0.5, 0, 0.5]
    assert replace(held, values=None, source=None).selection(1).source.tolist() == [-1, 0, -1, -1, 1]
