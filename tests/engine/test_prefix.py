"""PaliGemma 2: the prompt sees itself whole, in layers with a window, too; an answer sees what its window reaches."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForImageTextToText

import vtc
from tests.engine.test_oracle import proved
from tests.families import batch, model_of
from tests.tiny_parts import IMAGE, PAD, TEXT, VIDEO

WINDOW = 14
KINDS = ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]


@cache
def second() -> Any:
    """A tiny PaliGemma 2: prompts of 70 tokens and more, a window of 14."""
    text = {**TEXT, "num_hidden_layers": 4, "head_dim": 8, "sliding_window": WINDOW, "layer_types": KINDS}
    first = model_of("paligemma").config
    config = AutoConfig.for_model(
        "paligemma",
        vision_config=first.vision_config.to_dict(),
        text_config={"model_type": "gemma2", "query_pre_attn_scalar": 8, "attn_logit_softcapping": None, **text},
        image_token_index=IMAGE,
        hidden_size=32,
        projection_dim=32,
    )
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(config)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.25)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = PAD
    model.generation_config.suppress_tokens = [IMAGE, VIDEO]
    return model.eval()


def inputs_of(rows: Any) -> dict[str, torch.Tensor]:
    return batch("paligemma", rows)


def test_the_first_token_sees_the_last_one() -> None:
    """Across more than a window: of the plain model, and so of the wrapped one."""
    model, inputs = second(), inputs_of([[0]])
    other = {**inputs, "input_ids": inputs["input_ids"].clone()}
    other["input_ids"][0, -1] = 50
    with torch.no_grad():
        plain, changed = model(**inputs).logits, model(**other).logits
        with vtc.wrapped(model, "divprune", keep=1.0):
            assert model(**inputs).logits.equal(plain)
            assert model(**other).logits.equal(changed)
    assert (plain[0, 0] - changed[0, 0]).abs().max() > 1e-3


METHODS: dict[str, Any] = {
    "before": vtc.DivPrune(keep=0.3),
    "before, compact": vtc.DivPrune(keep=0.3, positions="compact"),
    "between": vtc.FastV(keep=0.4, layers=(1,)),
    "between, compact": vtc.FastV(keep=0.4, layers=(2,), positions="compact"),
}


@pytest.mark.parametrize("name", METHODS)
def test_oracle(name: str) -> None:
    report = proved(second(), inputs_of([[0], [1]]), 2, "left", METHODS[name])
    assert report.tokens_in == 2 * 64
    assert report.tokens_out < report.tokens_in


def test_a_cache_method() -> None:
    found = vtc.check(second(), "h2o", 0.4, inputs=inputs_of([[0]]), show=None)
    assert found.of("some dropped").ok
    assert found.of("generation").ok


def test_what_is_given_of_an_answer_does_not_see_ahead() -> None:
    """Types of 1 stand for an answer that is scored: a token of it sees no later one."""
    model, inputs = second(), inputs_of([[0]])
    inputs["token_type_ids"][0, -4:] = 1
    proved(model, inputs, 1, "right", METHODS["before"])
    other = {**inputs, "input_ids": inputs["input_ids"].clone()}
    other["input_ids"][0, -1] = 50
    with torch.no_grad(), vtc.wrapped(model, METHODS["before"]):
        one, two = model(**inputs).logits, model(**other).logits
    assert one[0, :-1].equal(two[0, :-1])
