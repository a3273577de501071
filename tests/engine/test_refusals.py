"""What a caller brings and compression cannot honour is refused before any compute; plain text passes as it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, StaticCache
from transformers.cache_utils import DynamicLayer

import vtc
from tests.families import FAMILIES, batch, model_of
from tests.sweep import refused

METHODS = {name: ["divprune", "fastv", "h2o"][i % 3] for i, name in enumerate(FAMILIES)}


class HalvedLayer(DynamicLayer):
    """A layer that holds its rows in a form of its own, as quantised ones do."""


def triangle(inputs: Any) -> Tensor:
    length = inputs["input_ids"].shape[1]
    mask = torch.ones(length, length, dtype=torch.bool).tril()
    return mask.expand(len(inputs["input_ids"]), 1, -1, -1)


def restarting(inputs: Any) -> Tensor:
    length = inputs["input_ids"].shape[1]
    return torch.cat([torch.arange(length - 4), torch.arange(4)]).expand(len(inputs["input_ids"]), -1)


def without_mask(inputs: Any, **more: Any) -> dict[str, Any]:
    return {name: x for name, x in inputs.items() if name != "attention_mask"} | more


def of_layers(model: Any, layer: Callable[[], Any]) -> DynamicCache:
    cache = DynamicCache(config=model.config.get_text_config())
    cache.layers = [layer() for _ in cache.layers]
    return cache


def offloaded(model: Any) -> DynamicCache:
    """As `DynamicCache(offloading=True)` is, which wants an accelerator to be made."""
    cache = DynamicCache(config=model.config.get_text_config())
    cache.offloading = True
    return cache


#: (model, inputs) -> arguments; and words of the refusal
STRUCTURE: dict[str, tuple[Callable[[Any, Any], dict[str, Any]], str]] = {
    "packed rows": (lambda m, x: without_mask(x, position_ids=restarting(x)), "packed into one row"),
    "packed rows, no cache": (
        lambda m, x: without_mask(x, position_ids=restarting(x), use_cache=False), "packed into one row"
    ),
    "4-D mask": (lambda m, x: x | {"attention_mask": triangle(x)}, "must be 2-D"),
    "4-D mask of numbers": (
        lambda m, x: x | {"attention_mask": (~triangle(x)).float() * torch.finfo(torch.float32).min}, "must be 2-D"
    ),
    "dict of masks": (lambda m, x: x | {"attention_mask": {"full_attention": triangle(x)}}, "must be 2-D"),
    "cu_seq_lens": (
        lambda m, x: without_mask(x, **{f"cu_seq_lens_{n}": torch.tensor([0, 4, x["input_ids"].shape[1]],
                                                                         dtype=torch.int32) for n in "qk"}),
        "packed into one row",
    ),
}  # fmt: skip
CACHES: dict[str, tuple[Callable[[Any], Any], str]] = {
    "static": (lambda m: StaticCache(m.config.get_text_config(), max_cache_len=200), "fixed length"),
    "offloaded": (lambda m: offloaded(m), "an offloaded KV cache"),
    "quantised": (lambda m: of_layers(m, HalvedLayer), "HalvedLayer"),
    "a tuple": (lambda m: ((torch.zeros(1), torch.zeros(1)),), "tuple; expected a transformers DynamicCache"),
}


def outcome(call: Callable[[], Any]) -> Any:
    """The logits of a call, or what it raises."""
    try:
        return call().logits
    except Exception as error:
        return type(error), str(error)


@pytest.mark.parametrize("case", STRUCTURE)
@pytest.mark.parametrize("family", FAMILIES)
def test_structure(family: str, case: str) -> None:
    (made, words), model = STRUCTURE[case], model_of(family)
    inputs, text = batch(family, [[0]]), batch(family, [[]])
    plain = outcome(lambda: model(**made(model, text)))
    with vtc.wrapped(model, METHODS[family], keep=0.5):
        before = model(**inputs).logits
        with refused(model, words):
            model(**made(model, inputs))
        assert model(**inputs).logits.equal(before)
        passed = outcome(lambda: model(**made(model, text)))
    assert passed.equal(plain) if isinstance(plain, Tensor) else passed == plain


@pytest.mark.parametrize("case", CACHES)
@pytest.mark.parametrize("family", FAMILIES)
def test_caches(family: str, case: str) -> None:
    (made, words), model = CACHES[case], model_of(family)
    inputs, text = batch(family, [[0]]), batch(family, [[]])
    plain = outcome(lambda: model(**text, past_key_values=made(model)))
    with vtc.wrapped(model, METHODS[family], keep=0.5):
        before = model(**inputs).logits
        with refused(model, words):
            model(**inputs, past_key_values=made(model))
        assert model(**inputs).logits.equal(before)
        passed = outcome(lambda: model(**text, past_key_values=made(model)))
    assert passed.equal(plain) if isinstance(plain, Tensor) else passed == plain


@pytest.mark.parametrize("family", FAMILIES)
def test_cache_implementation(family: str) -> None:
    model, inputs = model_of(family), batch(family, [[0]])
    with vtc.wrapped(model, METHODS[family], keep=0.5), refused(model, "cache_implementation=", generate=True):
        model.generate(**inputs, max_new_tokens=2, do_sample=False, cache_implementation="static")


@pytest.mark.parametrize("case", [name for name in STRUCTURE if "packed" not in name])
@pytest.mark.parametrize("family", FAMILIES)
def test_structure_of_text_on_a_compressed_cache(family: str, case: str) -> None:
    """A later turn brings no picture, but the cache has lost rows."""
    (made, words), model = STRUCTURE[case], model_of(family)
    inputs, more = batch(family, [[0]]), {"input_ids": torch.tensor([[40, 41, 42, 43, 44, 45]])}
    more["attention_mask"] = torch.ones(1, inputs["input_ids"].shape[1] + 6)
    with vtc.wrapped(model, METHODS[family], keep=0.5):
        cache = model(**inputs, use_cache=True).past_key_values
        held = [layer.keys.shape[2] for layer in cache.layers]
        with refused(model, words):
            model(**made(model, more), past_key_values=cache, use_cache=True)
        assert [layer.keys.shape[2] for layer in cache.layers] == held
        more.pop("attention_mask")
        assert model(**more, past_key_values=cache, use_cache=True).logits.isfinite().all()


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_text(family: str) -> None:
    """Two texts in one row: each answers as it does alone, wrapped or not."""
    model = model_of(family)
    one, two = torch.tensor([[1, 10, 11, 12, 13]]), torch.tensor([[1, 20, 21]])
    positions = torch.tensor([[0, 1, 2, 3, 4, 0, 1, 2]])
    if family.startswith("qwen"):  # text's own positions first, then (t, h, w)
        positions = positions.expand(4, 1, -1)
    row = dict(input_ids=torch.cat([one, two], dim=1), position_ids=positions)
    plain = model(**row, use_cache=False).logits
    with vtc.wrapped(model, METHODS[family], keep=0.5):
        assert model(**row, use_cache=False).logits.equal(plain)
        alone = torch.cat([model(input_ids=one).logits, model(input_ids=two).logits], dim=1)
    assert (alone - plain).abs().max() / plain.abs().max() < 1e-5


@pytest.mark.parametrize("family", [name for name in FAMILIES if name.startswith("qwen")])
def test_packed_rows_that_only_text_positions_tell(family: str) -> None:
    model, inputs = model_of(family), batch(family, [[0]])
    length = inputs["input_ids"].shape[1]
    whole = torch.arange(length).expand(4, 1, -1)
    packed = torch.cat([restarting(inputs)[None], whole[1:]])
    with vtc.wrapped(model, METHODS[family], keep=0.5):
        with refused(model, "packed into one row"):
            model(**without_mask(inputs, position_ids=packed))
        assert model(**without_mask(inputs, position_ids=whole)).logits.shape[1] == length
