"""Any-resolution pictures at their extremes: padding, long strips, one crop, budgets below a token per crop."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.image_processing_utils import select_best_resolution

import vtc
from tests.engine.test_per_crop import crops
from tests.families import END, IMAGE, PINPOINTS, START, model_of

SIDE, PATCH = 24, 4  # of a crop and a patch, in pixels
METHODS: dict[str, Any] = {
    "random": lambda keep: vtc.Random(keep=keep, scope="crop"),
    "divprune": lambda keep: vtc.DivPrune(keep=keep, scope="crop"),
    "vtc-cls": lambda keep: vtc.VTCCLS(keep=keep),
    "visionzip": lambda keep: vtc.VisionZip(keep=keep),
    "todre": lambda keep: vtc.ToDRE(keep=keep, scope="crop", tau=None),
    "recoverable": lambda keep: vtc.Recoverable(keep=keep),
}
#: those that share out the budget by what crops show; newlines are theirs to keep
SHARING: dict[str, Any] = {
    "hired": lambda keep: vtc.HiRED(keep=keep),
    "globalcom2": lambda keep: vtc.GlobalCom2(keep=keep),
    "vflowopt": lambda keep: vtc.VFlowOpt(keep=keep, average=False),
}
ANYRES = ["llava_next", "llava_onevision"]
#: heights and widths: longer than any arrangement of crops, a pixel high, padded above and below, filling their crops
SIZES = {
    "1:9": (16, 144),
    "9:1": (144, 16),
    "a line": (1, 200),
    "a pixel": (1, 1),
    "padded above": (40, 72),
    "square": (72, 72),
    "one crop wide": (72, 24),
}


def any_resolution(family: str, size: tuple[int, int]) -> dict[str, Tensor]:
    """A prompt with one picture of that size: the crops of an arrangement that the processor would choose."""
    h, w = select_best_resolution(size, PINPOINTS)
    count = 1 + (h // SIDE) * (w // SIDE)
    pixels = torch.randn(1, count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(sum(size)))
    vision = {"pixel_values": pixels, "image_sizes": torch.tensor([size])}
    features = model_of(family).model.get_image_features(**vision, return_dict=True).pooler_output
    return prompt([IMAGE] * len(features[0])) | vision


def tiles(count: int) -> dict[str, Tensor]:
    """A prompt with one picture of so many of InternVL's tiles, the last one its thumbnail."""
    pixels = torch.randn(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(count))
    return prompt([START, *[IMAGE] * (9 * count), END]) | {"pixel_values": pixels}


def prompt(picture: list[int]) -> dict[str, Tensor]:
    ids = torch.tensor([[1, 10, *picture, 30, 31]])
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


@cache
def pictures() -> dict[str, tuple[str, dict[str, Tensor]]]:
    """Name -> (family, inputs)."""
    found = {
        f"{family}, {name}": (family, any_resolution(family, size)) for name, size in SIZES.items() for family in ANYRES
    }
    return found | {f"internvl, {count} tiles": ("internvl", tiles(count)) for count in (1, 2, 10)}


NAMES = [f"{family}, {name}" for name in ("1:9", "9:1", "a pixel", "padded above") for family in ANYRES]
NAMES += [f"internvl, {count} tiles" for count in (1, 2, 10)]


def run(family: str, inputs: dict[str, Tensor], method: Any) -> tuple[Any, Any]:
    """The span and what was kept of it, by a forward whose logits are numbers."""
    model = model_of(family)
    with torch.no_grad(), vtc.wrapped(model, method):
        assert model(**inputs).logits.isfinite().all()
        report = vtc.report(model)
        return model._vtc_engine.trace.spans[0], report.spans[0]


def covered(size: tuple[int, int]) -> tuple[int, int, Tensor]:
    """Crops down and across, and BoolTensor [rows, columns]: patches of their mosaic that show any of the picture.

    The processor scales a picture into the arrangement's pixels and pads it equally on both sides of one axis.
    """
    height, width = select_best_resolution(size, PINPOINTS)
    scale = min(height / size[0], width / size[1])
    h, w = min(height, -(-size[0] * scale // 1)), min(width, -(-size[1] * scale // 1))  # rounded up
    top, left = (height - h) // 2, (width - w) // 2
    rows = [top < (i + 1) * PATCH and i * PATCH < top + h for i in range(height // PATCH)]
    columns = [left < (i + 1) * PATCH and i * PATCH < left + w for i in range(width // PATCH)]
    return height // SIDE, width // SIDE, torch.tensor(rows)[:, None] & torch.tensor(columns)


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("family", ANYRES)
def test_padding_is_never_chosen(family: str, name: str) -> None:
    """Nor is it there to be chosen: what the model has cut off stands in no token."""
    _, across, shows = covered(SIZES[name])
    _, inputs = pictures()[f"{family}, {name}"]
    span, _ = run(family, inputs, vtc.Random(keep=1.0))
    per_crop = (SIDE // PATCH) ** 2
    for patch in span.patch.tolist():
        crop, place = divmod(patch, per_crop)
        if patch < 0 or crop == 0:  # a newline, the thumbnail
            continue
        row = (crop - 1) // across * (SIDE // PATCH) + place // (SIDE // PATCH)
        column = (crop - 1) % across * (SIDE // PATCH) + place % (SIDE // PATCH)
        assert shows[row, column]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", NAMES)
def test_budgets_are_met_crop_by_crop(name: str, method: str) -> None:
    """In proportion to what is left of each crop; no newline is kept while a patch is not."""
    family, inputs = pictures()[name]
    for keep in (1, 5, 0.3):
        span, said = run(family, inputs, METHODS[method](keep))
        count = keep if isinstance(keep, int) else max(1, round(keep * span.tokens))
        assert said.tokens_out == count == len(said.kept)
        own = crops(span)
        assert not span.separators[said.kept].any() or count > sum(map(len, own.values()))
        for tokens in own.values():
            exact = count * len(tokens) / sum(map(len, own.values()))
            assert abs(len(set(tokens) & set(said.kept.tolist())) - exact) < 1


@pytest.mark.parametrize("method", SHARING)
@pytest.mark.parametrize("name", NAMES)
def test_budgets_are_met_over_all_crops(name: str, method: str) -> None:
    family, inputs = pictures()[name]
    for keep in (1, 5, 0.3):
        span, said = run(family, inputs, SHARING[method](keep))
        count = keep if isinstance(keep, int) else max(1, round(keep * span.tokens))
        assert said.tokens_out == count == len(set(said.kept.tolist()))


@pytest.mark.parametrize("method", METHODS | SHARING)
@pytest.mark.parametrize("name", ["llava_next, a pixel", "llava_onevision, 1:9", "internvl, 10 tiles"])
def test_everything_and_all_but_one(name: str, method: str) -> None:
    family, inputs = pictures()[name]
    span, said = run(family, inputs, (METHODS | SHARING)[method](1.0))
    assert said.tokens_out == span.tokens
    span, said = run(family, inputs, (METHODS | SHARING)[method](span.tokens - 1))
    assert said.tokens_out == span.tokens - 1


@pytest.mark.parametrize("method", METHODS)
def test_one_crop_is_a_picture(method: str) -> None:
    """InternVL's picture of one tile: scope="crop" and the whole are the same."""
    family, inputs = pictures()["internvl, 1 tiles"]
    made = METHODS[method](4)
    (_, one), (_, whole) = (run(family, inputs, vtc.resolve(made, scope=scope)) for scope in ("crop", "clip"))
    assert one.kept.equal(whole.kept)
