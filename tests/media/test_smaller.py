"""`downsample`: at most so many tokens by the processor's own count, and no larger size would do."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image

import vtc
from tests.grids import largest_grid
from tests.processors import processor_of
from vtc.budget import fitted_grid

PACKED = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
TILED = ("llava_next", "llava_next_video", "llava_onevision")
KEEPS = (1, 3, 7, 20, 64, 70, 100, 0.5, 0.3)


def picture(width: int, height: int) -> Image.Image:
    values = np.random.default_rng(width).integers(0, 256, (height, width, 3))
    return Image.fromarray(values.astype(np.uint8))


def clip(frames: int, width: int, height: int) -> vtc.Clip:
    values = np.random.default_rng(width).integers(0, 256, (frames, height, width, 3)).astype(np.uint8)
    times = [i / 2 for i in range(frames)]
    return vtc.Clip(values, times, list(range(frames)), frames, 2.0, frames / 2, "av")


def made(processor: Any, media: Any, **options: Any) -> Any:
    """The processor's own output for one picture or clip, or for several of both."""
    media = media if isinstance(media, list) else [media]
    films = [one for one in media if isinstance(one, vtc.Clip)]
    return vtc.prepare(processor, "?", [one for one in media if not isinstance(one, vtc.Clip)], films, **options)


def count(processor: Any, media: Any, **options: Any) -> int:
    """Placeholders in that."""
    ids = made(processor, media, **options)["input_ids"][0].tolist()
    names = [getattr(processor, name, None) for name in ("image_token", "video_token")]
    return sum(ids.count(processor.tokenizer.convert_tokens_to_ids(name)) for name in names if name)


def wide(family: str) -> Any:
    """A processor whose grids may have up to 100 tokens, and no fewer than 4."""
    processor = processor_of(family)
    processor.image_processor.size = {"shortest_edge": 4 * 64, "longest_edge": 100 * 64}
    more = 3 if family == "qwen3_vl" else 1  # it counts the pixels of all frames
    processor.video_processor.size = {"shortest_edge": 4 * 64, "longest_edge": 100 * 64 * 2 * more}
    return processor


def wanted(keep: int | float, whole: int) -> int:
    return min(whole, keep if isinstance(keep, int) else max(1, round(keep * whole)))


@pytest.mark.parametrize("family", PACKED)
@pytest.mark.parametrize("size", [(80, 60), (24, 64), (300, 300), (12, 8)])
def test_packed_grids_are_the_largest_that_fit(family, size):
    """Every grid in the proportions of the whole picture's, from large to small, as the processor itself counts it."""
    processor, whole = wide(family), picture(*size)
    _, h, w = (side // 2 for side in made(processor, whole)["image_grid_thw"][0].tolist())
    assert count(processor, whole) == h * w
    for keep in KEEPS:
        small = vtc.downsample(whole, processor, keep)
        budget = wanted(keep, h * w)
        assert (small.whole, small.wanted) == (h * w, budget)
        assert small.tokens == count(processor, small.media, **small.options) <= budget
        assert not small.full_cost
        rows, columns = largest_grid(h, w, budget)
        drawn = Image.new("RGB", (columns * 8, rows * 8))
        lifted = {"size": {"shortest_edge": 64, "longest_edge": 6400}}
        assert small.tokens == count(processor, drawn, images_kwargs=lifted) == rows * columns
        if small.tokens == small.whole:
            assert small.media is whole
            assert small.options == {}


@pytest.mark.parametrize("family", TILED)
@pytest.mark.parametrize("size", [(40, 30), (24, 60), (90, 90)])
def test_crops_are_the_most_that_fit(family, size):
    """Every size in the picture's proportions, by what the processor makes of it."""
    processor, whole = processor_of(family), picture(*size)
    longest, counts = max(size), {}
    for n in range(longest, 0, -1):
        w, h = (max(1, round(side * n / longest)) for side in size)
        if abs((w / h) / (size[0] / size[1]) - 1) < 0.05:
            counts[n] = count(processor, whole.resize((w, h)))
    for keep in (60, 80, 100, 120, 150, 200, 0.5):
        small = vtc.downsample(whole, processor, keep)
        budget = wanted(keep, counts[longest])
        assert small.tokens == count(processor, small.media)
        fitting = [n for n, tokens in counts.items() if tokens <= budget]
        if not fitting:
            assert small.full_cost
            assert small.tokens == min(counts.values())
        else:
            assert max(small.media.size) == max(n for n in fitting if counts[n] == small.tokens)
            assert small.tokens == max(counts[n] for n in fitting)


@pytest.mark.parametrize(("keep", "tokens"), [(9, 9), (20, 9), (36, 36), (40, 36), (0.5, 9)])
def test_internvl_has_fewer_tiles(keep, tokens):
    """Its tiles follow the shape of a picture alone, so their number is what is lowered."""
    processor, whole = processor_of("internvl"), picture(24, 60)
    small = vtc.downsample(whole, processor, keep)
    assert count(processor, whole) == small.whole == 36
    assert count(processor, small.media, **small.options) == small.tokens == tokens
    assert not small.full_cost


@pytest.mark.parametrize(("keep", "side"), [(9, 12), (4, 8), (1, 4), (5, 8), (0.25, 12)])
def test_a_fixed_grid_shows_what_so_many_tokens_can_at_full_cost(keep, side):
    """36 tokens of 4 x 4 pixels: 9 of them can show 12 x 12, of the square that the processor cuts out."""
    processor = processor_of("llava")
    small = vtc.downsample(picture(90, 90), processor, keep)
    assert small.media.size == (side, side)
    assert small.full_cost
    assert (small.tokens, small.whole) == (36, 36)
    assert "36" in small.note
    assert str(small.wanted) in small.note
    assert vtc.downsample(picture(180, 90), processor, keep).media.size[1] == side


@pytest.mark.parametrize("family", PACKED)
def test_videos_keep_their_frames(family):
    processor, whole = wide(family), clip(5, 60, 40)
    total = count(processor, whole)
    for keep in (3, 7, 20, 0.5, 10**6):
        small = vtc.downsample(whole, processor, keep)
        assert small.tokens == count(processor, small.media, **small.options) <= wanted(keep, total)
        assert (len(small.media), small.media.times) == (5, whole.times)
        assert small.media.frames.dtype == np.uint8
    least = vtc.downsample(whole, processor, 2)  # three time steps of a token each
    assert (least.tokens, least.least, least.full_cost) == (3, True, False)
    assert f"3 of {total} tokens: one token per time step is the least, more than the 2 asked for" in least.note
    assert "cost" not in least.note
    assert not vtc.downsample(whole, processor, 3).least


@pytest.mark.parametrize("family", ["llava_next_video", "llava_onevision", "internvl"])
def test_videos_of_fixed_grids_cost_what_they_did(family):
    processor, whole = processor_of(family), clip(4, 60, 40)
    small = vtc.downsample(whole, processor, 0.25)
    assert small.tokens == small.whole == count(processor, whole)
    assert small.full_cost
    assert not small.least
    assert len(small.media) == 4
    assert small.media.frames.shape[1] < 40


def test_several_pictures_share_a_call():
    processor = processor_of("internvl")
    whole = [picture(24, 60), picture(90, 90)]
    alone = [vtc.downsample(one, processor, 20).options["max_patches"] for one in whole]
    found, options = vtc.downsample_all(whole, processor, 20)
    assert options == {"max_patches": min(alone)}
    assert count(processor, found[0].media, **options) <= 20
    assert vtc.downsample_all([], processor, 20) == ([], {})


def test_the_smaller_number_of_tiles_holds_for_all_and_is_told():
    """Alone the first has three tiles and a thumbnail; the second wants one tile, so that both have one."""
    processor = processor_of("internvl")
    found, options = vtc.downsample_all([picture(100, 24), picture(48, 24)], processor, 0.8)
    assert vtc.downsample(picture(100, 24), processor, 0.8).tokens == 36
    assert (options, found[0].options) == ({"max_patches": 1}, {"max_patches": 1})
    assert [(one.tokens, one.whole, one.wanted) for one in found] == [(9, 45, 36), (9, 27, 22)]
    assert "9 of 45 tokens, for a budget of 36" in found[0].note


@pytest.mark.parametrize("family", ["llava", "internvl", *PACKED, *TILED])
def test_the_tokens_of_several_are_those_of_their_call(family):
    """LLaVA-OneVision crops a picture that is alone, and none of several."""
    processor = wide(family) if family in PACKED else processor_of(family)
    whole: list[Any] = [picture(9, 9), picture(24, 60), picture(90, 90)]
    if family not in ("llava", "llava_next"):
        whole.append(clip(4, 12, 8))
    for keep in (20, 60, 0.5):
        found, options = vtc.downsample_all(whole, processor, keep)
        assert sum(one.tokens for one in found) == count(processor, [one.media for one in found], **options)
        assert sum(one.whole for one in found) == count(processor, whole)
        for one in found:
            assert one.wanted == wanted(keep, one.whole)
            assert one.full_cost == (one.tokens > one.wanted)


@pytest.mark.parametrize("family", PACKED)
@pytest.mark.parametrize("make", [picture, lambda width, height: clip(4, width, height)])
def test_what_fits_as_it_is_stays_so_beside_what_does_not(family, make):
    """The small one is below the processor's least number of pixels, which the other's options lift."""
    processor, small, large = wide(family), make(9, 12), make(90, 90)
    budget = count(processor, small)
    found, options = vtc.downsample_all([small, large], processor, budget)
    alone = made(processor, [small])
    beside = made(processor, [found[0].media], **options)
    values, grids = (next(name for name in alone if start in name) for start in ("pixel_values", "grid_thw"))
    assert beside[grids].tolist() == alone[grids].tolist()
    assert (beside[values] - alone[values]).abs().mean() < 0.05
    assert [one.tokens for one in found] == [budget, vtc.downsample(large, processor, budget).tokens]
    both, options = vtc.downsample_all([small, small], processor, budget)
    assert [one.media for one in both] == [small, small]
    assert options == {}


@pytest.mark.parametrize(
    ("keep", "error", "said"),
    [
        (0, ValueError, "keep=0 is not a whole number of 1 or more"),
        (-3, ValueError, "keep=-3 is not a whole number of 1 or more"),
        (0.0, ValueError, r"keep=0.0 is not a number in \(0, 1\]"),
        (64.0, ValueError, "Did you mean keep=64"),
        (True, TypeError, "keep=True"),
        ("64", TypeError, "keep='64'"),
    ],
)
def test_less_than_a_token_is_refused_in_a_sentence(keep, error, said):
    with pytest.raises(error, match=said) as refusal:
        vtc.downsample(picture(40, 30), processor_of("qwen2_vl"), keep)
    assert "\n" not in str(refusal.value)


def test_a_tiny_share_leaves_one_token():
    assert vtc.downsample(picture(90, 90), wide("qwen2_vl"), 0.0001).tokens == 1


def test_a_model_without_videos_says_so():
    with pytest.raises(ValueError, match="does not read videos"):
        vtc.downsample(clip(4, 60, 40), processor_of("llava"), 4)


@pytest.mark.parametrize("grid", [(12, 16), (12, 12), (24, 24), (18, 32), (5, 2), (1, 9), (30, 7)])
def test_fitted_grids_are_the_largest(grid):
    h, w = grid
    assert all(fitted_grid(h, w, n) == largest_grid(h, w, n) for n in range(1, h * w + 2))


def test_fitted_grids():
    assert fitted_grid(12, 16, 64) == (7, 9)
    assert fitted_grid(12, 12, 14) in ((3, 4), (4, 3))
    assert fitted_grid(12, 16, 192) == fitted_grid(12, 16, 1000) == (12, 16)
    assert fitted_grid(3, 90, 1) == (1, 1)
    assert fitted_grid(1, 40, 17) == (1, 17)


@pytest.mark.parametrize("family", ["llava", "internvl", "qwen2_vl", "qwen3_vl", *TILED])
@pytest.mark.parametrize("size", [(400, 1), (1, 400), (2, 402)])
def test_slivers_are_refused_in_a_sentence(family, size):
    said = f"is {size[0]} x {size[1]} pixels, beyond 200 : 1: crop it first"
    with pytest.raises(ValueError, match=f"^the picture {said}$"):
        vtc.downsample(Image.new("RGB", size), processor_of(family), 5)
    with pytest.raises(ValueError, match=f"^the picture {said}$"):
        vtc.downsample_all([picture(40, 30), Image.new("RGB", size)], processor_of(family), 5)
    if family not in ("llava", "llava_next"):
        with pytest.raises(ValueError, match=f"^the video {said}$"):
            vtc.downsample(clip(2, *size), processor_of(family), 5)


@pytest.mark.parametrize("size", [(200, 1), (20, 1), (1, 20), (1, 1), (41, 1)])
@pytest.mark.parametrize("family", ["llava", "llava_onevision", "qwen2_vl"])
def test_the_thinnest_that_are_not_refused(family, size):
    for keep in (1, 5):
        small = vtc.downsample(Image.new("RGB", size), processor_of(family), keep)
        assert small.tokens == count(processor_of(family), small.media, **small.options)
        assert small.full_cost or small.tokens <= keep


def test_a_grid_is_no_thinner_than_its_processor_takes():
    """2 x 295 tokens: of 250, a grid of one row would be longer than the processor takes."""
    processor, thin = wide("qwen2_vl"), Image.new("RGB", (2360, 12))
    processor.image_processor.size = {"shortest_edge": 4 * 64, "longest_edge": 1000 * 64}
    small = vtc.downsample(thin, processor, 250)
    assert (small.tokens, small.media.size) == (200, (1600, 8))


@pytest.mark.parametrize("size", [(64, 64), (90, 20), (40, 40), (12, 9)])
def test_fewer_tiles_beside_the_row(size):
    """Mllama: the tiles that the processor itself makes, 17 tokens each, of every size in those proportions."""
    processor, whole = processor_of("mllama"), picture(*size)

    def tokens(media):
        found = made(processor, media)
        return 17 * int((found["aspect_ratio_mask"] * (found["aspect_ratio_ids"] > 0)[..., None]).sum())

    with pytest.raises(ValueError, match=r"does not say how large the patches of a tile are: load it with vtc\.load"):
        vtc.downsample(whole, processor, 17)
    processor.patch_size = 4
    every = [picture(max(1, size[0] * n // 32), max(1, size[1] * n // 32)) for n in range(1, 33)]
    fewest = min(map(tokens, every))
    for keep in (5, 17, 40, 0.5, 1.0):
        small = vtc.downsample(whole, processor, keep)
        assert (small.whole, small.wanted) == (tokens(whole), wanted(keep, tokens(whole)))
        assert small.tokens == tokens(small.media)
        assert small.full_cost == (small.tokens > small.wanted)
        assert small.tokens <= max(small.wanted, fewest)
