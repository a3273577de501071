"""Patches that leave before a tower of a fixed grid: the whole model equals the one in which they cannot be seen."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

import vtc
from tests.engine.test_oracle import proved
from tests.families import batch, model_of
from tests.tower_oracle import tower_oracle
from vtc.methods.shared.coding import edge_errors, neighbours

FAMILIES = ("llava", "llava_siglip", "llava_next", "llava_next_video", "internvl")
BATCHES: dict[str, tuple[list[list[int]], str]] = {
    "one": ([[0]], "left"),
    "left padded": ([[0], [1, 2], []], "left"),
    "right padded": ([[3], [1, 2]], "right"),
}
SIDE, DEVIATION = 4, {
    "internvl": (0.229, 0.224, 0.225),
    "llava_siglip": (0.5, 0.5, 0.5),
    "clip": (0.26862954, 0.26130258, 0.27577711),
}  # fmt: skip


def rows_seen(family: str, pixels: Tensor, keep: float) -> Tensor:
    """BoolTensor [T] of one crop [3, H, W]: CLS, where there is one, and the patches of the blocks that pixelprune
    keeps. Blocks are looked at one by one."""
    fold = 2 if family == "internvl" else 1
    unit = SIDE * fold
    h, w = pixels.shape[1] // unit, pixels.shape[2] // unit
    scale = torch.tensor(DEVIATION.get(family, DEVIATION["clip"]))[:, None, None]
    blocks = torch.stack([
        (pixels * scale)[:, y * unit : (y + 1) * unit, x * unit : (x + 1) * unit].reshape(-1)
        for y in range(h)
        for x in range(w)
    ]).view(1, h, w, -1)  # fmt: skip
    errors = edge_errors(*neighbours(blocks, "max")).flatten().tolist()
    stay = sorted(range(h * w), key=lambda i: (-errors[i], i))[: max(1, round(keep * h * w))]
    seen = [] if family == "llava_siglip" else [True]
    for y in range(h * fold):
        for x in range(w * fold):
            seen.append((y // fold) * w + x // fold in stay)
    return torch.tensor(seen)


def equal_to_oracle(family: str, attention: str, items: Any, side: str, methods: Any, keep: float) -> Any:
    model, inputs = model_of(family, attention), batch(family, items, side)
    crops: list[Tensor] = []
    note = model.model.vision_tower.register_forward_pre_hook(
        lambda _, args, kwargs: crops.append(args[0] if args else kwargs["pixel_values"]), with_kwargs=True
    )
    with torch.no_grad():
        model(**inputs)
    note.remove()
    kept = [torch.stack([rows_seen(family, one, keep) for one in crops[0]])]
    return proved(model, inputs, len(items), side, methods, lambda model: tower_oracle(model, kept))


@pytest.mark.core_cells(attention=["sdpa"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("rows", BATCHES.values(), ids=BATCHES)
@pytest.mark.parametrize("family", FAMILIES)
def test_matrix(family: str, rows: Any, attention: str) -> None:
    items, side = rows
    report = equal_to_oracle(family, attention, items, side, vtc.PixelPrune(keep=0.4), 0.4)
    assert report.tokens_out < report.tokens_in
    if "next" not in family:  # crops are cut to the picture, and have separators
        for span in report.spans:
            crops = span.tokens_in // (9 if family == "internvl" else 36)
            assert span.tokens_out == crops * round(0.4 * span.tokens_in / crops)


def test_separators_stay() -> None:
    model, inputs = model_of("llava_next"), batch("llava_next", [[2]])
    with vtc.wrapped(model, "pixelprune", keep=0.1):
        model(**inputs)
        (span,) = vtc.report(model).spans
    inside = torch.cat([tile.indices().flatten() for tile in span.tiles]).tolist()
    separators = set(range(span.tokens_in)) - set(inside)
    assert separators
    assert separators < set(span.kept.tolist())


AFTER: dict[str, Any] = {
    "vtc-cls": vtc.VTCCLS(keep=0.2, positions="original"),
    "vtc-cls, compact": vtc.VTCCLS(keep=0.2, positions="compact"),
    "visionzip": vtc.VisionZip(keep=0.2),
    "fastv": vtc.FastV(keep=0.2, layers=(1,)),
    "h2o": vtc.H2O(keep=0.2),
}


@pytest.mark.parametrize("method", AFTER)
@pytest.mark.parametrize("family", FAMILIES)
def test_other_stages_follow(family: str, method: str) -> None:
    rows: Any = [[0], [1, 2], []]
    report = equal_to_oracle(family, "sdpa", rows, "left", [vtc.PixelPrune(keep=0.6), AFTER[method]], 0.6)
    assert [stage.name for stage in report.stages] == ["pixelprune", method.split(",")[0]]
    assert report.stages[1].tokens_out < report.stages[0].tokens_out or method == "h2o"


@pytest.mark.parametrize("family", ["llava", "llava_siglip", "llava_next", "internvl"])
def test_signals_are_those_of_the_masked_tower(family: str) -> None:
    """vtc-cls chooses what it chooses where the tower cannot see the others, and never what is gone."""
    model, inputs = model_of(family), batch(family, [[0], [1]])
    with vtc.wrapped(model, vtc.PixelPrune(keep=0.5)):
        model(**inputs)
        there = [set(span.kept.tolist()) for span in vtc.report(model).spans]
    with vtc.wrapped(model, [vtc.PixelPrune(keep=0.5), vtc.VTCCLS(keep=4)]):
        model(**inputs)
        spans = vtc.report(model).spans
    assert all(set(span.kept.tolist()) <= own for span, own in zip(spans, there, strict=True))
    assert [span.tokens_out for span in spans] == [4] * 2


@pytest.mark.parametrize(
    ("family", "method", "said"),
    [
        ("llava", vtc.PixelPrune(), "by a threshold leaves differently much of each picture, and .* give a budget"),
        ("llava", vtc.PixelPrune(tau=0.1), "by a threshold leaves differently much"),
        ("internvl", vtc.PixelPrune(keep=8), "how many crops a picture of internvl has: give keep as a share"),
        ("llava_next", vtc.PixelPrune(keep=8), "how many crops a picture of llava_next has: give keep as a share"),
        ("llava_onevision", vtc.PixelPrune(keep=0.5), "makes its visual tokens of several patches each, by resizing"),
        ("llava", vtc.FrameDedupe(keep=0.5), "is for videos, and llava reads none: choose a method for pictures"),
        ("internvl", vtc.FrameDedupe(keep=0.5), "given them as single pictures; evs does it behind the tower"),
    ],
)
def test_what_a_fixed_grid_cannot_do(family: str, method: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        vtc.wrap(model_of(family), method)


def test_pooled_frames_are_refused() -> None:
    model, inputs = model_of("llava_next_video"), batch("llava_next_video", [["v0"]])
    with (
        vtc.wrapped(model, "pixelprune", keep=0.5),
        pytest.raises(ValueError, match="of several patches each, by pool"),
    ):
        model(**inputs)


def test_a_count_for_pictures_of_one_crop() -> None:
    model, inputs = model_of("llava"), batch("llava", [[0], [1]])
    with vtc.wrapped(model, "pixelprune", keep=7):
        model(**inputs)
        assert [span.tokens_out for span in vtc.report(model).spans] == [7, 7]


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_gradients_are_those_without_checkpointing(family: str) -> None:
    model, inputs = copy.deepcopy(model_of(family)).train(), batch(family, [[0], [1]])
    found = []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable()
        model.zero_grad()
        with vtc.wrapped(model, "pixelprune", keep=0.5), torch.enable_grad():
            model(**inputs, use_cache=False).logits[:, -1].square().sum().backward()
        tower = model.model.visual if family.startswith("qwen") else model.model.vision_tower
        found.append({name: p.grad.clone() for name, p in tower.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys()
    assert sum(bool(gradient.any()) for gradient in found[0].values()) > 10
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, atol=1e-5, rtol=1e-4)
