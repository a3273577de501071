"""The proof for what happens inside the language model and in its KV cache, alone and composed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import vtc
from tests.engine.test_oracle import BATCHES, DECODERS, GREEDY, apart, assert_rows_equal, own_cache
from tests.families import EVERY, batch, model_of
from tests.oracle import decisions, oracle, round_off
from vtc.models.registry import adapter_for
from vtc.models.tower import tower_for

pytestmark = pytest.mark.sampled(most=0.08)

#: the tiny models have three decoder layers; Qwen3-VL adds DeepStack rows after the first two
LAYERS: dict[str, Any] = {
    "fastv": lambda **o: vtc.FastV(keep=0.4, layers=(1,), **o),
    "pyramiddrop": lambda **o: vtc.PyramidDrop(keep=0.2, layers=(1, 2), **o),
    "transprune": lambda **o: vtc.TransPrune(keep=0.2, layers=(1, 2), **o),
    "dart": lambda **o: vtc.DART(keep=0.4, **o),
    "sparsevlm": lambda **o: vtc.SparseVLM(keep=0.3, layers=(1, 2), recycle=1.0, **o),
    "visiondrop": lambda **o: vtc.VisionDrop(keep=0.4, **o),
    "vscan": lambda **o: vtc.VScan(keep=0.4, **o),
    "mustdrop": lambda **o: vtc.MustDrop(share=0.5, peak=0.5, similar=0.5, **o),
    "todre": lambda **o: vtc.ToDRE(keep=0.4, tau=1.0, **o),
    "vflowopt": lambda **o: vtc.VFlowOpt(keep=0.4, threshold=1.0, alpha=0.1, cell=2.0, r2=0.8, **o),
}
CACHES: dict[str, Any] = {
    "h2o": lambda **o: vtc.H2O(keep=0.4, **o),
    "scissorhands": lambda **o: vtc.Scissorhands(keep=0.4, history=5, **o),
    "streaming": lambda **o: vtc.Streaming(keep=0.4, sinks=2, **o),
}
COMPOSED: dict[str, Any] = {
    "input + layer + cache": lambda **o: [
        vtc.VTCCLS(keep=0.6, **o),
        vtc.TransPrune(keep=0.2, layers=(1, 2), **o),
        vtc.H2O(keep=0.1),
    ],
    "merge + layer + cache, all": lambda **o: [
        vtc.VisionZip(keep=0.5, **o),
        vtc.FastV(keep=0.2, layers=(2,), **o),
        vtc.Streaming(keep=0.5, scope="all"),
    ],
}
ALL = LAYERS | CACHES | COMPOSED
MIXED = BATCHES["left padded, unequal, text-only row"]
PROMPTS: dict[str, tuple[Any, str]] = {name: (rows, "sdpa") for name, rows in BATCHES.items()}
PROMPTS["left padded, unequal, text-only row; eager"] = (MIXED, "eager")


def equal_to_oracle(family: str, method: Any, prompts: Any, attention: str = "sdpa", **how: Any) -> Any:
    """Assert logits (1e-5 relative, fp32) and identical ids of greedy or other decoding; returns the report."""
    rows, side = prompts
    model, inputs = model_of(family, attention), batch(family, rows, side)
    how = GREEDY | how
    with vtc.wrapped(model, method):
        logits = model(**inputs, **own_cache(family, model)).logits
        made, report = decisions(model), vtc.report(model)
        compact = model._vtc_engine.compact
        if side == "left":
            torch.manual_seed(1)
            ids = model.generate(**inputs, **how)
            told = decisions(model)
    with oracle(model, made, len(rows), compact):
        expected = model(**inputs).logits
    assert_rows_equal(logits, expected, inputs["attention_mask"].bool(), made, round_off(model))
    if side == "left":
        copies = how.get("num_beams", 1) if "num_beams" in how else how.get("num_return_sequences", 1)
        with oracle(model, told, len(rows) * copies, compact):
            torch.manual_seed(1)
            assert ids.equal(model.generate(**inputs, **how))
    return report


def refused(model: Any, method: str) -> bool:
    """Whether the model's tower cannot do what `method` needs; then wrap has just said so."""
    try:
        tower = tower_for(adapter_for(model).tower(model))
    except ValueError:
        return False
    if method != "vflowopt" or not (tower.takes == "row" or tower.patches_given or tower.varies):
        return False
    why = "says of each picture how many patches" if tower.varies else "is given pictures of any size, padded"
    with pytest.raises(ValueError, match=rf"^vflowopt looks at the pixels under patches, .* {why}"):
        vtc.wrap(model, ALL[method]())
    return True


@pytest.mark.core_cells(method=["fastv", "sparsevlm", "input + layer + cache"], rows=[MIXED])
@pytest.mark.parametrize(("rows", "attention"), PROMPTS.values(), ids=PROMPTS)
@pytest.mark.parametrize("positions", ["original", "compact"])
@pytest.mark.parametrize("method", LAYERS | COMPOSED)
@pytest.mark.parametrize("family", EVERY)
def test_layers(family: str, method: str, positions: str, rows: Any, attention: str) -> None:
    model = model_of(family, attention)
    if refused(model, method):
        return
    report = equal_to_oracle(family, ALL[method](positions=positions), rows, attention)
    assert report.tokens_out < report.tokens_in
    assert len(set(report.tokens_by_layer)) > 1
    assert report.flops[1] < report.flops[0]


@pytest.mark.core_cells(method=["h2o", "streaming"], every=[None], rows=[MIXED])
@pytest.mark.parametrize(("rows", "attention"), PROMPTS.values(), ids=PROMPTS)
@pytest.mark.parametrize("scope", ["visual", "all"])
@pytest.mark.parametrize("every", [None, 3])
@pytest.mark.parametrize("method", CACHES)
@pytest.mark.parametrize("family", EVERY)
def test_caches(family: str, method: str, every: Any, scope: str, rows: Any, attention: str) -> None:
    longer = {} if every is None else {"max_new_tokens": 8}  # so that it evicts again, twice
    report = equal_to_oracle(family, CACHES[method](scope=scope, every=every), rows, attention, **longer)
    assert report.tokens_out == report.tokens_in
    assert report.kv_bytes[1] < report.kv_bytes[0]


@pytest.mark.core_cells(method=["transprune", "h2o"])
@pytest.mark.parametrize("decoder", [d for d in DECODERS if d != "no cache"])
@pytest.mark.parametrize("method", ["transprune", "sparsevlm", "h2o", *COMPOSED])
@pytest.mark.parametrize("family", EVERY)
def test_decoders(family: str, method: str, decoder: str) -> None:
    made = ALL[method](positions="compact") if method not in CACHES else ALL[method]()
    equal_to_oracle(family, made, ([[0], apart(family), []], "left"), **{**DECODERS[decoder], "max_new_tokens": 6})


def talk(model: Any, inputs: Any) -> Tensor:
    """An answer, three more words, and the answer to these, on the cache of the first turn."""
    more = torch.tensor([[40, 41, 42], [43, 44, 45]])
    first = model.generate(**inputs, max_new_tokens=4, do_sample=False, return_dict_in_generate=True)
    ids = torch.cat([first.sequences, more], dim=1)
    new = ids.shape[1] - inputs["input_ids"].shape[1]
    mask = torch.nn.functional.pad(inputs["attention_mask"], (0, new), value=1)
    types = {"mm_token_type_ids": torch.zeros_like(ids)} if "mm_token_type_ids" in inputs else {}
    cache = first.past_key_values
    return model.generate(
        input_ids=ids, attention_mask=mask, past_key_values=cache, max_new_tokens=5, do_sample=False, **types
    )


@pytest.mark.core_cells(method=["fastv", "h2o", "input + layer + cache"])
@pytest.mark.parametrize("positions", ["original", "compact"])
@pytest.mark.parametrize("method", ALL)
@pytest.mark.parametrize("family", EVERY)
def test_second_turn(family: str, method: str, positions: str) -> None:
    """More text on the cache of a compressed first turn equals the oracle over the whole conversation."""
    model, inputs = model_of(family), batch(family, [[0], [1, 2]])
    if refused(model, method):
        return

    made = ALL[method](**({} if method in CACHES else {"positions": positions}))
    with vtc.wrapped(model, made):
        ids = talk(model, inputs)
        told, compact = decisions(model), model._vtc_engine.compact
    with oracle(model, told, 2, compact):
        assert ids.equal(talk(model, inputs))


@pytest.mark.core
@pytest.mark.parametrize("method", ["transprune", "h2o", "input + layer + cache"])
@pytest.mark.parametrize("family", EVERY)
def test_a_second_picture(family: str, method: str) -> None:
    """A turn that brings another picture, on the compressed cache of the first."""
    model, first, second = model_of(family), batch(family, [[0]]), batch(family, [[1]])
    options = {} if method == "h2o" else {"positions": "original"}
    with vtc.wrapped(model, ALL[method](**options)):
        one = model(**first, use_cache=True, **own_cache(family, model))
        told = [decisions(model)]
        length = first["input_ids"].shape[1]
        late = {k: v for k, v in second.items() if k != "attention_mask"}
        late["position_ids"] = torch.arange(length, length + second["input_ids"].shape[1])[None]
        two = model(**late, past_key_values=one.past_key_values, use_cache=True)
        told.append(decisions(model))
        held = [layer.keys.shape[2] for layer in two.past_key_values.layers if getattr(layer, "keys", None) is not None]
    with oracle(model, told[0], 1, False):
        cache = model(**first, use_cache=True, **own_cache(family, model)).past_key_values
    with oracle(model, told[1], 1, False, told[0]):
        expected = model(**late, past_key_values=cache, use_cache=True)
    text = late["input_ids"][0] != 2
    gap = (two.logits[0, text] - expected.logits[0, text]).abs().max()
    assert gap / expected.logits.abs().max() < round_off(model)
    assert min(held) < two.past_key_values.get_seq_length()
    assert two.past_key_values.get_seq_length() == length + second["input_ids"].shape[1]
