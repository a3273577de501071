"""The proof of the stage `pixels`: a wrapped model equals the plain one that is given the small pictures.

The small prompt is written anew, token by token, and its pixels come from a resize of each picture on its own; nothing
here is shared with the engine.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import vtc
from tests.families import IMAGE, PAD, VIDEO, batch, model_of

FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
PATCH, MERGE, FRAMES = 4, 2, 2
GREEDY: dict[str, Any] = dict(max_new_tokens=5, do_sample=False)
BATCHES: dict[str, tuple[list[list[int | str]], str]] = {
    "one": ([[0]], "left"),
    "two in a row": ([[1, 3]], "left"),
    "left padded": ([[0], [1, 2], []], "left"),
    "right padded": ([[3], [1, 2]], "right"),
    "video": ([["v0"]], "left"),
    "video and images": ([["v0", 1], [2, "v1"]], "left"),
}


def pictures(packed: Tensor, grid: list[int]) -> Tensor:
    """[frames, 3, H, W] of packed patches, patch by patch."""
    t, h, w = grid
    out = torch.zeros(t * FRAMES, 3, h * PATCH, w * PATCH)
    number = 0
    for step in range(t):
        for y in range(0, h, MERGE):
            for x in range(0, w, MERGE):
                for dy in range(MERGE):
                    for dx in range(MERGE):
                        patch = packed[number].view(3, FRAMES, PATCH, PATCH)
                        top, left = (y + dy) * PATCH, (x + dx) * PATCH
                        for f in range(FRAMES):
                            out[step * FRAMES + f, :, top : top + PATCH, left : left + PATCH] = patch[:, f]
                        number += 1
    return out


def packed(frames: Tensor) -> Tensor:
    """The reverse of `pictures`."""
    t, h, w = len(frames) // FRAMES, frames.shape[2] // PATCH, frames.shape[3] // PATCH
    found = []
    for step in range(t):
        for y in range(0, h, MERGE):
            for x in range(0, w, MERGE):
                for dy in range(MERGE):
                    for dx in range(MERGE):
                        top, left = (y + dy) * PATCH, (x + dx) * PATCH
                        own = frames[step * FRAMES : step * FRAMES + FRAMES, :, top : top + PATCH, left : left + PATCH]
                        found.append(own.transpose(0, 1).reshape(-1))
    return torch.stack(found)


def fitted(grid: list[int], keep: int | float) -> list[int]:
    """The grid of patches of the small picture: the longest long side whose tokens fit."""
    t, h, w = grid[0], grid[1] // MERGE, grid[2] // MERGE
    budget = keep if isinstance(keep, int) else max(1, round(keep * t * h * w))
    for n in range(max(h, w), 0, -1):
        a, b = max(1, round(h * n / max(h, w))), max(1, round(w * n / max(h, w)))
        if t * a * b <= budget or n == 1:
            return [t, a * MERGE, b * MERGE]
    raise AssertionError


def small(inputs: dict[str, Tensor], keep: int | float, side: str) -> dict[str, Tensor]:
    """The batch that a processor would have made of the small pictures."""
    made: dict[str, Any] = {k: v for k, v in inputs.items() if k == "second_per_grid_ts"}
    frames: dict[int, list[int]] = {}
    for token, pixels, grids in (
        (IMAGE, "pixel_values", "image_grid_thw"),
        (VIDEO, "pixel_values_videos", "video_grid_thw"),
    ):
        if pixels not in inputs:
            continue
        whole = inputs[grids].tolist()
        new = [fitted(grid, keep) for grid in whole]
        parts = inputs[pixels].split([t * h * w for t, h, w in whole])
        shown = []
        for own, old, (_, h, w) in zip(parts, whole, new, strict=True):
            size = (h * PATCH, w * PATCH)
            frame = pictures(own, old)
            if list(frame.shape[2:]) != list(size):
                frame = torch.nn.functional.interpolate(frame, size=size, mode="bicubic", antialias=True)
            shown.append(packed(frame))
        made |= {pixels: torch.cat(shown), grids: torch.tensor(new)}
        frames[token] = [
            (h * w // 4, a * b // 4) for (t, h, w), (_, a, b) in zip(whole, new, strict=True) for _ in range(t)
        ]
    rows = []
    for ids, mask in zip(inputs["input_ids"].tolist(), inputs["attention_mask"].tolist(), strict=True):
        ids = [token for token, real in zip(ids, mask, strict=True) if real]
        out, i = [], 0
        while i < len(ids):
            if ids[i] in frames:
                token = ids[i]
                before, after = frames[token].pop(0)
                assert ids[i : i + before] == [token] * before
                out += [token] * after
                i += before
            else:
                out.append(ids[i])
                i += 1
        rows.append(out)
    length = max(map(len, rows))
    ids, mask = torch.full((len(rows), length), PAD), torch.zeros(len(rows), length, dtype=torch.long)
    for r, row in enumerate(rows):
        where = slice(length - len(row), None) if side == "left" else slice(0, len(row))
        ids[r, where], mask[r, where] = torch.tensor(row), 1
    types = (ids == IMAGE).int() + 2 * (ids == VIDEO).int()
    return {**made, "input_ids": ids, "attention_mask": mask, "mm_token_type_ids": types}


def text_logits(logits: Tensor, inputs: dict[str, Tensor]) -> list[Tensor]:
    """Per row, the logits at the words: whatever is no padding and no placeholder."""
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    words = mask.bool() & (ids != IMAGE) & (ids != VIDEO)
    return [own[here] for own, here in zip(logits, words, strict=True)]


@pytest.mark.parametrize("rows", BATCHES.values(), ids=BATCHES)
@pytest.mark.parametrize("family", FAMILIES)
def test_it_equals_the_model_that_is_given_the_small_picture(family: str, rows: Any) -> None:
    items, side = rows
    model, inputs = model_of(family), batch(family, items, side)
    for keep in (6, 0.3):
        less = small(inputs, keep, side)
        with torch.no_grad():
            expected = model(**less).logits
            model.model.rope_deltas = None
            with vtc.wrapped(model, "downsample", keep):
                found = model(**inputs).logits
                report = vtc.report(model)
        model.model.rope_deltas = None
        for ours, theirs in zip(text_logits(found, inputs), text_logits(expected, less), strict=True):
            torch.testing.assert_close(ours, theirs, atol=2e-4, rtol=2e-4)
        placeholders = [int(((x["input_ids"] == IMAGE) | (x["input_ids"] == VIDEO)).sum()) for x in (inputs, less)]
        assert [report.tokens_in, report.tokens_out] == placeholders
        assert report.tokens_by_layer == [placeholders[1]] * 3
        assert [stage.name for stage in report.stages] == ["downsample"]


@pytest.mark.parametrize("options", [{}, {"num_beams": 2}], ids=["greedy", "beams"])
@pytest.mark.parametrize("rows", BATCHES.values(), ids=BATCHES)
@pytest.mark.parametrize("family", FAMILIES)
def test_generate_says_the_same(family: str, rows: Any, options: dict[str, Any]) -> None:
    items, side = rows
    if side == "right":
        pytest.skip("generate wants left padding")
    model, inputs = model_of(family), batch(family, items, side)
    less = small(inputs, 6, side)
    more = dict(return_dict_in_generate=True, output_logits=True, **GREEDY, **options)
    expected = model.generate(**less, **more)
    with vtc.wrapped(model, "downsample", 6):
        found = model.generate(**inputs, **more)
        report = vtc.report(model)
    new = -GREEDY["max_new_tokens"]
    assert found.sequences[:, new:].tolist() == expected.sequences[:, new:].tolist()
    for ours, theirs in zip(found.logits, expected.logits, strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-4, rtol=2e-4)
    assert report.tokens_out < report.tokens_in
