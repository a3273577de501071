"""The proof of the stage `pixels`: a wrapped model equals the plain one that is given the small pictures.

The small prompt is written anew, token by token, and its pixels come from a resize of each picture on its own; nothing
here is shared with the engine.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import vtc
from tests.families import IMAGE, PAD, VIDEO, batch, model_of
from tests.grids import largest_grid
from tests.processors import processor_of
from vtc.engine.versions import cache_of

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
    """The grid of patches of the small picture."""
    t, h, w = grid[0], grid[1] // MERGE, grid[2] // MERGE
    budget = keep if isinstance(keep, int) else max(1, round(keep * t * h * w))
    a, b = largest_grid(h, w, max(1, budget // t))
    return [t, a * MERGE, b * MERGE]


def small(inputs: dict[str, Tensor], keep: int | float, side: str) -> dict[str, Tensor]:
    """The batch that a processor would have made of the small pictures."""
    made: dict[str, Any] = {k: v for k, v in inputs.items() if k == "second_per_grid_ts"}
    frames: dict[int, list[tuple[int, int]]] = {}
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


@pytest.mark.core
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


GLM = ("glm4v", "glm46v", "glm4v_moe", "glmga")
LISTED = (*GLM, "qwen3_vl_moe", "cosmos3_omni", "qwen3_omni_moe_thinker")


@pytest.mark.parametrize("rows", [BATCHES["left padded"], BATCHES["video"]], ids=["pictures", "video"])
@pytest.mark.parametrize("family", LISTED)
def test_it_equals_so_for_listed_families(family: str, rows: Any) -> None:
    items, side = rows
    model, inputs = model_of(family), batch(family, items, side)
    with vtc.wrapped(model, "downsample", 0.3):
        if family in GLM and items == [["v0"]]:
            with pytest.raises(ValueError, match=r"whose frames are encoded one by one: do so before the processor"):
                model(**inputs)
            return
        found = model(**inputs).logits
        report = vtc.report(model)
    less = small(inputs, 0.3, side)
    less = {name: less.get(name, value) for name, value in inputs.items()}
    for ours, theirs in zip(text_logits(found, inputs), text_logits(model(**less).logits, less), strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-4, rtol=2e-4)
    assert report.tokens_out == int(((less["input_ids"] == IMAGE) | (less["input_ids"] == VIDEO)).sum())


@pytest.mark.parametrize("family", ["glm_ocr", "ernie4_5_vl_moe", "hyperclovax_vision_v2", "qwen2_5_omni_thinker"])
def test_listed_families_that_number_otherwise_are_refused(family: str) -> None:
    with pytest.raises(ValueError, match=r"as Qwen's are, and those of .* are not: make pictures smaller before"):
        vtc.wrap(model_of(family), "downsample", 0.3)


@pytest.mark.parametrize("family", GLM)
def test_frames_that_the_tower_is_given_one_by_one_are_not_compared(family: str) -> None:
    model, inputs = model_of(family), batch(family, [["v0"]])
    with (
        vtc.wrapped(model, "framededupe", 0.5),
        pytest.raises(ValueError, match=r"which this vision tower is given one by one; evs does it behind the tower"),
    ):
        model(**inputs)


def test_sound_has_positions_of_its_own() -> None:
    model, inputs = model_of("qwen3_omni_moe_thinker"), batch("qwen3_omni_moe_thinker", [[0]])
    inputs["input_ids"][0, 0] = model.config.audio_token_id
    with vtc.wrapped(model, "downsample", 0.3), pytest.raises(ValueError, match="a prompt with sound has positions"):
        model(**inputs)


@pytest.mark.core
@pytest.mark.parametrize("options", [{}, {"num_beams": 2}], ids=["greedy", "beams"])
@pytest.mark.parametrize("rows", [rows for rows in BATCHES.values() if rows[1] == "left"])  # as generate wants it
@pytest.mark.parametrize("family", FAMILIES)
def test_generate_says_the_same(family: str, rows: Any, options: dict[str, Any]) -> None:
    items, side = rows
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


AFTER: dict[str, Any] = {
    "fastv": vtc.FastV(keep=3, layers=(1,)),
    "vtc-cls": vtc.VTCCLS(keep=0.5),
    "vtc-cls, compact": vtc.VTCCLS(keep=0.5, positions="compact"),
    "visionzip": vtc.VisionZip(keep=4),
    "todre": vtc.ToDRE(keep=0.5),
    "pool": vtc.Pool(keep=0.5),
    "h2o": vtc.H2O(keep=0.5),
    "dycoke": vtc.DyCoke(keep=0.5, p=0.5),
}


@pytest.mark.parametrize("rows", [BATCHES["left padded"], BATCHES["video and images"]], ids=["pictures", "with videos"])
@pytest.mark.parametrize("method", AFTER.values(), ids=AFTER)
@pytest.mark.parametrize("family", FAMILIES)
def test_methods_after_it_see_the_small_picture(family: str, method: vtc.Method, rows: Any) -> None:
    """They choose what they choose where the small picture is all there ever was."""
    items, side = rows
    model, inputs = model_of(family), batch(family, items, side)
    less = small(inputs, 12, side)
    more = dict(return_dict_in_generate=True, output_logits=True, **GREEDY)
    with vtc.wrapped(model, method):
        expected = model.generate(**less, **more)
        alone = vtc.report(model)
    with vtc.wrapped(model, [vtc.Downsample(keep=12), method]):
        found = model.generate(**inputs, **more)
        report = vtc.report(model)
    assert [span.kept.tolist() for span in report.spans] == [span.kept.tolist() for span in alone.spans]
    assert [span.grid for span in report.spans] == [span.grid for span in alone.spans]
    for ours, theirs in zip(found.logits, expected.logits, strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-4, rtol=2e-4)
    assert report.tokens_by_layer == alone.tokens_by_layer
    assert [own for _, own in report.kv_bytes_by_layer] == [own for _, own in alone.kv_bytes_by_layer]
    whole = int(((inputs["input_ids"] == IMAGE) | (inputs["input_ids"] == VIDEO)).sum())
    assert report.tokens_in == whole > alone.tokens_in
    assert sum(row.tokens_in for row in report.rows) == whole
    assert report.flops[0] > alone.flops[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_happens_where_everything_fits(family: str) -> None:
    model, inputs = model_of(family), batch(family, [[0, 1]])
    with torch.no_grad():
        expected = model(**inputs).logits
        with vtc.wrapped(model, "downsample", 1000):
            assert torch.equal(model(**inputs).logits, expected)
            assert vtc.report(model).tokens_out == vtc.report(model).tokens_in == 24 + 35


@pytest.mark.parametrize("family", FAMILIES)
def test_a_later_turn_goes_on_from_the_small_picture(family: str) -> None:
    """Words after an answer, in the cache of the first turn; `generate` and `forward` alike."""
    model, inputs = model_of(family), batch(family, [[0]])
    less, new = small(inputs, 6, "left"), torch.tensor([[40, 41, 42]])

    def turns(given: dict[str, Tensor]) -> tuple[list[int], Tensor]:
        model.model.rope_deltas = None
        out = model.generate(**given, return_dict_in_generate=True, **GREEDY)
        cache = getattr(out, "cache", None) or out.past_key_values
        words = torch.cat([out.sequences, new], dim=1)
        types = torch.nn.functional.pad(
            given["mm_token_type_ids"], (0, words.shape[1] - given["mm_token_type_ids"].shape[1])
        )
        name = "cache" if hasattr(out, "cache") else "past_key_values"
        later = model.generate(
            input_ids=words, attention_mask=torch.ones_like(words), mm_token_type_ids=types, **{name: cache},
            return_dict_in_generate=True, output_logits=True, **GREEDY,
        )  # fmt: skip
        return later.sequences[0, words.shape[1] :].tolist(), later.logits[0]

    expected = turns(less)
    with vtc.wrapped(model, "downsample", 6):
        found = turns(inputs)
    assert found[0] == expected[0]
    torch.testing.assert_close(found[1], expected[1], atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_prompts_without_token_types_are_numbered_like_words(family: str) -> None:
    model, inputs = model_of(family), batch(family, [[0], [1]])
    del inputs["mm_token_type_ids"]
    less = small(inputs, 6, "left")
    del less["mm_token_type_ids"]
    model.model.rope_deltas = None
    expected = model.generate(**less, return_dict_in_generate=True, output_logits=True, **GREEDY)
    with vtc.wrapped(model, "downsample", 6):
        found = model.generate(**inputs, return_dict_in_generate=True, output_logits=True, **GREEDY)
    for ours, theirs in zip(found.logits, expected.logits, strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-4, rtol=2e-4)


def test_prompt_lookup_says_the_same() -> None:
    model, inputs = model_of("qwen2_5_vl"), batch("qwen2_5_vl", [[0]])
    less = small(inputs, 6, "left")
    more = {**GREEDY, "max_new_tokens": 12, "prompt_lookup_num_tokens": 2}
    expected = model.generate(**less, **more)
    with vtc.wrapped(model, "downsample", 6):
        found = model.generate(**inputs, **more)
    assert found[0, -12:].tolist() == expected[0, -12:].tolist()


def test_gradients_reach_the_pixels() -> None:
    model, inputs = model_of("qwen2_5_vl"), batch("qwen2_5_vl", [[0]])
    inputs["pixel_values"].requires_grad_()
    with vtc.wrapped(model, "downsample", 6), torch.enable_grad():
        model(**inputs).logits[0, -1].sum().backward()
    grown = inputs["pixel_values"].grad
    assert grown is not None
    assert bool((grown.abs().sum(dim=1) > 0).all())
    model.zero_grad()


def test_other_families_are_sent_to_the_first_door() -> None:
    for family in ("llava", "llava_next", "llava_onevision", "internvl"):
        with pytest.raises(
            ValueError, match=r"fixed size: make them smaller before the processor, with vtc\.downsample"
        ):
            vtc.wrap(model_of(family), "downsample", 6)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda x: {**x, "position_ids": torch.arange(x["input_ids"].shape[1]).expand(3, 1, -1)},
            "position_ids are other",
        ),
        (
            lambda x: {**{k: v for k, v in x.items() if k != "input_ids"}, "inputs_embeds": torch.zeros(1, 40, 32)},
            "input_ids",
        ),
    ],
)
def test_what_cannot_be_right_is_refused(change: Any, said: str) -> None:
    model, inputs = model_of("qwen2_5_vl"), batch("qwen2_5_vl", [[0]])
    with vtc.wrapped(model, "downsample", 6), pytest.raises(ValueError, match=said):
        model(**change(inputs))


def test_a_picture_in_a_later_turn_is_refused() -> None:
    model, inputs = model_of("qwen2_5_vl"), batch("qwen2_5_vl", [[0]])
    with vtc.wrapped(model, "downsample", 6):
        cache = cache_of(model(**inputs))
        with pytest.raises(ValueError, match="takes pictures in the first turn only: begin a new conversation"):
            model(**{**inputs, "attention_mask": None}, past_key_values=cache)


def test_encoded_features_cannot_be_made_smaller() -> None:
    model, inputs = model_of("qwen2_5_vl"), batch("qwen2_5_vl", [[0]])
    vision = {name: inputs[name] for name in ("pixel_values", "image_grid_thw")}
    words = {name: inputs[name] for name in ("input_ids", "attention_mask", "mm_token_type_ids")}
    encoded = vtc.encode(model, "random", **vision)
    with pytest.raises(ValueError, match="acts before the vision tower"):
        vtc.encode(model, "downsample", **vision)
    with vtc.wrapped(model, "downsample", 6):
        with pytest.raises(ValueError, match=r"the vision tower, which has run already"):
            model.generate(**words, **encoded.take([0]), **GREEDY)
        with pytest.raises(ValueError, match=r"unwrap it before vtc\.encode"):
            vtc.encode(model, "random", **vision)


@pytest.mark.parametrize("family", FAMILIES)
def test_both_doors_show_the_same(family: str) -> None:
    """A smooth picture, before and after the processor: the same grid, pixels to the rounding of 8 bits, twice."""
    processor: Any = processor_of(family)
    processor.image_processor.size = {"shortest_edge": 64, "longest_edge": 100 * 64}
    rows, columns = np.mgrid[0:64, 0:80]
    values = np.stack([128 + 90 * np.sin(rows / 17 + k) * np.cos(columns / 23 - k) for k in range(3)], axis=-1)
    picture = Image.fromarray(values.round().astype(np.uint8))
    first = vtc.downsample(picture, processor, 24)
    shown = vtc.prepare(processor, "?", [first.media], **first.options)
    seen: list[Any] = []
    model = copy.deepcopy(model_of(family))
    vtc.wrap(model, "downsample", 24)
    hook = lambda m, a, kwargs: seen.append((a[0] if a else kwargs["hidden_states"], kwargs["grid_thw"]))  # noqa: E731
    model.model.visual.register_forward_pre_hook(hook, with_kwargs=True)
    whole = vtc.prepare(processor, "?", [picture])
    model(**whole)
    pixels, grid = seen[0]
    assert grid.tolist() == shown["image_grid_thw"].tolist()
    assert vtc.report(model).tokens_out == first.tokens == 24  # 4 x 6 of 8 x 10
    assert (pixels - shown["pixel_values"]).abs().max() < 3 / 255 / 0.26


def test_it_comes_first_and_has_no_tokens_to_choose() -> None:
    with pytest.raises(ValueError, match="name methods in the order in which they act"):
        vtc.wrap(model_of("qwen2_5_vl"), [vtc.FastV(keep=3, layers=(1,)), vtc.Downsample(keep=6)])
    with pytest.raises(TypeError, match=r"vtc\.downsample\(picture, processor, keep\)"):
        vtc.select("downsample", torch.randn(12, 4), keep=3)
    with pytest.raises(ValueError, match="those of the small picture"):
        vtc.Downsample(positions="compact")
