"""The proof: every method on every family equals the full-length model that cannot see the dropped tokens."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

import vtc
from tests.families import EVERY, batch, model_of
from tests.oracle import Decisions, decisions, oracle, round_off
from vtc.engine.versions import cache_name
from vtc.models import adapter_for

pytestmark = pytest.mark.sampled(most=0.08)

METHODS = ["random", "pool", "vtc-cls", "divprune", "visionzip", "pitome", "vqtoken", vtc.ToDRE(tau=None)]
PEERS = ["cdpruner", "scope", "vispruner", "holov", "hiprune", "prumerge", "mmtok", "prunesid"]
BATCHES = {
    "one image": ([[0]], "left"),
    "two images": ([[1, 2]], "left"),
    "left padded, unequal, text-only row": ([[0], [1, 2], []], "left"),
    "right padded, unequal": ([[0, 1], [3]], "right"),
}
GREEDY: dict[str, Any] = dict(max_new_tokens=5, do_sample=False)


def apart(family: str) -> list[int]:
    """A row's two pictures; one of GLM's, as transformers 5.24 repeats the pictures of its rows one by one for beams:
    A A B B for two rows of A B; so it does with Nemotron's, and so does Granite's own code."""
    return [1] if family.startswith(("glm", "granite4", "nemotron_h_omni")) else [1, 2]


def own_cache(family: str, model: Any) -> dict[str, Any]:
    """A cache for Granite 4 Vision, which makes none of its own unless it generates."""
    return {cache_name(): DynamicCache(config=model.config.get_text_config())} if family == "granite4_vision" else {}


def equal_to_oracle(family: str, attention: str, rows: Any, side: str, method: Any, **wrap: Any) -> Any:
    """Assert logits (1e-5 relative, fp32) and, where generation makes sense, 5 identical greedy ids."""
    return proved(model_of(family, attention), batch(family, rows, side), len(rows), side, method, **wrap)


def proved(
    model: Any, inputs: Any, rows: int, side: str, method: Any, hidden: Callable[..., Any] | None = None, **wrap: Any
) -> Any:
    """The same for inputs of so many rows, left out also of what `hidden` opens: it is called with the wrapped model
    and returns the context in which the vision tower cannot see, either, what has left. Returns the report."""
    with torch.no_grad(), vtc.wrapped(model, method, **wrap):
        logits = model(**inputs).logits
        made, report = decisions(model), vtc.report(model)
        blind = hidden(model) if hidden else nullcontext()
        ids = model.generate(**inputs, **GREEDY) if side == "left" else None
        compact = model._vtc_engine.compact
    with torch.no_grad(), oracle(model, made, rows, compact), blind:
        expected = model(**inputs).logits
        expected_ids = model.generate(**inputs, **GREEDY) if side == "left" else None
    assert_rows_equal(logits, expected, inputs["attention_mask"].bool(), made, round_off(model))
    if ids is not None:
        assert ids[:, : inputs["input_ids"].shape[1]].equal(inputs["input_ids"])  # the prompt keeps its length
        assert ids.equal(expected_ids)
    return report


def assert_rows_equal(logits: Tensor, expected: Tensor, real: Tensor, made: Decisions, limit: float = 1e-5) -> None:
    assert logits.shape == expected.shape
    scale = expected[real].abs().max()
    compared = real.clone()
    for row, places, kept in made.visual():
        compared[row, places] = False
        compared[row, kept] = True
    assert (logits - expected)[compared].abs().max() / scale < limit


@pytest.mark.core_cells(method=["random", "vtc-cls", "visionzip"], attention=["sdpa"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("rows", BATCHES.values(), ids=BATCHES)
@pytest.mark.parametrize("positions", ["original", "compact"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", EVERY)
def test_matrix(family: str, method: str, positions: str, rows: Any, attention: str) -> None:
    images, side = rows
    report = equal_to_oracle(family, attention, images, side, method, keep=0.3, positions=positions)
    assert 0 < report.tokens_out < report.tokens_in


@pytest.mark.parametrize("method", PEERS)
@pytest.mark.parametrize("family", EVERY)
def test_peers(family: str, method: str) -> None:
    """Methods that read what others read in the matrix: unequal rows and several pictures, in every family."""
    for positions in ("original", "compact"):
        report = equal_to_oracle(family, "sdpa", [[0], [1, 2], []], "left", method, keep=0.3, positions=positions)
        assert 0 < report.tokens_out < report.tokens_in


@pytest.mark.parametrize("family", EVERY)
@pytest.mark.parametrize("keep", [1, 0.999, 10**6])
def test_extreme_budgets(family: str, keep: Any) -> None:
    report = equal_to_oracle(family, "sdpa", [[0], [1, 2]], "left", "divprune", keep=keep)
    for span in report.spans:
        assert span.tokens_out == max(1, min(round(keep * span.tokens_in) if keep == 0.999 else keep, span.tokens_in))


@pytest.mark.core
@pytest.mark.parametrize("family", EVERY)
def test_stages_compose(family: str) -> None:
    stages = [vtc.VTCCLS(keep=0.6), vtc.VisionZip(keep=0.4), vtc.DivPrune(keep=0.2)]
    report = equal_to_oracle(family, "sdpa", [[0], [1, 2], []], "left", stages)
    assert [stage.name for stage in report.stages] == ["vtc-cls", "visionzip", "divprune"]
    assert report.stages[-1].tokens_out == report.tokens_out


DECODERS: dict[str, dict[str, Any]] = {
    "beams": dict(num_beams=3, do_sample=False),
    "beams, all returned": dict(num_beams=4, num_return_sequences=4, do_sample=False),
    "sampling": dict(do_sample=True, top_k=20),
    "several samples": dict(do_sample=True, num_return_sequences=3),
    "no cache": dict(do_sample=False, use_cache=False),
}


@pytest.mark.core_cells(method=["vtc-cls"])
@pytest.mark.parametrize("decoder", DECODERS.values(), ids=DECODERS)
@pytest.mark.parametrize("positions", ["original", "compact"])
@pytest.mark.parametrize("method", ["random", "vtc-cls", "visionzip"])
@pytest.mark.parametrize("family", EVERY)
def test_decoders(family: str, method: str, positions: str, decoder: dict[str, Any]) -> None:
    rows = [[0], apart(family), []]
    model, inputs = model_of(family), batch(family, rows)
    arguments = dict(max_new_tokens=6) | decoder
    if family == "ernie4_5_vl_moe" and decoder.get("use_cache") is False:
        with pytest.raises(IndexError):  # transformers does not lengthen which experts a token is for
            model.generate(**inputs, **arguments)
        return
    with vtc.wrapped(model, method, keep=0.3, positions=positions):
        model(**inputs)
        made = decisions(model)
        torch.manual_seed(1)
        ids = model.generate(**inputs, **arguments)
    with oracle(model, made, len(rows), positions == "compact"):
        torch.manual_seed(1)
        expected = model.generate(**inputs, **arguments)
    assert ids.equal(expected)


@pytest.mark.core
@pytest.mark.parametrize("positions", ["original", "compact"])
@pytest.mark.parametrize("family", EVERY)
def test_prompt_lookup(family: str, positions: str) -> None:
    """Assisted decoding feeds several tokens at once and takes some back."""
    model, inputs = model_of(family), batch(family, [[0]])
    with vtc.wrapped(model, "vtc-cls", keep=0.3, positions=positions):
        plain = model.generate(**inputs, max_new_tokens=12, do_sample=False)
        assisted = model.generate(**inputs, max_new_tokens=12, do_sample=False, prompt_lookup_num_tokens=3)
    assert assisted.equal(plain)


@pytest.mark.core
@pytest.mark.parametrize("positions", ["original", "compact"])
@pytest.mark.parametrize("family", EVERY)
def test_second_turn(family: str, positions: str) -> None:
    """More text on the cache of a compressed first turn equals the oracle over the whole conversation."""
    model, inputs = model_of(family), batch(family, [[0], [1, 2]])
    more = torch.tensor([[40, 41, 42], [43, 44, 45]])

    def talk() -> Tensor:
        first = model.generate(**inputs, max_new_tokens=4, do_sample=False, return_dict_in_generate=True)
        ids = torch.cat([first.sequences, more], dim=1)
        mask = torch.nn.functional.pad(
            inputs["attention_mask"], (0, ids.shape[1] - inputs["input_ids"].shape[1]), value=1
        )
        types = {"mm_token_type_ids": (ids == 2).int()} if "mm_token_type_ids" in inputs else {}
        return model.generate(
            input_ids=ids,
            attention_mask=mask,
            past_key_values=first.past_key_values,
            max_new_tokens=4,
            do_sample=False,
            **({"mm_token_type_ids": types["mm_token_type_ids"] * 0} if types else {}),
        )

    with vtc.wrapped(model, "vtc-cls", keep=0.3, positions=positions):
        model(**inputs)
        made = decisions(model)
        ids = talk()
    with oracle(model, made, 2, positions == "compact"):
        assert ids.equal(talk())


@pytest.mark.parametrize("positions", ["original", "compact"])
@pytest.mark.parametrize("family", EVERY)
def test_manual_decoding_without_positions(family: str, positions: str) -> None:
    """A user's own loop: forward, then one token at a time on the cache, no position ids, no mask."""
    model, inputs = model_of(family), batch(family, [[0]])
    inputs.pop("attention_mask")
    if getattr(model, "rope_deltas", None) is not None:
        model.rope_deltas = None  # the Omni models would go by those of the call before, whatever its batch was

    def loop() -> Tensor:
        out = model(**inputs, use_cache=True, **own_cache(family, model))
        rows = [out.logits[:, -1]]
        for _ in range(4):
            token = rows[-1].argmax(-1, keepdim=True)
            out = model(input_ids=token, past_key_values=out.past_key_values, use_cache=True)
            rows.append(out.logits[:, -1])
        return torch.stack(rows)

    with vtc.wrapped(model, "divprune", keep=0.3, positions=positions):
        model(**inputs)
        made = decisions(model)
        logits = loop()
    with oracle(model, made, 1, positions == "compact"):
        expected = loop()
    assert (logits - expected).abs().max() / expected.abs().max() < round_off(model)


@pytest.mark.core
@pytest.mark.parametrize("family", EVERY)
def test_positions_handed_in(family: str) -> None:
    model, inputs = model_of(family), batch(family, [[0], [1]])
    inputs["position_ids"] = torch.arange(inputs["input_ids"].shape[1]).expand(2, -1) + torch.tensor([[5], [9]])
    for positions in ("original", "compact"):
        with vtc.wrapped(model, "divprune", keep=0.3, positions=positions):
            logits = model(**inputs).logits
            made = decisions(model)
        with oracle(model, made, 2, positions == "compact"):
            expected = model(**inputs).logits
        assert_rows_equal(logits, expected, inputs["attention_mask"].bool(), made, round_off(model))


@pytest.mark.parametrize("family", EVERY)
def test_embeddings_handed_in(family: str) -> None:
    """inputs_embeds with pixels: the placeholder's embedding tells where the visual tokens are."""
    model, inputs = model_of(family), batch(family, [[0], [1]])
    embeds = {**inputs, "inputs_embeds": model.get_input_embeddings()(inputs["input_ids"])}
    ids = embeds.pop("input_ids")
    made = EVERY[family]
    if made.typed or made.rows:  # transformers needs the ids for (t, h, w) positions; given positions do instead
        embeds["position_ids"] = torch.arange(ids.shape[1]).expand(2, -1)
        inputs["position_ids"] = embeds["position_ids"]
    with vtc.wrapped(model, "vtc-cls", keep=0.3):
        expected = model(**inputs).logits
        assert model(**embeds).logits.equal(expected)


@pytest.mark.core
@pytest.mark.parametrize("family", EVERY)
def test_encoded_once_asked_often(family: str) -> None:
    """vtc.encode + take = the same forward from pixels, for every method it was made for."""
    model, inputs = model_of(family), batch(family, [[0], [1, 2], [1]])
    if not adapter_for(model).apart:
        with pytest.raises(ValueError, match=r"vtc\.encode does not know how .*: hand in pixels"):
            vtc.encode(model, "divprune", **batch(family, [[0, 1, 2]]))
        return
    encoded = vtc.encode(model, METHODS, **batch(family, [[0, 1, 2]]))
    rows = inputs["input_ids"].shape
    text = {k: v for k, v in inputs.items() if v.shape == rows}
    assert len(encoded) == 3
    for method in METHODS:
        with vtc.wrapped(model, method, keep=0.3):
            expected = model(**inputs).logits
            made = decisions(model).visual()
            logits = model(**text, **encoded.take([0, 1, 2, 1])).logits
            assert decisions(model).visual() == made
            assert (logits - expected).abs().max() / expected.abs().max() < round_off(model)
            beams = dict(max_new_tokens=4, num_beams=2, do_sample=False)
            assert model.generate(**text, **encoded.take([0, 1, 2, 1]), **beams).equal(
                model.generate(**inputs, **beams)
            )
