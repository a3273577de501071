"""What methods inside the language model and its cache leave behind, and what they survive."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

import vtc
from tests.engine.test_engine import GREEDY, traces
from tests.engine.test_oracle_inside import ALL, COMPOSED, LAYERS
from tests.families import FAMILIES, batch, model_of


@pytest.mark.core_cells(method=["transprune"])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", ["transprune", "sparsevlm", *COMPOSED])
def test_unwrap_leaves_no_trace(family: str, method: str) -> None:
    model, inputs = model_of(family), batch(family, [[0], [1]])
    before, seen = model(**inputs), traces(model)
    with vtc.wrapped(model, ALL[method]()):
        assert traces(model) != seen
        model.generate(**inputs, **GREEDY)
    assert traces(model) == seen
    after = model(**inputs)
    assert after.logits.equal(before.logits)
    assert type(after.past_key_values.layers[1]) is type(before.past_key_values.layers[1])


@pytest.mark.core
def test_an_exception_inside_leaves_the_model_usable() -> None:
    model, inputs = copy.deepcopy(model_of("qwen3_vl")), batch("qwen3_vl", [[0]])
    vtc.wrap(model, ALL["input + layer + cache"]())
    expected = model(**inputs).logits

    def fail(*_: Any) -> None:
        raise RuntimeError("out of memory, say")

    for place in (model.model.language_model.layers[2].mlp, model.model.language_model.layers[1].self_attn.q_proj):
        handle = place.register_forward_pre_hook(fail)
        with pytest.raises(RuntimeError, match="out of memory"):
            model(**inputs)
        handle.remove()
        assert model(**inputs).logits.equal(expected)
    text = batch("qwen3_vl", [[]])
    wrapped = model(**text).logits
    assert wrapped.equal(vtc.unwrap(model)(**text).logits)


@pytest.mark.core
def test_deepcopy_is_wrapped_on_its_own() -> None:
    model, inputs = copy.deepcopy(model_of("qwen2_5_vl")), batch("qwen2_5_vl", [[0]])
    vtc.wrap(model, ALL["transprune"]())
    expected = model(**inputs).logits
    twin = copy.deepcopy(model)
    vtc.unwrap(model)
    assert twin(**inputs).logits.equal(expected)
    assert vtc.report(twin).tokens_out < vtc.report(twin).tokens_in
    assert traces(vtc.unwrap(twin)) == traces(model)


@pytest.mark.sampled(most=0.5)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", LAYERS)
def test_eager_and_sdpa_choose_alike(family: str, method: str) -> None:
    inputs, kept = batch(family, [[0], [1]]), []
    for attention in ("sdpa", "eager"):
        with vtc.wrapped(model_of(family, attention), ALL[method]()) as model:
            model(**inputs)
            kept.append([span.kept.tolist() for span in vtc.report(model).spans])
    assert kept[0] == kept[1]


@pytest.mark.sampled(most=0.5)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", [name for name in LAYERS if name != "dart"])  # its key norms depend on positions
def test_a_batch_chooses_like_its_rows(family: str, method: str) -> None:
    with vtc.wrapped(model_of(family), ALL[method]()) as model:
        both = batch(family, [[0], [1, 2]])
        model(**both)
        together = [span.kept.tolist() for span in vtc.report(model).spans]
        alone = []
        for number, row in enumerate(([0], [1, 2])):
            real = both["attention_mask"][number].bool()
            text = ("input_ids", "attention_mask", "mm_token_type_ids")
            one = batch(family, [row]) | {k: both[k][number][real][None] for k in text if k in both}  # the same words
            model(**one)
            alone += [span.kept.tolist() for span in vtc.report(model).spans]
    assert together == alone


@pytest.mark.core
def test_hidden_states_keep_the_prompts_length() -> None:
    for family in FAMILIES:
        model, inputs = model_of(family), batch(family, [[0], [1]])
        with vtc.wrapped(model, ALL["input + layer + cache"]()):
            out = model(**inputs, output_hidden_states=True)
        assert len(out.hidden_states) == 4
        assert all(state.shape[1] == inputs["input_ids"].shape[1] for state in out.hidden_states)


@pytest.mark.core
def test_low_precision() -> None:
    for dtype in (torch.bfloat16, torch.float16):
        model, inputs = copy.deepcopy(model_of("qwen3_vl")).to(dtype), batch("qwen3_vl", [[0], [1]])
        for method in ALL.values():
            with vtc.wrapped(model, method()):
                out = model.generate(**inputs, **GREEDY, return_dict_in_generate=True, output_logits=True)
            assert out.logits[0].isfinite().all()


@pytest.mark.core
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", ["transprune", "h2o", "input + layer + cache"])
def test_assisted_decoding(family: str, method: str) -> None:
    """Prompt lookup feeds several tokens at once and takes some back."""
    model, inputs = model_of(family), batch(family, [[0]])
    with vtc.wrapped(model, ALL[method]()):
        plain = model.generate(**inputs, max_new_tokens=12, do_sample=False)
        assert model.generate(**inputs, max_new_tokens=12, do_sample=False, prompt_lookup_num_tokens=3).equal(plain)


@pytest.mark.core
def test_reports_by_layer() -> None:
    model, inputs = model_of("llava"), batch("llava", [[0], [1, 2]])
    with vtc.wrapped(model, [vtc.VTCCLS(keep=18), vtc.PyramidDrop(layers=(1, 2), keeps=(9, 4)), vtc.Streaming(keep=2)]):
        cache = model(**inputs, use_cache=True).past_key_values
        report = vtc.report(model)
    assert report.tokens_by_layer == [54, 27, 12]
    assert report.tokens_average == 31
    assert report.tokens_out == 12
    assert [(s.name, s.layer, s.tokens_in, s.tokens_out) for s in report.stages] == [
        ("vtc-cls", None, 108, 54),
        ("pyramiddrop", 1, 54, 27),
        ("pyramiddrop", 2, 27, 12),
        ("streaming", 3, 31, 6),
    ]
    real = inputs["attention_mask"].sum() - 108 + 6
    one = 2 * 2 * 8 * 4  # keys and values, heads, size, bytes
    assert [kept for _, kept in report.kv_bytes_by_layer] == [int(real) * one] * 3
    assert {layer.keys.shape[2] for layer in cache.layers} == {inputs["input_ids"].shape[1] - 72 + 4}
    assert report.as_dict()["tokens_by_layer"] == [54, 27, 12]
    assert "31.0 on average over 3 layers" in str(report)


@pytest.mark.parametrize("method", ["transprune", "input + layer + cache"])
def test_the_rows_of_a_report_add_up(method: str) -> None:
    model, inputs = model_of("llava"), batch("llava", [[0], [1, 2], []])
    with vtc.wrapped(model, ALL[method]()):
        model(**inputs)
        report = vtc.report(model)
    rows = report.rows
    assert [row.tokens_in for row in rows] == [36, 72, 0]
    for name in ("tokens_in", "tokens_out", "tokens_average"):
        assert sum(getattr(row, name) for row in rows) == pytest.approx(getattr(report, name))
    for name in ("flops", "kv_bytes"):
        assert tuple(map(sum, zip(*(getattr(row, name) for row in rows), strict=True))) == getattr(report, name)
    assert rows[2].flops[0] == rows[2].flops[1]
