"""The proof for the KV cache by head: each head holds its own rows, rows take others in, layers hold unequally many."""

from __future__ import annotations

import pytest
import torch

import vtc
from tests.engine.cells import crossed
from tests.engine.heads import KINDS, ByLayer, Even, Uneven
from tests.engine.test_oracle import DECODERS
from tests.engine.test_oracle_inside import MIXED, PROMPTS, equal_to_oracle, talk
from tests.families import FAMILIES, batch, model_of
from tests.oracle import decisions, oracle

NAMES = list(KINDS)
SOME = ("heads, each its own number", "rows that weigh more")


@pytest.mark.core_cells(kind=SOME, family=["qwen2_5_vl", "llava"])
@pytest.mark.parametrize(("family", "kind"), crossed(FAMILIES, NAMES))
def test_padded(family: str, kind: str) -> None:
    equal_to_oracle(family, KINDS[kind], MIXED)


@pytest.mark.parametrize(
    "family", [pytest.param(f, marks=[] if f == "qwen2_5_vl" else pytest.mark.full) for f in FAMILIES]
)
@pytest.mark.parametrize(("kind", "prompts"), crossed(NAMES, PROMPTS))
def test_prompts(family: str, kind: str, prompts: str) -> None:
    rows, attention = PROMPTS[prompts]
    report = equal_to_oracle(family, KINDS[kind], rows, attention)
    assert report.tokens_out == report.tokens_in
    assert report.kv_bytes[1] < report.kv_bytes[0]


@pytest.mark.parametrize("family", [pytest.param(f, marks=[] if f == "llava" else pytest.mark.full) for f in FAMILIES])
@pytest.mark.parametrize(("decoder", "kind"), crossed([d for d in DECODERS if d != "no cache"], NAMES))
def test_decoders(family: str, kind: str, decoder: str) -> None:
    equal_to_oracle(family, KINDS[kind], ([[0], [1, 2], []], "left"), **{**DECODERS[decoder], "max_new_tokens": 6})


SCOPES = {"even": Even, "uneven": Uneven, "by layer": ByLayer}


@pytest.mark.parametrize("scope", ["apart", "all"])
@pytest.mark.parametrize(("family", "method"), crossed(FAMILIES, SCOPES))
def test_scopes(family: str, method: str, scope: str) -> None:
    equal_to_oracle(family, SCOPES[method](scope=scope), MIXED)


@pytest.mark.parametrize("scope", ["visual", "all"])
@pytest.mark.parametrize(("family", "method"), crossed(FAMILIES, ["even", "by layer"]))
def test_chosen_again(family: str, method: str, scope: str) -> None:
    equal_to_oracle(family, SCOPES[method](scope=scope, every=3), MIXED)


@pytest.mark.parametrize(("family", "kind"), crossed(FAMILIES, NAMES))
def test_behind_other_stages(family: str, kind: str) -> None:
    """Layers whose prompt has lost tokens before: their heads choose among what is left."""
    before = [vtc.VTCCLS(keep=0.6), vtc.TransPrune(keep=0.3, layers=(1, 2))]
    equal_to_oracle(family, [*before, KINDS[kind]], MIXED)


@pytest.mark.parametrize(("family", "kind"), crossed(FAMILIES, NAMES))
def test_second_turn(family: str, kind: str) -> None:
    model, inputs = model_of(family), batch(family, [[0], [1, 2]])
    with vtc.wrapped(model, KINDS[kind]):
        ids = talk(model, inputs)
        told = decisions(model)
    with oracle(model, told, 2, False):
        assert ids.equal(talk(model, inputs))


@pytest.mark.parametrize(("family", "kind"), crossed(FAMILIES, [name for name in NAMES if not KINDS[name].merges]))
def test_a_second_picture(family: str, kind: str) -> None:
    model, first, second = model_of(family), batch(family, [[0]]), batch(family, [[1]])
    with vtc.wrapped(model, KINDS[kind]):
        one = model(**first, use_cache=True)
        told = [decisions(model)]
        length = first["input_ids"].shape[1]
        late = {k: v for k, v in second.items() if k != "attention_mask"}
        late["position_ids"] = torch.arange(length, length + second["input_ids"].shape[1])[None]
        two = model(**late, past_key_values=one.past_key_values, use_cache=True)
        told.append(decisions(model))
        token = torch.tensor([[40]])
        three = model(input_ids=token, past_key_values=two.past_key_values, use_cache=True).logits
    with oracle(model, told[0], 1, False):
        cache = model(**first, use_cache=True).past_key_values
    with oracle(model, told[1], 1, False, told[0]):
        expected = model(**late, past_key_values=cache, use_cache=True)
        last = model(input_ids=token, past_key_values=expected.past_key_values, use_cache=True).logits
    text = late["input_ids"][0] != 2
    for got, wanted in ((two.logits[0, text], expected.logits[0, text]), (three, last)):
        assert (got - wanted).abs().max() / expected.logits.abs().max() < 1e-5


def test_memory_is_given_back() -> None:
    """What a cache occupies is what its heads hold, not what the fullest of them does."""
    model, inputs = model_of("qwen2_5_vl"), batch("qwen2_5_vl", [[0]])
    with vtc.wrapped(model, Uneven(keep=0.4)):
        cache = model(**inputs, use_cache=True).past_key_values
    for layer in cache.layers:
        assert layer.store is not None
        real = int(layer.tags["real"].sum())
        assert layer.store.keys.shape[0] == real < layer.tags["real"].numel()
        assert sum(x.untyped_storage().nbytes() for x in (layer.keys, layer.values)) == 0
