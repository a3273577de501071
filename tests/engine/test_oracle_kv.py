"""The proof for methods of the KV cache that choose by head, by layer, or merge: prompts, scopes, choosing again."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import vtc
from tests.engine.cells import crossed
from tests.engine.test_oracle_inside import MIXED, PROMPTS, equal_to_oracle
from tests.families import FAMILIES, batch, model_of
from tests.methods.test_definition_minicache import defined

METHODS: dict[str, Any] = {
    "snapkv": vtc.SnapKV(keep=0.4, window="text"),
    "pyramidkv": vtc.PyramidKV(keep=0.3, beta=4),
    "adakv": vtc.AdaKV(keep=0.4, floor=0.0, window=6),
    "vl-cache": vtc.VLCache(keep=0.4, p=0.5),
    "knorm": vtc.KNorm(keep=0.4),
    "keydiff": vtc.KeyDiff(keep=0.4, rotated=False),
    "lookm": vtc.LookM(keep=0.4),
    "d2o": vtc.D2O(keep=0.4),
    "ems": vtc.EMS(keep=0.4, threshold=0.2),
    "razor": vtc.Razor(keep=0.4, heads=((0, 1), (2, 0))),
    "random-rows": vtc.RandomRows(keep=0.4),
    "h2o": vtc.H2O(keep=0.4, per_head=True, corrected=True),
    "scissorhands": vtc.Scissorhands(keep=0.4, per_head=True),
}
ALL = {name: vtc.resolve(method, scope="all") for name, method in METHODS.items()}
APART = {name: vtc.resolve(method, scope="apart") for name, method in METHODS.items()}


@pytest.mark.parametrize(("prompts", "name"), crossed(PROMPTS, METHODS))
def test_prompts(prompts: str, name: str) -> None:
    rows, attention = PROMPTS[prompts]
    report = equal_to_oracle("qwen2_5_vl", METHODS[name], rows, attention)
    assert report.kv_bytes[1] < report.kv_bytes[0]


@pytest.mark.parametrize("scope", ["all", "apart"])
@pytest.mark.parametrize(("family", "name"), crossed(FAMILIES, METHODS))
def test_scopes(family: str, name: str, scope: str) -> None:
    equal_to_oracle(family, (ALL if scope == "all" else APART)[name], MIXED)


EVEN = [name for name, method in METHODS.items() if not method.uneven_heads]


@pytest.mark.parametrize("name", EVEN)
def test_chosen_again_while_decoding(name: str) -> None:
    equal_to_oracle("llava", vtc.resolve(METHODS[name], every=3), MIXED)


@pytest.mark.parametrize("name", [name for name in EVEN if not METHODS[name].merges])
def test_text_chosen_again_while_decoding(name: str) -> None:
    """The oracle cannot merge what has been said since the prompt."""
    equal_to_oracle("llava", vtc.resolve(METHODS[name], scope="all", every=3), MIXED)


@pytest.mark.parametrize("family", FAMILIES)
def test_layers_that_share(family: str) -> None:
    """minicache: going on from its cache equals going on from a plain one in which both layers hold what they share."""
    model, inputs = model_of(family), batch(family, *MIXED)
    expected = model(**inputs, use_cache=True).past_key_values
    for row, ids in enumerate(inputs["input_ids"].tolist()):
        slots = [i for i, token in enumerate(ids) if token == model.config.image_token_id]
        expected = defined(expected, slots, [(1, 2)] if slots else [], row=row)
    with vtc.wrapped(model, "minicache"):
        cache = model(**inputs, use_cache=True).past_key_values
        got = said_after(model, cache, inputs["attention_mask"])
    for mine, wanted in zip(got, said_after(model, expected, inputs["attention_mask"]), strict=True):
        assert (mine - wanted).abs().max() < 1e-4 * wanted.abs().max()


def said_after(model: Any, cache: Any, mask: torch.Tensor) -> list[torch.Tensor]:
    """Logits of five tokens that follow a cached prompt one by one."""
    found = []
    for word in range(40, 45):
        mask = torch.nn.functional.pad(mask, (0, 1), value=1)
        ids = torch.full((len(mask), 1), word)
        places = mask.sum(dim=1, keepdim=True) - 1
        places = places.expand(3, -1, -1) if "qwen" in model.config.model_type else places
        how = {"attention_mask": mask, "position_ids": places, "past_key_values": cache, "use_cache": True}
        found.append(model(input_ids=ids, **how).logits)
    return found
