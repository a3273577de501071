"""The overlay shows kept patches bright, dropped ones dim, groups outlined, and every tile where it belongs."""

import numpy as np
import pytest
import torch
from PIL import Image

from vtc.draw.filmstrip import frame_overlay
from vtc.draw.overlays import overlay
from vtc.layout import Tile
from vtc.media.video import Clip
from vtc.reports import ReportSpan

COLOR = (200, 120, 40)


def span(tiles, kept, source=None, modality="image"):
    total = sum(tile.length for tile in tiles)
    if source is None:
        source = torch.full((total,), -1)
        source[torch.tensor(kept)] = torch.arange(len(kept))
    return ReportSpan(0, modality, (1, 1, 1), torch.tensor(kept), source, tuple(tiles), torch.zeros(total, 4))


def patch(sheet, grid, row, column, left=16, top=16, size=768):
    """Mean colour of the inside of one patch of a square panel."""
    step = size / grid
    x, y = left + column * step, top + row * step
    inner = np.asarray(sheet)[int(y + 6) : int(y + step - 6), int(x + 6) : int(x + step - 6)]
    return inner.reshape(-1, 3).mean(0)


def test_kept_patches_are_bright_and_the_others_dim():
    picture = Image.new("RGB", (48, 48), COLOR)
    sheet = overlay(picture, span([Tile(0, 1, 4, 4)], [0, 6]))
    for index in range(16):
        color = patch(sheet, 4, *divmod(index, 4))
        if index in (0, 6):
            assert color == pytest.approx(COLOR, abs=2)
        else:
            assert color.max() < 0.6 * max(COLOR)
            assert np.ptp(color) < 0.3 * np.ptp(COLOR)  # grey


def test_a_black_picture_still_tells_kept_from_dropped():
    sheet = overlay(Image.new("RGB", (64, 64)), span([Tile(0, 1, 4, 4)], [5]))
    assert patch(sheet, 4, 1, 1).max() < 2
    assert patch(sheet, 4, 0, 0).min() > 20


def test_groups_are_outlined_in_their_own_colours():
    source = torch.tensor([0, 0, 1, 1])
    sheet = np.asarray(overlay(Image.new("RGB", (64, 64), "black"), span([Tile(0, 1, 2, 2)], [0, 2], source)))
    upper, lower = sheet[16, 400], sheet[16 + 767, 400]
    assert upper.max() > 200
    assert lower.max() > 200
    assert not np.array_equal(upper, lower)
    inside = sheet[16 + 100, 16 + 384]  # the border between two patches of one group is not drawn
    assert inside.max() < 60


def test_thumbnail_and_crops_get_a_panel_each():
    tiles = [Tile(0, 1, 2, 2, role="thumbnail"), Tile(4, 1, 2, 4, newline=True, role="mosaic")]
    sheet = overlay(Image.new("RGB", (80, 40), COLOR), span(tiles, [0, 4 + 5 + 3]))
    assert sheet.width == 3 * 16 + 2 * 768
    pixels = np.asarray(sheet)
    assert pixels[16 + 100, 16 + 100] == pytest.approx(COLOR, abs=2)  # top left of the thumbnail
    assert pixels[16 + 300, 2 * 16 + 768 + 700] == pytest.approx(COLOR, abs=2)  # bottom right of the mosaic
    assert pixels[16 + 300, 16 + 100].max() < 120


def test_crops_are_drawn_where_they_were_cut():
    tiles = [Tile(0, 1, 1, 1, role="crop", box=(0, 0, 0.5, 1)), Tile(1, 1, 1, 1, role="crop", box=(0.5, 0, 1, 1))]
    sheet = np.asarray(overlay(Image.new("RGB", (40, 40), COLOR), span(tiles, [1])))
    assert sheet[400, 16 + 600] == pytest.approx(COLOR, abs=2)
    assert sheet[400, 16 + 200].max() < 120


@pytest.mark.parametrize("size", [(1, 1), (5, 300), (3000, 2000)])
def test_any_size(size):
    sheet = overlay(Image.new("RGB", size, COLOR), span([Tile(0, 1, 24, 24)], list(range(0, 576, 9))))
    assert max(sheet.size) <= 768 + 16 + 40 or sheet.width == 768 + 32


def test_what_cannot_be_drawn_is_refused():
    picture = Image.new("RGB", (8, 8))
    with pytest.raises(ValueError, match="video"):
        overlay(picture, span([Tile(0, 2, 2, 2)], [0], modality="video"))
    with pytest.raises(ValueError, match="does not say where"):
        overlay(picture, span([Tile(0, 1, 2, 2, box=None)], [0]))


def test_without_captions_there_is_nothing_but_the_picture():
    tiles = [Tile(0, 1, 2, 2, role="thumbnail"), Tile(4, 1, 2, 4, newline=True, role="mosaic")]
    assert overlay(Image.new("RGB", (80, 40), COLOR), span([Tile(0, 1, 2, 2)], [0]), 200, captions=False).size == (
        200,
        100,
    )
    both = overlay(Image.new("RGB", (80, 40), COLOR), span(tiles, [0]), 200, captions=False)
    assert both.size == (2 * 200 + 16, 100)
    assert np.asarray(both)[20, 20] == pytest.approx(COLOR, abs=2)


def test_one_time_step_of_a_video():
    frames = np.stack([np.full((40, 80, 3), 60 * i, dtype=np.uint8) for i in range(4)])
    clip = Clip(frames, [0.0, 0.5, 1.0, 1.5], [0, 1, 2, 3], 4, 2.0, 2.0, "av")
    video = span([Tile(0, 2, 2, 2, role="frames")], [4], modality="video")  # the first patch of the second step
    first, second = (np.asarray(frame_overlay(clip, video, step, 200, captions=False)) for step in range(2))
    assert first.shape == second.shape == (100, 200, 3)
    assert second[20, 20] == pytest.approx((120,) * 3, abs=2)  # bright: the third frame begins the second step
    assert second[80, 180].max() < 100
    assert frame_overlay(clip, video, 0, 200).height > 100
    with pytest.raises(IndexError, match="outside the video's 2 time steps"):
        frame_overlay(clip, video, 2)
