"""Language models of which some layers see so many tokens back: what they see, and what their cache holds."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

import vtc
from tests.engine.test_oracle_inside import equal_to_oracle, talk
from tests.families import batch, model_of
from tests.oracle import Decisions, decisions, oracle
from vtc.cost import DecoderCost
from vtc.engine.kv_cache import CompressedLayer

WINDOWED = ["gemma3", "cohere2_vision"]
GREEDY: dict[str, Any] = dict(do_sample=False)


def window_of(model: Any) -> int:
    return model.config.get_text_config().sliding_window


def sliding(model: Any) -> list[int]:
    kinds = model.config.get_text_config().layer_types
    return [i for i, kind in enumerate(kinds) if kind == "sliding_attention"]


def left(model: Any, length: int) -> list[int]:
    """Places of a first row of that length that are still there, by the wrapped model's own record."""
    made = decisions(model)
    gone = {p for _, choices in made.steps for c in choices if c.row == 0 for p in set(c.index) - set(c.slots)}
    return [p for p in range(length) if p not in gone]


@pytest.mark.parametrize("new", [1, 2, 9])
@pytest.mark.parametrize("positions", ["original", "compact"])
@pytest.mark.parametrize("family", WINDOWED)
def test_a_layer_holds_what_its_next_token_sees(family: str, positions: str, new: int) -> None:
    """Of the tokens that are left, those less than a window back: counted one by one, or, where positions are compact,
    among what is left."""
    model, inputs = model_of(family), batch(family, [[0]])
    length, window = inputs["input_ids"].shape[1], window_of(model)
    assert length > window
    with vtc.wrapped(model, vtc.DivPrune(keep=0.4, positions=positions)):
        made = model.generate(**inputs, max_new_tokens=new, return_dict_in_generate=True, **GREEDY)
        there = left(model, length + new - 1)  # the last token has not been read
    now = length + new - 1
    by_number = sum(p > now - window for p in there)
    expected = by_number if positions == "original" else min(len(there), window - 1)
    for i, layer in enumerate(made.past_key_values.layers):
        assert layer.get_seq_length() == now
        assert layer.keys.shape[2] == (expected if i in sliding(model) else len(there))


@pytest.mark.parametrize("family", WINDOWED)
def test_bytes(family: str) -> None:
    """What the report says is what lies in memory, and never more than without compression."""
    model, inputs = model_of(family), batch(family, [[0]])
    length = inputs["input_ids"].shape[1]
    cost = DecoderCost.of(model.config.get_text_config(), 4)
    with vtc.wrapped(model, "divprune", keep=0.4):
        cache = model(**inputs, use_cache=True).past_key_values
        report = vtc.report(model)
    one = 2 * cost.kv_heads * cost.head_dim * 4
    told = [after for _, after in report.kv_bytes_by_layer]
    assert told == [one * layer.keys.shape[2] for layer in cache.layers]
    assert vtc.cache_bytes(cache).rows == sum(told) == report.kv_bytes[1]
    plain = model(**inputs, use_cache=True).past_key_values
    before = [one * layer.keys.shape[2] for layer in plain.layers]
    assert before == [whole for whole, _ in report.kv_bytes_by_layer]
    assert sum(before) == cost.kv_bytes(length)
    assert all(a <= b for a, b in zip(told, before, strict=True))


@pytest.mark.parametrize("tokens", [3, 14, 15, 40])
def test_pairs_within_a_window(tokens: int) -> None:
    """Counted one by one, half of a pair for a token with itself."""
    cost = DecoderCost.of(model_of("cohere2_vision").config.get_text_config())
    for layer in cost.each:
        reach = tokens if layer.window is None else layer.window
        pairs = sum(1 if k < q else 0.5 for q in range(tokens) for k in range(q + 1) if k > q - reach)
        edge = max(0, tokens - reach) / 2  # of the square that is cut off, likewise
        assert layer.pairs(tokens) == pairs + edge


@pytest.mark.parametrize("family", WINDOWED)
def test_flops_of_a_window(family: str) -> None:
    model, inputs = model_of(family), batch(family, [[0]])
    length, window = inputs["input_ids"].shape[1], window_of(model)
    cost = DecoderCost.of(model.config.get_text_config())
    with vtc.wrapped(model, vtc.DivPrune(keep=0.4, positions="original")):
        model(**inputs)
        report, there = vtc.report(model), left(model, length)
    inner = cost.heads * cost.head_dim
    for i, (_, after) in enumerate(report.flops_by_layer):
        reach = window if i in sliding(model) else length
        pairs = sum(1 if k < q else 0.5 for q in there for k in there if k <= q and k > q - reach)
        assert after == cost.layer_flops(i, len(there), 0) + round(4 * pairs * inner)


@pytest.mark.parametrize("family", WINDOWED)
@pytest.mark.parametrize(
    "how",
    [
        dict(num_beams=3),
        dict(prompt_lookup_num_tokens=3),
        dict(num_return_sequences=2, do_sample=True),
    ],
    ids=["beams", "candidates", "samples"],
)
@pytest.mark.parametrize("method", [vtc.DivPrune(keep=0.3), vtc.FastV(keep=0.4, layers=(1,), positions="compact")])
def test_decoding(family: str, method: Any, how: dict[str, Any]) -> None:
    if "prompt_lookup_num_tokens" in how:
        model, inputs = model_of(family), batch(family, [[0]])
        with vtc.wrapped(model, method):
            ids = model.generate(**inputs, max_new_tokens=16, **GREEDY)
            assert model.generate(**inputs, max_new_tokens=16, **GREEDY, **how).equal(ids)
        return
    equal_to_oracle(family, method, ([[0], [1, 2], []], "left"), max_new_tokens=8, **how)


@pytest.mark.parametrize("family", WINDOWED)
def test_a_turn_on_a_cache_that_has_lost_nothing(family: str) -> None:
    """The first turn was plain text, longer than the window; transformers' own layers have let go of its start."""
    model, inputs = model_of(family), batch(family, [[0]])
    text = torch.arange(10, 10 + 2 * window_of(model))[None]
    late = {k: v for k, v in inputs.items() if k not in ("attention_mask", "token_type_ids")}
    own: dict[str, Any] = dict(keep=0.4, positions="original")
    for method in (vtc.DivPrune(**own), vtc.FastV(**own, layers=(2,)), vtc.FastV(**own, layers=(1,))):
        with vtc.wrapped(model, method):
            cache = model(input_ids=text, use_cache=True).past_key_values
            ours = model(**late, past_key_values=cache, use_cache=True)
            made = decisions(model)
            more = model(input_ids=text[:, :3], past_key_values=ours.past_key_values).logits
        with oracle(model, Decisions(), 1, False):
            cache = model(input_ids=text, use_cache=True).past_key_values
        with oracle(model, made, 1, False):
            theirs = model(**late, past_key_values=cache, use_cache=True)
            expected = model(input_ids=text[:, :3], past_key_values=theirs.past_key_values).logits
        words = late["input_ids"][0] != 2
        assert (ours.logits[0, words] - theirs.logits[0, words]).abs().max() < 1e-5 * theirs.logits.abs().max()
        assert (more - expected).abs().max() < 1e-5 * expected.abs().max()


def test_what_has_been_let_go_of_cannot_be_gone_back_to() -> None:
    model, inputs = model_of("gemma3"), batch("gemma3", [[0]])
    with vtc.wrapped(model, "divprune", keep=0.4):
        cache = model(**inputs, use_cache=True).past_key_values
        for layer in cache.layers:
            with pytest.raises(ValueError, match="cannot remove 1 tokens from a compressed cache"):
                layer.crop(-1)


def test_layers_let_go_by_number() -> None:
    """The example of `kv_cache.py`: rows go by the number of their token, not by how many rows there are."""
    layer = CompressedLayer()
    layer.update(torch.randn(1, 1, 7, 4), torch.randn(1, 1, 7, 4))
    layer.reach, layer.dropped, layer.prompt = 5, 5, 7
    layer.tags = {"ordinal": torch.tensor([[0, 1, 3, 7, 9, 10, 11]])}
    kept = layer.whole()[0][:, :, 4:].clone()
    assert layer.let_go()
    assert layer.whole()[0].equal(kept)
    assert (layer.held, layer.dropped, layer.get_seq_length()) == (3, 9, 12)
    assert layer.tags["ordinal"].tolist() == [[9, 10, 11]]
    assert not layer.let_go()


def test_cache_methods_leave_layers_with_a_window_alone() -> None:
    model, inputs = model_of("gemma3"), batch("gemma3", [[0]])
    plain = model(**inputs, use_cache=True).past_key_values
    with vtc.wrapped(model, "h2o", keep=0.3):
        cache = model(**inputs, use_cache=True).past_key_values
        report, events = vtc.report(model), model._vtc_engine.trace.evictions
    assert {event.layer for event in events} == {1}
    for i, (layer, own) in enumerate(zip(cache.layers, plain.layers, strict=True)):
        assert (layer.keys.shape[2] < own.keys.shape[2]) == (i == 1)
    told = "h2o acts in the 1 of 3 decoder layers that see the whole conversation; the others hold what their window"
    assert any(note.startswith(told) for note in report.notes)


REFUSED = {
    "minicache": (lambda: vtc.MiniCache(), "no such pair"),
    "dycoke": (lambda: vtc.DyCoke(), "is for videos"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_methods_that_find_no_such_layers(name: str) -> None:
    method, why = REFUSED[name]
    with pytest.raises(ValueError, match=why):
        vtc.wrap(copy.deepcopy(model_of("gemma3")), method())


def test_attention_that_counts_rows_is_refused() -> None:
    model, inputs = copy.deepcopy(model_of("cohere2_vision")), batch("cohere2_vision", [[0]])
    model.config.get_text_config()._attn_implementation = "flash_attention_2"
    vtc.wrap(model, "divprune", keep=0.4)
    with pytest.raises(ValueError, match=r"within a window of 14 tokens, which flash_attention_2 counts in rows.*sdpa"):
        model(**inputs)


@pytest.mark.parametrize("family", WINDOWED)
def test_a_long_talk(family: str) -> None:
    """A second turn long after the picture has left every window."""
    model, inputs = model_of(family), batch(family, [[0], [1, 2]])
    for method in (vtc.DivPrune(keep=0.4, positions="compact"), [vtc.FastV(keep=0.5, layers=(1,)), vtc.H2O(keep=0.2)]):
        with vtc.wrapped(model, method):
            ids = talk(model, inputs)
            told, compact = decisions(model), model._vtc_engine.compact
        with oracle(model, told, 2, compact):
            assert ids.equal(talk(model, inputs))
