"""What outlives a wrap: compressed KV caches and results of `vtc.encode` are right under any wrap, or say so."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from accelerate.utils import send_to_device
from torch import Tensor

import vtc
from tests.engine.cells import GREEDY, METHODS, OF_VIDEOS, VIDEOS, cells, continued, fits, one_sentence, prompts
from tests.engine.test_oracle_inside import ALL, CACHES
from tests.families import FAMILIES, batch, model_of
from tests.oracle import decisions, oracle

COMPRESSED: dict[str, Callable[[], Any]] = {
    **{name: make for name, make in METHODS.items() if name not in ("dart", "quota", "dycoke", "h2o, all, every")},
    "pool": lambda: vtc.resolve("pool", keep=0.3),
    "h2o, later layers": lambda: vtc.H2O(keep=0.4, first=1),
    "streaming, all": lambda: vtc.Streaming(keep=0.5, scope="all"),
    "dycoke, nothing rests": lambda: vtc.DyCoke(keep=0.6, p=None),
}
#: a wrap -> what of a conversation it leaves as it is
OTHERS: dict[str, Callable[[], Any]] = {
    "another input method": lambda: vtc.VTCCLS(keep=3, positions="compact"),
    "keep=1.0": lambda: vtc.DivPrune(keep=1.0),
    "a layer method": lambda: vtc.SparseVLM(keep=0.3, layers=(1, 2), recycle=1.0),
    "a cache method": lambda: vtc.Streaming(keep=0.2, sinks=1),
}
MORE = torch.tensor([[40, 41, 42], [43, 44, 45]])


def of_videos(method: str) -> bool:
    return method.split(",")[0] in OF_VIDEOS


def fit(family: str, method: str) -> bool:
    return fits(family, method.split(",")[0])


def first_turn(family: str, method: str, make: Callable[[], Any]) -> tuple[Any, dict[str, Tensor], Tensor, Any]:
    """(model, its inputs, ids so far, the cache that holds all but the last of them) of two rows of unequal length."""
    model, inputs = model_of(family), prompts(family, "dycoke" if of_videos(method) else method)[2]
    with vtc.wrapped(model, make()):
        out = model.generate(**inputs, max_new_tokens=3, do_sample=False, return_dict_in_generate=True)
    return model, inputs, out.sequences, out.past_key_values


def go_on(model: Any, inputs: dict[str, Tensor], ids: Tensor, cache: Any, **how: Any) -> Any:
    """Logits and ids of another turn, on a copy of the cache."""
    asked = continued(inputs, ids, MORE[-len(ids) :])
    return model.generate(
        **asked,
        past_key_values=copy.deepcopy(cache),
        **(GREEDY | dict(return_dict_in_generate=True, output_logits=True) | how),
    )


def forward(model: Any, inputs: dict[str, Tensor], ids: Tensor, cache: Any) -> Any:
    asked = continued(inputs, ids, MORE[-len(ids) :])
    new = asked["input_ids"].shape[1] - cache.get_seq_length()
    asked["input_ids"] = asked["input_ids"][:, -new:]
    asked.pop("mm_token_type_ids", None)
    positions = asked["attention_mask"].cumsum(dim=1) - 1
    asked["position_ids"] = positions[:, -new:].expand(*((4,) if "position_ids" in asked else ()), -1, -1)
    return model(**asked, past_key_values=cache, use_cache=True)


def assert_same(got: Any, expected: Any, rows: Any = slice(None)) -> None:
    assert got.sequences.equal(expected.sequences[rows])
    for one, other in zip(got.logits, expected.logits, strict=True):
        assert one.allclose(other[rows], atol=1e-5, rtol=1e-5)


def state(cache: Any) -> list[tuple[int, int]]:
    return [(layer.get_seq_length(), layer.keys.shape[2]) for layer in cache.layers]


def repeated(cache: Any, times: int) -> Any:
    cache = copy.deepcopy(cache)
    cache.batch_repeat_interleave(times)
    return cache


def refused(model: Any, call: Callable[[], Any]) -> None:
    """Assert that `call` ends in one sentence with a remedy, before tower or decoder layers have computed anything."""
    ran: list[Any] = []
    handles = [x.register_forward_pre_hook(lambda *_: ran.append(_)) for x in model.model.language_model.layers]
    try:
        with pytest.raises(RuntimeError, match=r"compressed by vtc.*vtc\.wrap") as caught:
            call()
    finally:
        for handle in handles:
            handle.remove()
    assert one_sentence(caught.value)
    assert not ran


@pytest.mark.parametrize(("family", "method"), cells(FAMILIES, COMPRESSED, fit))
def test_under_any_wrap_and_under_none(family: str, method: str) -> None:
    model, inputs, ids, cache = first_turn(family, method, COMPRESSED[method])
    before = state(cache)
    assert any(held < length for length, held in before)

    def beams(model: Any) -> Tensor:
        how: dict[str, Any] = dict(num_beams=2, output_logits=False)
        return go_on(model, inputs, ids, repeated(cache, 2), **how).sequences

    with vtc.wrapped(model, COMPRESSED[method]()):
        expected, searched = go_on(model, inputs, ids, cache), beams(model)
        logits = forward(model, inputs, ids, copy.deepcopy(cache)).logits
    for other in OTHERS.values():
        with vtc.wrapped(model, other()):
            assert_same(go_on(model, inputs, ids, cache), expected)
            assert forward(model, inputs, ids, copy.deepcopy(cache)).logits.allclose(logits, atol=1e-5, rtol=1e-5)
            assert beams(model).equal(searched)

    refused(model, lambda: model.generate(**continued(inputs, ids, MORE), past_key_values=cache, **GREEDY))
    refused(model, lambda: go_on(model, inputs, ids, cache, do_sample=True))
    refused(model, lambda: beams(model))
    refused(model, lambda: forward(model, inputs, ids, cache))
    refused(model_of(family, "eager"), lambda: forward(model_of(family, "eager"), inputs, ids, cache))
    assert state(cache) == before  # nothing is half done
    with vtc.wrapped(model, OTHERS["keep=1.0"]()):
        assert_same(go_on(model, inputs, ids, cache), expected)


def saved(value: Any) -> Any:
    """Written with torch.save and read again."""
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES: dict[str, Callable[[Any], Any]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda value: pickle.loads(pickle.dumps(value)),
    "torch.save": saved,
}


@pytest.mark.parametrize(("family", "method"), cells(FAMILIES, COMPRESSED, fit))
def test_copies_and_changed_rows(family: str, method: str) -> None:
    model, inputs, ids, cache = first_turn(family, method, COMPRESSED[method])
    with vtc.wrapped(model, COMPRESSED[method]()):
        expected = go_on(model, inputs, ids, cache)
    for made in (make(cache) for make in COPIES.values()):
        with vtc.wrapped(model, COMPRESSED[method]()):
            assert_same(go_on(model, inputs, ids, made), expected)
        refused(model, partial(go_on, model, inputs, ids, made))

    def rows(order: list[int]) -> tuple[Any, ...]:
        chosen = {k: v[order] for k, v in inputs.items() if k in ("input_ids", "attention_mask", "mm_token_type_ids")}
        return chosen, ids[order], MORE[order]

    def ask(made: Any, order: list[int]) -> Any:
        asked, so_far, more = rows(order)
        how: Any = GREEDY | dict(return_dict_in_generate=True, output_logits=True)
        return model.generate(**continued(asked, so_far, more), past_key_values=copy.deepcopy(made), **how)

    changed = {
        (0, 0, 1, 1): lambda x: x.batch_repeat_interleave(2),
        (1,): lambda x: x.batch_select_indices(torch.tensor([1])),
        (1, 0): lambda x: x.reorder_cache(torch.tensor([1, 0])),
    }
    for order, change in changed.items():
        made = copy.deepcopy(cache)
        change(made)
        refused(model, partial(ask, made, list(order)))
        with vtc.wrapped(model, COMPRESSED[method]()):
            assert_same(ask(made, list(order)), expected, list(order))


@pytest.mark.parametrize(("family", "method"), cells(FAMILIES, COMPRESSED, fit))
def test_cropped(family: str, method: str) -> None:
    """What was taken back is as if it had never been there; further back than the pictures nothing can be."""
    model, inputs, ids, cache = first_turn(family, method, COMPRESSED[method])
    with vtc.wrapped(model, COMPRESSED[method]()):
        expected = forward(model, inputs, ids, copy.deepcopy(cache)).logits
        longer = forward(model, inputs, ids, copy.deepcopy(cache)).past_key_values
    longer.crop(cache.get_seq_length() - longer.get_seq_length())
    assert state(longer) == state(cache)
    refused(model, lambda: forward(model, inputs, ids, longer))
    before = state(longer)
    if method != "minicache":  # from which no token goes
        with pytest.raises(ValueError, match=r"cannot remove .* start again") as caught:
            longer.crop(1 - inputs["input_ids"].shape[1])
        assert one_sentence(caught.value)
        assert state(longer) == before
    with vtc.wrapped(model, COMPRESSED[method]()):
        assert forward(model, inputs, ids, longer).logits.allclose(expected, atol=1e-5, rtol=1e-5)


RESTING: dict[str, Callable[[], Any]] = {
    "dycoke": lambda: vtc.DyCoke(keep=0.6),
    "nothing dropped": lambda: vtc.DyCoke(p=0.5).parts()[1],
    "nothing dropped, later layers": lambda: replace(vtc.DyCoke(p=0.5).parts()[1], first=2),
}


@pytest.mark.parametrize("method", RESTING)
@pytest.mark.parametrize("family", VIDEOS)
def test_tokens_that_rest(family: str, method: str) -> None:
    """Under another wrap nothing rests: as if the method had kept what it did, and read all of it ever after."""
    model, inputs = model_of(family), prompts(family, "dycoke")[2]
    dropping = vtc.DyCoke(keep=0.6, p=None) if method == "dycoke" else vtc.DivPrune(keep=1.0)
    with vtc.wrapped(model, RESTING[method]()):
        cache = model(**inputs, use_cache=True).past_key_values
        ids = inputs["input_ids"]
        resting = go_on(model, inputs, ids, cache)
    with vtc.wrapped(model, dropping):
        expected = go_on(model, inputs, ids, model(**inputs, use_cache=True).past_key_values)
    assert not torch.stack(resting.logits).allclose(torch.stack(expected.logits), atol=1e-3)
    before = state(cache)
    for other in OTHERS.values():
        with vtc.wrapped(model, other()):
            assert_same(go_on(model, inputs, ids, cache), expected)
    refused(model, lambda: forward(model, inputs, ids, cache))
    refused(model, lambda: go_on(model, inputs, ids, cache))
    assert state(cache) == before
    for make in COPIES.values():
        with vtc.wrapped(model, RESTING[method]()):
            assert_same(go_on(model, inputs, ids, make(cache)), resting)


@pytest.mark.parametrize("family", FAMILIES)
def test_evicting_while_decoding(family: str) -> None:
    """Another wrap leaves in the cache what the first one would have evicted since."""
    method = vtc.H2O(keep=0.4, scope="all", every=3)
    model, inputs, ids, cache = first_turn(family, "h2o, all, every", lambda: method)
    with vtc.wrapped(model, method):
        evicting = go_on(model, inputs, ids, cache)
    results = []
    for other in OTHERS.values():
        with vtc.wrapped(model, other()):
            results.append(go_on(model, inputs, ids, cache))
            assert_same(results[-1], results[0])
    assert results[0].past_key_values.layers[0].keys.shape[2] > evicting.past_key_values.layers[0].keys.shape[2]
    refused(model, lambda: go_on(model, inputs, ids, cache))


PAIRS = ["transprune", "h2o", "input + layer + cache", "sparsevlm", "streaming"]


@pytest.mark.parametrize(("family", "method"), cells(FAMILIES, PAIRS))
def test_two_wraps_one_after_another(family: str, method: str) -> None:
    """A turn that brings another picture, under another method than the first one's."""
    model, first, second = model_of(family), batch(family, [[0]]), batch(family, [[1]])
    then = PAIRS[(PAIRS.index(method) + 1) % len(PAIRS)]
    makes = [partial(ALL[name], **({} if name in CACHES else {"positions": "original"})) for name in (method, then)]
    with vtc.wrapped(model, makes[0]()):
        one = model(**first, use_cache=True)
        made = [decisions(model)]
    length = first["input_ids"].shape[1]
    late = {k: v for k, v in second.items() if k != "attention_mask"}
    late["position_ids"] = torch.arange(length, length + second["input_ids"].shape[1])[None]
    with vtc.wrapped(model, makes[1]()):
        two = model(**late, past_key_values=one.past_key_values, use_cache=True)
        made.append(decisions(model))
    with oracle(model, made[0], 1, False):
        cache = model(**first, use_cache=True).past_key_values
    with oracle(model, made[1], 1, False, made[0]):
        expected = model(**late, past_key_values=cache, use_cache=True)
    kept = torch.ones(second["input_ids"].shape[1], dtype=torch.bool)
    for _, places, left in made[1].visual():
        kept[places] = False
        kept[left] = True
    assert two.logits[0, kept].allclose(expected.logits[0, kept], atol=1e-4, rtol=1e-4)
    asked = dict(input_ids=torch.tensor([[40, 41]]), use_cache=True)
    start = length + second["input_ids"].shape[1]
    refused(model, lambda: model(**asked, past_key_values=two.past_key_values))
    asked["position_ids"] = torch.arange(start, start + 2)[None]
    logits = []
    for make in (*makes, OTHERS["keep=1.0"]):
        with vtc.wrapped(model, make()):
            logits.append(model(**asked, past_key_values=copy.deepcopy(two.past_key_values)).logits)
    assert logits[1].allclose(logits[0], atol=1e-5)
    assert logits[2].allclose(logits[0], atol=1e-5)


WAYS: dict[str, Callable[[Any], Any]] = {
    **COPIES,
    "accelerate": lambda value: send_to_device(value, torch.device("cpu")),
}
ENCODED = ["divprune", "vtc-cls", "visionzip", "input + layer + cache", "quota", "dycoke"]


@pytest.mark.parametrize(("family", "method"), cells(FAMILIES, ENCODED))
def test_encoded(family: str, method: str) -> None:
    model, inputs = model_of(family), prompts(family, method)[2]
    words = {k: v for k, v in inputs.items() if k in ("input_ids", "attention_mask", "mm_token_type_ids")}
    vision = {k: v for k, v in inputs.items() if k not in words or k == "input_ids"}
    plain = model.generate(**inputs, **GREEDY), model(**inputs).logits
    with vtc.wrapped(model, METHODS[method]()):
        expected = model.generate(**inputs, **GREEDY), model(**inputs).logits
    assert not plain[1].equal(expected[1])

    def assert_right(taken: Any, right: Any) -> None:
        assert model.generate(**words, **taken, **GREEDY).equal(right[0])
        assert model(**words, **taken).logits.allclose(right[1], atol=1e-5, rtol=1e-5)

    encoded = vtc.encode(model, METHODS[method](), **vision)
    order = range(len(encoded))
    made = [encoded.take(order), *(way(encoded.take(order)) for way in WAYS.values())]
    made += [way(encoded).take(order) for name, way in WAYS.items() if name in COPIES]
    for taken in made:
        assert_right(taken, plain)
        with vtc.wrapped(model, METHODS[method]()):
            assert_right(taken, expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_encoded_without_what_the_wrap_needs(family: str) -> None:
    model, inputs = model_of(family), batch(family, [[0]])
    words = {k: v for k, v in inputs.items() if k in ("input_ids", "attention_mask", "mm_token_type_ids")}
    vision = {k: v for k, v in inputs.items() if k not in words or k == "input_ids"}
    taken = send_to_device(vtc.encode(model, "divprune", **vision).take([0]), "cpu")
    with vtc.wrapped(model, "visionzip", keep=0.4):
        with pytest.raises(ValueError, match=r"encoded without it.*vtc\.encode") as caught:
            model(**words, **taken)
        assert one_sentence(caught.value)
        model(**inputs)
