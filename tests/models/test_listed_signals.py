"""Which patches the tokens of listed families are made of: of the states that a signal reads, those of the token whose
pixels change do so most."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch

import vtc
from tests.families import batch, model_of
from tests.listed import LISTED
from tests.models.test_listed import KNOWN

#: whose patches lie line by line; elsewhere the 2 x 2 of a token follow each other
LINES = {"paddleocr_vl", "kimi_k25", "hunyuan_vl"}
READ = [name for name in LISTED if name in KNOWN["read"][1]]
PACKED = [name for name in READ if "image_grid_thw" in batch(name, [[0]])]
CROPS = {"idefics3": 4, "smolvlm": 4, "granite_docling": 4, "ovis2": 6}  # tokens along a crop


class States(vtc.Method):
    """Reads what the tower makes of each token, and drops none."""

    needs: ClassVar[tuple[str, ...]] = ("tower_features",)
    seen: ClassVar[list[torch.Tensor]] = []

    def select(self, tokens: Any) -> vtc.Selection:
        self.seen.append(tokens.signal("tower_features").clone())
        return vtc.Selection.identity(tokens.total)


def states(family: str, inputs: dict[str, Any]) -> torch.Tensor:
    """[N, D] of the one picture or video."""
    States.seen.clear()
    model = model_of(family)
    with vtc.wrapped(model, States()):
        model(**inputs)
    (found,) = States.seen
    return found


def moved(family: str, inputs: dict[str, Any], pixels: str, at: Any) -> int:
    """The token whose state changes most when the pixels there do."""
    changed = inputs[pixels].clone()
    changed[at] += 3.0
    before, after = states(family, inputs), states(family, {**inputs, pixels: changed})
    return int((after - before).norm(dim=-1).argmax())


def patch(family: str, y: int, x: int, width: int) -> int:
    """Where the patch of a frame lies that is so far down and so far to the right."""
    if family in LINES:
        return y * width + x
    return ((y // 2) * (width // 2) + x // 2) * 4 + y % 2 * 2 + x % 2


@pytest.mark.parametrize("family", PACKED)
def test_pictures_of_any_size(family: str) -> None:
    inputs = batch(family, [[1]])
    _, h, w = inputs["image_grid_thw"][0].tolist()
    for y, x in ((0, 3), (h - 1, 0), (5, w - 1)):
        line, column = y // 2, x // 2
        want = 1 + line * (w // 2 + 1) + column if family == "hunyuan_vl" else line * (w // 2) + column
        assert moved(family, inputs, "pixel_values", patch(family, y, x, w)) == want


@pytest.mark.parametrize("family", [name for name in PACKED if LISTED[name].videos is not None])
def test_videos_of_any_size(family: str) -> None:
    inputs = batch(family, [["v0"]])
    t, h, w = inputs["video_grid_thw"][0].tolist()
    frame, (y, x) = t - 1, (2, 3)
    time = {"kimi_k25": 0, "ernie4_5_vl_moe": frame // 2}.get(family, frame)  # which of the frames that are left
    want = time * (h * w // 4) + (y // 2) * (w // 2) + x // 2
    assert moved(family, inputs, "pixel_values_videos", frame * h * w + patch(family, y, x, w)) == want


@pytest.mark.parametrize("family", [name for name in CROPS if name in LISTED])
def test_crops(family: str) -> None:
    inputs, side = batch(family, [[0]]), CROPS[family]
    pixels = inputs["pixel_values"].shape[-1] // side
    for row, column in ((0, 1), (side - 1, 0), (2, side - 1)):
        at = (..., slice(row * pixels, (row + 1) * pixels), slice(column * pixels, (column + 1) * pixels))
        assert moved(family, inputs, "pixel_values", at) == row * side + column
