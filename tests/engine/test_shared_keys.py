"""Gemma 4's small models: the last layers read the keys of earlier ones, and an embedding per layer goes along."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText

import vtc
from tests.engine.test_oracle import proved
from tests.families import batch
from tests.listed_sliding import gemma4
from tests.tiny_parts import IMAGE, PAD, VIDEO

ROWS: Any = [[0], [1, 2], []]


@cache
def small() -> Any:
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(gemma4().config())
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.25)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = PAD
    model.generation_config.suppress_tokens = [IMAGE, VIDEO]
    return model.eval()


def test_the_model_is_as_it_is_said_to_be() -> None:
    config = small().config.get_text_config()
    assert config.kv_sharing_modes == [None, "store", "store", "reuse", "reuse"]
    assert config.hidden_size_per_layer_input == 6


@pytest.mark.parametrize(
    "method",
    [
        vtc.DivPrune(keep=0.3),
        vtc.DivPrune(keep=0.3, positions="compact"),
        vtc.FastV(keep=0.4, layers=(1,)),
        vtc.FastV(keep=0.4, layers=(1,), positions="compact"),
    ],
    ids=["before", "before, compact", "between", "between, compact"],
)
def test_oracle(method: Any) -> None:
    report = proved(small(), batch("gemma4", ROWS), 3, "left", method)
    assert report.tokens_out < report.tokens_in


@pytest.mark.parametrize(
    "method", [vtc.DivPrune(keep=0.3), vtc.FastV(keep=0.4, layers=(1,))], ids=["before", "between"]
)
def test_videos(method: Any) -> None:
    """Their frames see themselves in no layer of the small models; an embedding per layer goes along."""
    report = proved(small(), batch("gemma4", [["v0"], ["v1", 0], []]), 3, "left", method)
    assert [span.modality for span in report.spans] == ["video", "video", "image"]


def test_a_cache_method() -> None:
    """It acts in the one layer that holds the whole conversation, and whose keys two others read."""
    found = vtc.check(small(), "h2o", 0.4, inputs=batch("gemma4", [[0]]), show=None)
    assert found.of("some dropped").ok
    assert found.of("generation").ok


def test_a_second_turn() -> None:
    model, inputs = small(), batch("gemma4", [[0]])
    more = torch.tensor([[40, 41, 42]])
    with vtc.wrapped(model, "divprune", keep=0.4):
        first = model(**inputs, use_cache=True)
        later = model(input_ids=more, past_key_values=first.past_key_values).logits
        both = {**inputs, "input_ids": torch.cat([inputs["input_ids"], more], dim=1)}
        both["attention_mask"] = torch.ones_like(both["input_ids"])
        both["mm_token_type_ids"] = (both["input_ids"] == IMAGE).int()
        at_once = model(**both).logits[:, -3:]
    assert (later - at_once).abs().max() < 1e-5 * at_once.abs().max()


def test_steps_behind_the_keys_that_are_read_again_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"before layer 2, and layers of .* from 3 on see those of layer 1 again: .* 1\."
    ):
        vtc.wrap(small(), vtc.PyramidDrop(keep=0.2, layers=(1, 2)))


def test_bytes_of_layers_without_keys() -> None:
    model, inputs = small(), batch("gemma4", [[0]])
    with vtc.wrapped(model, "divprune", keep=0.4):
        cache = model(**inputs, use_cache=True).past_key_values
        report = vtc.report(model)
    assert report.kv_bytes[1] == vtc.cache_bytes(cache).rows
    assert [after for _, after in report.kv_bytes_by_layer][3:] == [0, 0]
