"""The vision tower's CLS token, projected and passed on: visionzip(cls=True) and visiondrop(cls=True)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForImageTextToText

import vtc
from tests.engine.test_oracle import equal_to_oracle
from tests.families import FAMILIES, IMAGE, batch, model_of


def projected(model: Any, pixels: Tensor, layer: Any = -2) -> Tensor:
    """[crops, D] by plain transformers."""
    states = model.model.vision_tower(pixels, output_hidden_states=True).hidden_states
    layers = layer if isinstance(layer, list) else [layer]
    return model.model.multi_modal_projector(torch.cat([states[i][:, 0] for i in layers], dim=-1))


def embeds_of(model: Any, method: Any, inputs: dict[str, Any]) -> Tensor:
    """What the language model reads of one row under `method`: [S, D]."""
    seen: list[Tensor] = []
    with torch.no_grad(), vtc.wrapped(model, method):
        hook = model.model.language_model.register_forward_pre_hook(
            lambda module, args, kwargs: seen.append(kwargs["inputs_embeds"]), with_kwargs=True
        )
        model(**inputs)
        hook.remove()
    return seen[0][0]


@pytest.mark.core
def test_it_comes_first() -> None:
    model, inputs = model_of("llava"), batch("llava", [[3]])
    start = inputs["input_ids"][0].tolist().index(IMAGE)
    for keep in (1, 2, 12, 35):
        read = embeds_of(model, vtc.VisionZip(keep=keep, cls=True), inputs)
        torch.testing.assert_close(read[start], projected(model, inputs["pixel_values"])[0])
        assert len(read) == inputs["input_ids"].shape[1] - 36 + keep
        without = embeds_of(model, vtc.VisionZip(keep=keep, cls=False), inputs)
        few = min(round(keep * 10 / 64), keep - 1)
        dominant = {tuple(row.tolist()) for row in without[start : start + keep - few]}
        assert {tuple(row.tolist()) for row in read[start + 1 : start + keep - few]} < dominant


@pytest.mark.core
def test_each_crop_has_its_own() -> None:
    """Of five images; thumbnails and crops in the order in which the tower reads them."""
    model = model_of("llava_next")
    for seed in range(4):
        inputs = batch("llava_next", [[seed]])
        start = inputs["input_ids"][0].tolist().index(IMAGE)
        read = embeds_of(model, vtc.VisionZip(keep=0.2, cls=True), inputs)
        pixels = inputs["pixel_values"][0]
        expected = projected(model, pixels[pixels.flatten(1).any(dim=1)])
        where = [int((read - cls).norm(dim=1).argmin()) for cls in expected]
        torch.testing.assert_close(read[where], expected)
        assert where[0] == start
        assert where == sorted(set(where))


def test_each_frame_has_its_own() -> None:
    model, inputs = model_of("llava_next_video"), batch("llava_next_video", [[1, "v0", "v1"]])
    read = embeds_of(model, vtc.VisionZip(keep=0.3, cls=True), inputs)
    expected = projected(model, inputs["pixel_values_videos"].flatten(0, 1))
    where = [int((read - cls).norm(dim=1).argmin()) for cls in expected]
    torch.testing.assert_close(read[where], expected)
    assert where == sorted(set(where))
    assert len(where) == 8


@pytest.mark.parametrize("positions", ["original", "compact"])
@pytest.mark.parametrize("method", [vtc.VisionZip, vtc.VisionDrop])
@pytest.mark.parametrize("family", ["llava", "llava_next", "llava_next_video"])
def test_it_equals_the_oracle(family: str, method: Any, positions: str) -> None:
    rows: Any = [["v0"], [1, 0], []] if family.endswith("video") else [[1], [0, 2], []]
    report = equal_to_oracle(family, "sdpa", rows, "left", method(keep=0.3, cls=True, positions=positions))
    for span in report.spans:
        assert method is vtc.VisionDrop or span.tokens_out == round(0.3 * span.tokens_in)


@pytest.mark.parametrize("family", ["llava", "llava_next"])
def test_encoded_once(family: str) -> None:
    """The token travels with the features, whatever order pictures are asked about in."""
    model, inputs, method = model_of(family), batch(family, [[2, 1]]), vtc.VisionZip(keep=0.3, cls=True)
    encoded = vtc.encode(model, method, **batch(family, [[0, 1, 2]]))
    text = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad(), vtc.wrapped(model, method):
        expected = model(**inputs).logits
        torch.testing.assert_close(model(**text, **encoded.take([2, 1])).logits, expected)


def test_it_is_encoded_under_another_wrap() -> None:
    """Hooks of both wait for the projector; projecting a token of one's own must not count as its patches."""
    model, pictures = model_of("llava_next"), batch("llava_next", [[1, 3]])
    method = vtc.VisionZip(keep=0.3, cls=True)
    with torch.no_grad(), vtc.wrapped(model, method):
        expected = model(**pictures).logits
        encoded = vtc.encode(model, method, **pictures)
        text = {name: pictures[name] for name in ("input_ids", "attention_mask")}
        torch.testing.assert_close(model(**text, **encoded.take([0, 1])).logits, expected)


def test_features_of_several_layers() -> None:
    config = FAMILIES["llava"].config()
    config.vision_feature_layer = [-3, -2]
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(config).eval()
    inputs = batch("llava", [[3]])
    read = embeds_of(model, vtc.VisionZip(keep=9, cls=True), inputs)
    start = inputs["input_ids"][0].tolist().index(IMAGE)
    torch.testing.assert_close(read[start], projected(model, inputs["pixel_values"], [-3, -2])[0])


def test_a_picture_kept_whole_has_no_place_for_it() -> None:
    model, inputs = model_of("llava"), batch("llava", [[3]])
    with torch.no_grad():
        expected = model(**inputs).logits
        with vtc.wrapped(model, vtc.VisionZip(keep=1.0, cls=True)):
            assert model(**inputs).logits.equal(expected)


@pytest.mark.parametrize(
    ("family", "why"),
    [
        ("llava_siglip", "siglip_vision_model has none"),
        ("llava_onevision", "siglip_vision_model has none"),
        ("qwen2_5_vl", "qwen2_5_vl_vision has none"),
        ("internvl", "the projector of internvl takes no single token"),
    ],
)
@pytest.mark.parametrize("method", ["visionzip", "visiondrop"])
def test_models_that_cannot(family: str, why: str, method: str) -> None:
    message = f"^{method} is to pass on the vision tower's CLS token, but {why}; give cls=False.$"
    with pytest.raises(ValueError, match=message):
        vtc.wrap(model_of(family), method, cls=True)


@pytest.mark.parametrize("method", [vtc.VisionZip, vtc.VisionDrop])
def test_options_that_do_not_fit(method: Any) -> None:
    for scope in ("frame", "clip"):
        with pytest.raises(ValueError, match=f'^cls=True is about the CLS token of each crop, which scope="{scope}"'):
            method(cls=True, scope=scope)
    with pytest.raises(ValueError, match=r"^cls='yes' of \w+ is neither True nor False\.$"):
        method(cls="yes")
    assert vtc.resolve(str(method(cls=True))) == method(cls=True)


def test_without_a_model() -> None:
    """Bare tensors: one token per frame, by keyword."""
    x, cls = torch.randn(24, 5), torch.randn(2, 5)
    method = vtc.VisionZip(keep=6, cls=True)
    signals: dict[str, Any] = dict(cls_attention=torch.rand(24), keys=torch.randn(24, 3))
    out = vtc.select(method, x, grid=(2, 3, 4), cls_token=cls, **signals).apply(x)
    assert out[0].equal(cls[0])
    assert out[3].equal(cls[1])
    with pytest.raises(ValueError, match=r"^cls_token has shape \(1, 5\); expected \[2, D\]\.$"):
        vtc.select(method, x, grid=(2, 3, 4), cls_token=cls[:1], **signals)
