"""MiniCache as its paper defines it, in loops over a plain model's cache; and what becomes of it while decoding."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch

import vtc
from tests.families import FAMILIES, batch, model_of
from tests.methods.definitions import defines

WORDS = torch.tensor([[40, 41, 42]])


def between(one: list[float], other: list[float], t: float) -> tuple[list[float], float]:
    """Spherical interpolation of the directions of two rows (section 3.2), and the angle between them."""
    lengths = [math.sqrt(sum(x * x for x in row)) for row in (one, other)]
    first, second = ([x / n for x in row] for row, n in zip((one, other), lengths, strict=True))
    angle = math.acos(max(-1.0, min(1.0, sum(a * b for a, b in zip(first, second, strict=True)))))
    shares = [math.sin((1 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle)]
    return [shares[0] * a + shares[1] * b for a, b in zip(first, second, strict=True)], angle


def defined(
    cache: Any, slots: list[int], pairs: list[tuple[int, int]], t: float = 0.6, retention: float = 0.05, row: int = 0
) -> Any:
    """The plain cache with what its pairs would make of the places `slots` of a batch row."""
    new = copy.deepcopy(cache)
    for i, j in pairs:
        for name in ("keys", "values"):
            one, other = (getattr(cache.layers[n], name)[row].double() for n in (i, j))
            for g in range(len(one)):
                found = {s: between(one[g, s].tolist(), other[g, s].tolist(), t) for s in slots}
                far = sorted(slots, key=lambda s: (-found[s][1], s))[: math.ceil(retention * len(slots))]
                for s in set(slots) - set(far):
                    for layer, own in ((i, one), (j, other)):
                        length = math.sqrt(float(own[g, s].square().sum()))
                        getattr(new.layers[layer], name)[row, g, s] = length * torch.tensor(found[s][0])
    return new


@defines("minicache", "t", "retention", "first", "scope")
@pytest.mark.parametrize(
    ("options", "pairs"),
    [
        ({}, [(1, 2)]),
        ({"t": 0.25, "retention": 0.0}, [(1, 2)]),
        ({"retention": 0.3, "first": 0}, [(1, 2)]),
        ({"retention": 1.0}, []),
        ({"scope": "all"}, [(1, 2)]),
    ],
    ids=str,
)
@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_definition(family: str, options: dict[str, Any], pairs: list[tuple[int, int]]) -> None:
    model, inputs = model_of(family), batch(family, [[0]])
    plain = model(**inputs, use_cache=True).past_key_values
    ids = inputs["input_ids"][0].tolist()
    slots = [i for i in range(len(ids)) if options.get("scope") == "all" or ids[i] == model.config.image_token_id]
    expected = defined(plain, slots, pairs, options.get("t", 0.6), options.get("retention", 0.05))
    with vtc.wrapped(model, "minicache", **options):
        cache = model(**inputs, use_cache=True).past_key_values
        for mine, wanted in zip(cache.layers, expected.layers, strict=True):
            keys, values = mine.whole()
            assert (keys - wanted.keys).abs().max() < 1e-5 * wanted.keys.abs().max()
            assert (values - wanted.values).abs().max() < 1e-5 * wanted.values.abs().max()
        got = model(input_ids=WORDS, past_key_values=cache, use_cache=True).logits
    logits = model(input_ids=WORDS, past_key_values=expected, use_cache=True).logits
    assert (got - logits).abs().max() < 1e-4 * logits.abs().max()


@pytest.mark.parametrize("family", FAMILIES)
def test_bytes_are_saved(family: str) -> None:
    """A pair of layers of N shared rows of width d holds N (d + 2) numbers where it held 2 N d."""
    model, inputs = model_of(family), batch(family, [[0], [1, 2]])
    plain = vtc.cache_bytes(model(**inputs, use_cache=True).past_key_values).rows
    with vtc.wrapped(model, "minicache", retention=0.0):
        cache = model(**inputs, use_cache=True).past_key_values
        report = vtc.report(model)
    keys = cache.layers[0].keys
    width, groups = keys.shape[3], keys.shape[1]
    assert plain - vtc.cache_bytes(cache).rows == 2 * groups * report.tokens_in * (width - 2) * keys.element_size()
    assert report.tokens_out == report.tokens_in
    padding = plain - report.kv_bytes[0]
    assert report.kv_bytes[1] == pytest.approx(vtc.cache_bytes(cache).rows - padding)


HOW: dict[str, dict[str, Any]] = {
    "greedy": dict(),
    "beams": dict(num_beams=3, num_return_sequences=2),
    "samples": dict(do_sample=True, num_return_sequences=2),
    "assistance": dict(prompt_lookup_num_tokens=3),
}


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_retained_of_equal_layers_changes_nothing(family: str, how: str) -> None:
    """With t at one end and everything retained the answer is the plain model's, however it is decoded."""
    model = model_of(family)
    inputs = batch(family, [[0]] if how == "assistance" else [[0], [1, 2], []])
    asked = {"max_new_tokens": 6, "do_sample": False, **HOW[how]}
    torch.manual_seed(1)
    expected = model.generate(**inputs, **asked)
    with vtc.wrapped(model, "minicache", retention=1.0):
        torch.manual_seed(1)
        assert model.generate(**inputs, **asked).equal(expected)


def test_beside_eviction() -> None:
    """Layers of a pair that hold the same tokens share what is left; others say that they do not."""
    model, inputs = model_of("llava"), batch("llava", [[0]])
    with vtc.wrapped(model, [vtc.Streaming(keep=0.5), vtc.MiniCache(first=0)]):
        both = vtc.cache_bytes(model(**inputs, use_cache=True).past_key_values).rows
        assert vtc.report(model).notes == []
    with vtc.wrapped(model, vtc.Streaming(keep=0.5)):
        alone = vtc.cache_bytes(model(**inputs, use_cache=True).past_key_values).rows
    assert both < alone
    with vtc.wrapped(model, [vtc.H2O(keep=0.5), vtc.MiniCache(first=0)]):
        model(**inputs, use_cache=True)
        assert vtc.report(model).notes == [
            "minicache: 1 of 1 pairs of layers hold different tokens, and share nothing."
        ]


def test_refused() -> None:
    with pytest.raises(ValueError, match="minicache drops no tokens: leave keep= and every= out"):
        vtc.MiniCache(keep=0.5)
    with pytest.raises(ValueError, match=r"retention=1\.5"):
        vtc.MiniCache(retention=1.5)
    with pytest.raises(ValueError, match="both say what layers share"):
        vtc.wrap(model_of("llava"), [vtc.MiniCache(), vtc.MiniCache()])
