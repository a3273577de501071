"""The proof of methods that leave patches out before the tower: the whole model equals the one in whose tower these
patches, and in whose language model their tokens, cannot be seen."""

from __future__ import annotations

import re
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers.vision_utils import get_vision_window_index

import vtc
from tests.engine.test_oracle import proved
from tests.engine.test_pixels import small, text_logits
from tests.engine.test_threads import answer, assert_same, together
from tests.families import IMAGE, VIDEO, batch, model_of
from tests.tower_oracle import tower_oracle

FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
BATCHES: dict[str, tuple[list[list[int | str]], str]] = {
    "one": ([[0]], "left"),
    "left padded": ([[0], [1, 2], []], "left"),
    "right padded": ([[3], [1, 2]], "right"),
    "video": ([["v0"]], "left"),
    "videos and images": ([["v0", 1], [2, "v1"]], "left"),
}
METHODS: dict[str, Any] = {
    "pixelprune": vtc.PixelPrune(keep=0.4),
    "pixelprune, few": vtc.PixelPrune(keep=2),
    "framededupe": vtc.FrameDedupe(keep=0.5),
    "framededupe, coded": vtc.FrameDedupe(keep=0.3, first="coded"),
    "both": [vtc.PixelPrune(keep=0.7), vtc.FrameDedupe(keep=0.4)],
}


def flat(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same batch with pictures that repeat themselves: a band of one colour in each, and still places in videos."""
    found = dict(inputs)
    for pixels, grids in (("pixel_values", "image_grid_thw"), ("pixel_values_videos", "video_grid_thw")):
        if pixels not in inputs:
            continue
        found[pixels], start = inputs[pixels].clone(), 0
        for t, h, w in inputs[grids].tolist():
            own = found[pixels][start : start + t * h * w].view(t, h * w // 4, -1)  # a view: tokens of each frame
            own[:, : w // 2 + 1] = 0.25  # the first row of tokens, and one more
            own[1:, -3:] = own[:1, -3:]
            start += t * h * w
    return found


def seen_by_the_tower(model: Any) -> list[Tensor]:
    """What is left of each run's tokens, images before videos, by the record of the wrapped model."""
    record = model._vtc_engine.trace
    steps = record.steps[:1]
    found = []
    for modality in ("image", "video"):
        own = [
            torch.zeros(len(c.source), dtype=torch.bool).index_fill_(0, c.anchor, True)
            for s, c in zip(record.spans, steps[0][1], strict=True)
            if s.modality == modality
        ]
        found += [torch.cat(own)] if own else []
    return found


def equal_to_oracle(family: str, attention: str, items: Any, side: str, methods: Any, inputs: Any = None) -> Any:
    inputs = batch(family, items, side) if inputs is None else inputs

    def hidden(model: Any) -> Any:
        return tower_oracle(model, seen_by_the_tower(model))

    return proved(model_of(family, attention), inputs, len(items), side, methods, hidden)


@pytest.mark.core_cells(method=["pixelprune", "framededupe"], attention=["sdpa"])
@pytest.mark.sampled(most=0.4)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("rows", BATCHES.values(), ids=BATCHES)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", FAMILIES)
def test_matrix(family: str, method: str, rows: Any, attention: str) -> None:
    items, side = rows
    report = equal_to_oracle(family, attention, items, side, METHODS[method])
    videos = any(isinstance(item, str) for row in items for item in row)
    assert (report.tokens_out < report.tokens_in) == (videos or not method.startswith("framededupe"))
    assert report.tokens_by_layer == [report.tokens_out] * 3


@pytest.mark.parametrize("method", [vtc.PixelPrune(), vtc.FrameDedupe(), vtc.PixelPrune(tau=0.1)], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_by_threshold_pictures_keep_differently_much(family: str, method: Any) -> None:
    items: Any = [["v0", 1], [2, "v1"], [0]]
    report = equal_to_oracle(family, "sdpa", items, "left", method, flat(batch(family, items)))
    shares = {span.tokens_in - span.tokens_out for span in report.spans if span.modality in method.modality}
    assert min(shares) > 0
    assert len(shares) > 1


AFTER: dict[str, Any] = {
    "vtc-cls": vtc.VTCCLS(keep=0.3, positions="original"),
    "vtc-cls, compact": vtc.VTCCLS(keep=0.3, positions="compact"),
    "visionzip": vtc.VisionZip(keep=4),
    "tome": vtc.ToMe(keep=0.3),
    "todre": vtc.ToDRE(keep=0.3, tau=None),
    "fastv": vtc.FastV(keep=3, layers=(1,)),
    "h2o": vtc.H2O(keep=0.3),
}


@pytest.mark.parametrize("method", AFTER)
@pytest.mark.parametrize("family", FAMILIES)
def test_other_stages_follow(family: str, method: str) -> None:
    items: Any = [["v0", 1], [2, "v1"], []]
    report = equal_to_oracle(family, "sdpa", items, "left", [vtc.PixelPrune(keep=0.6), AFTER[method]])
    assert [stage.name for stage in report.stages] == ["pixelprune", method.split(",")[0]]
    assert report.stages[0].tokens_in == report.tokens_in > report.stages[0].tokens_out
    assert report.stages[0].tokens_out > report.stages[1].tokens_out


@pytest.mark.parametrize("family", FAMILIES)
def test_a_later_method_never_chooses_what_is_gone(family: str) -> None:
    """Its fractions are those of the whole picture, as at every later stage; it reads the tower that has seen less."""
    model, inputs = model_of(family), batch(family, [[0], ["v0"]])
    with torch.no_grad(), vtc.wrapped(model, "pixelprune", keep=0.5):
        model(**inputs)
        there = [set(span.kept.tolist()) for span in vtc.report(model).spans]
    with torch.no_grad(), vtc.wrapped(model, [vtc.PixelPrune(keep=0.5), vtc.VTCCLS(keep=0.25)]):
        model(**inputs)
        spans = vtc.report(model).spans
    assert all(set(span.kept.tolist()) < own for span, own in zip(spans, there, strict=True))
    assert [span.tokens_out for span in spans] == [round(0.25 * span.tokens_in) for span in spans]


@pytest.mark.parametrize("family", FAMILIES)
def test_signals_are_those_of_the_masked_tower(family: str) -> None:
    """Received attention, added up by hand in the tower that cannot see what is gone."""
    model, inputs = model_of(family, "eager"), batch(family, [[0], [1]])
    with torch.no_grad(), vtc.wrapped(model, [vtc.PixelPrune(keep=0.5), vtc.VTCCLS(keep=0.5)]):
        model(**inputs)
        kept = seen_by_the_tower(model)
        output = model.model.get_image_features(inputs["pixel_values"], inputs["image_grid_thw"], return_dict=True)
        (found,) = (x.flatten() for x in output["vtc"]["signals"].values())
    received: list[Tensor] = []  # per block, [patches] of both pictures, in the blocks' order
    with torch.no_grad(), tower_oracle(model, kept, received):
        model(**inputs)
    expected = torch.zeros(len(found))
    order = range(len(found))
    if family == "qwen2_5_vl":
        visual = model.model.visual
        windows = (visual.spatial_merge_size, visual.window_size, visual.patch_size)
        order = get_vision_window_index(inputs["image_grid_thw"], *windows)[0].tolist()
    for place, token in enumerate(order):
        expected[token] = received[-1][4 * place : 4 * place + 4].sum()
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
    assert bool((found[~kept[0]] == 0).all())


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_alone_are_as_together(family: str) -> None:
    rows: Any = [[0], ["v0", 1], [2]]
    model, whole = model_of(family), batch(family, rows, "right")
    method = [vtc.PixelPrune(keep=0.5), vtc.FrameDedupe(keep=0.3)]
    with torch.no_grad(), vtc.wrapped(model, method):
        expected = model(**whole).logits
        model.model.rope_deltas = None
        spans = vtc.report(model).spans
        for r, row in enumerate(rows):
            inputs = batch(family, [row], "right")
            ids = whole["input_ids"][r, : int(whole["attention_mask"][r].sum())][None]  # with the words of row r
            types = (ids == IMAGE).int() + 2 * (ids == VIDEO).int()
            inputs |= {"input_ids": ids, "attention_mask": torch.ones_like(ids), "mm_token_type_ids": types}
            alone = model(**inputs).logits
            model.model.rope_deltas = None
            own = [span.kept.tolist() for span in vtc.report(model).spans]
            assert own == [span.kept.tolist() for span in spans if span.row == r]
            torch.testing.assert_close(alone[0, -1], expected[r, alone.shape[1] - 1], atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_small_picture_may_lose_patches(family: str) -> None:
    """What the small picture alone would keep, for the model that is given it."""
    model, inputs = model_of(family), batch(family, [[0], [1, 2]])
    less = small(inputs, 12, "left")
    with torch.no_grad(), vtc.wrapped(model, "pixelprune", keep=0.5):
        expected = model(**less).logits
        alone = vtc.report(model)
    model.model.rope_deltas = None
    with torch.no_grad(), vtc.wrapped(model, [vtc.Downsample(keep=12), vtc.PixelPrune(keep=0.5)]):
        found = model(**inputs).logits
        report = vtc.report(model)
    model.model.rope_deltas = None
    assert [span.kept.tolist() for span in report.spans] == [span.kept.tolist() for span in alone.spans]
    assert [stage.name for stage in report.stages] == ["downsample", "pixelprune"]
    assert report.tokens_in == 24 + 35 + 16 > report.stages[0].tokens_out == alone.tokens_in
    for ours, theirs in zip(text_logits(found, inputs), text_logits(expected, less), strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_picture_in_a_later_turn(family: str) -> None:
    """Both pictures lose patches; the later one is read behind a cache that has lost tokens."""
    model, first, later = model_of(family), batch(family, [[0]]), batch(family, [[3]])
    del later["attention_mask"]
    with torch.no_grad(), vtc.wrapped(model, "pixelprune", keep=0.5):
        cache = model(**first).past_key_values
        held = cache.layers[0].keys.shape[2]
        model(**later, past_key_values=cache)
        report = vtc.report(model)
        assert held == first["input_ids"].shape[1] - 12
        assert cache.layers[0].keys.shape[2] == held + later["input_ids"].shape[1] - 9
    assert (report.tokens_in, report.tokens_out) == (18, 9)
    model.model.rope_deltas = None


def test_threads_do_not_meet() -> None:
    model = model_of("qwen2_5_vl")
    asked = [batch("qwen2_5_vl", rows) for rows in ([[0]], [["v0", 1]], [[2], [3]])]
    with vtc.wrapped(model, [vtc.PixelPrune(keep=0.5), vtc.VTCCLS(keep=4)]):
        alone = [answer(model, inputs) for inputs in asked]
        for got, right in zip(together([partial(answer, model, x) for x in asked]), alone, strict=True):
            assert_same(got, right)


def test_gradients_reach_what_is_kept_and_nothing_else() -> None:
    model, inputs = model_of("qwen2_5_vl"), batch("qwen2_5_vl", [[0]])
    inputs["pixel_values"].requires_grad_()
    with vtc.wrapped(model, "pixelprune", keep=0.25), torch.enable_grad():
        model(**inputs).logits[0, -1].sum().backward()
        (span,) = vtc.report(model).spans
    grown = inputs["pixel_values"].grad
    assert grown is not None
    moved = (grown.abs().sum(dim=1) > 0).view(-1, 4)
    assert moved.all(dim=1).nonzero()[:, 0].tolist() == span.kept.tolist()
    assert not bool(moved[[i for i in range(24) if i not in span.kept.tolist()]].any())
    model.zero_grad()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_towers_flops_are_those_that_torch_counts(family: str) -> None:
    """The blocks' alone, which is what the report accounts for."""
    model, inputs = model_of(family, "eager"), batch(family, [[0, 1]])

    def counted() -> int:
        total = 0
        with torch.no_grad(), FlopCounterMode(model.model.visual, display=False) as counter:
            model(**inputs)
        for name, own in counter.get_flop_counts().items():
            if re.fullmatch(r".*blocks\.\d+", name):
                total += sum(own.values())
        return total

    full = counted()
    with vtc.wrapped(model, "pixelprune", keep=0.3):
        kept = counted()
        report = vtc.report(model)
    assert report.tower is not None
    assert report.tower.flops == (full, kept)
    assert report.tower.tokens_by_block == tuple([4 * report.tokens_out] * 3)
    assert "tower FLOPs" in str(report)


def test_nothing_is_done_where_nothing_leaves() -> None:
    model, inputs = model_of("qwen2_5_vl"), batch("qwen2_5_vl", [[0, 1]])
    with torch.no_grad():
        expected = model(**inputs).logits
        for method in (vtc.PixelPrune(keep=1000), vtc.PixelPrune(tau=None), vtc.FrameDedupe(keep=0.1)):
            with vtc.wrapped(model, method):
                assert torch.equal(model(**inputs).logits, expected)
                assert vtc.report(model).tokens_out == 24 + 35


def test_pictures_of_one_block() -> None:
    model = model_of("qwen2_5_vl")
    ids = torch.tensor([[1, 3, 2, 4, 30]])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "mm_token_type_ids": (ids == 2).int()}
    inputs |= {"pixel_values": torch.randn(4, 96), "image_grid_thw": torch.tensor([[1, 2, 2]])}
    with torch.no_grad():
        expected = model(**inputs).logits
        for keep in (0.01, 1, 1.0):
            with vtc.wrapped(model, "pixelprune", keep=keep):
                assert torch.equal(model(**inputs).logits, expected)


@pytest.mark.parametrize("name", ["pool", "evs", "uniform-frames"])
def test_methods_that_need_the_grid_are_refused(name: str) -> None:
    said = rf"^{name} needs the whole grid, in which pixelprune leaves holes: use one of them\.$"
    with pytest.raises(ValueError, match=said):
        vtc.wrap(model_of("qwen2_5_vl"), [vtc.PixelPrune(keep=0.5), vtc.resolve(name)])


def test_resizing_comes_first() -> None:
    said = r"^downsample resizes whole pictures, and pixelprune leaves holes in them: name downsample first\.$"
    with pytest.raises(ValueError, match=said):
        vtc.wrap(model_of("qwen2_5_vl"), [vtc.PixelPrune(keep=0.5), vtc.Downsample(keep=6)])


@pytest.mark.parametrize("given", ["cu_seqlens", "position_ids", "window_index"])
def test_what_was_made_for_the_whole_picture_is_refused(given: str) -> None:
    model, inputs = model_of("qwen2_5_vl"), batch("qwen2_5_vl", [[0]])
    with vtc.wrapped(model, "pixelprune", keep=0.5), pytest.raises(ValueError, match=f"^{given}= was made for the"):
        model.model.visual(inputs["pixel_values"], grid_thw=inputs["image_grid_thw"], **{given: torch.zeros(3)})


def test_encoded_features_and_encoding_are_refused() -> None:
    model, inputs = model_of("qwen2_5_vl"), batch("qwen2_5_vl", [[0]])
    vision = {name: inputs[name] for name in ("pixel_values", "image_grid_thw")}
    words = {name: inputs[name] for name in ("input_ids", "attention_mask", "mm_token_type_ids")}
    encoded = vtc.encode(model, "random", **vision)
    with vtc.wrapped(model, "pixelprune", keep=0.5):
        with pytest.raises(ValueError, match="acts before the vision tower, which has run already"):
            model(**words, **encoded.take([0]))
        with pytest.raises(ValueError, match="unwrap it before"):
            vtc.encode(model, "random", **vision)
    with pytest.raises(ValueError, match="acts before the vision tower"):
        vtc.encode(model, vtc.PixelPrune(keep=0.5), **vision)


def test_framededupe_says_that_it_is_for_videos() -> None:
    model = model_of("qwen2_5_vl")
    with torch.no_grad(), vtc.wrapped(model, "framededupe", keep=0.5):
        model(**batch("qwen2_5_vl", [[0]]))
        assert vtc.report(model).notes == [
            "framededupe is for videos, and there are only pictures here: it changed nothing."
        ]


def test_overlays_show_what_has_left() -> None:
    model, inputs = model_of("qwen2_5_vl"), batch("qwen2_5_vl", [[0]])
    with torch.no_grad(), vtc.wrapped(model, "pixelprune", keep=0.25):
        model(**inputs)
        (span,) = vtc.report(model).spans
    drawn = np.asarray(vtc.overlay(Image.new("RGB", (64, 96), "white"), span, side=96, captions=False)).mean(axis=2)
    bright = [drawn[y * 16 + 8, x * 16 + 8] > 200 for y in range(6) for x in range(4)]
    assert [i for i, own in enumerate(bright) if own] == span.kept.tolist()
