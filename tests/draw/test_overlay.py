"""The overlay shows kept patches bright, dropped ones dim, groups outlined, and every tile where it belongs."""

from dataclasses import replace

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


def quarters(kept, boxes=True):
    """A thumbnail and four crops of 2 x 2 tokens of which one row of padding is gone at the top and at the bottom."""
    box = (0.0, 0.0, 1.0, 1.0) if boxes else None
    tiles = [Tile(0, 1, 2, 2, role="thumbnail"), Tile(4, 1, 2, 4, newline=True, role="mosaic", box=box)]
    crop = torch.tensor([0, 0, 0, 0, 1, 1, 2, 2, -1, 3, 3, 4, 4, -1])
    return replace(span(tiles, kept), crop=crop)


def test_the_report_counts_what_each_crop_keeps():
    given = quarters([0, 3, 6, 7, 9, 13])  # the last is the end of a row
    assert [(crop.role, crop.number, crop.tokens_in, crop.tokens_out) for crop in given.crops] == [
        ("thumbnail", 0, 4, 2),
        ("crop", 1, 2, 0),
        ("crop", 2, 2, 2),
        ("crop", 3, 2, 1),
        ("crop", 4, 2, 0),
    ]
    assert [crop.box for crop in given.crops[1:3]] == [(0, 0, 0.5, 0.5), (0.5, 0, 1, 0.5)]
    assert given.at(0).crops[0].tokens_out == 4
    assert quarters([0], boxes=False).crops[1].box is None
    assert span([Tile(0, 1, 2, 2)], [0]).crops == ()
    assert replace(span([Tile(0, 2, 1, 2)], [0]), grid=(2, 1, 2), crop=torch.tensor([0, 0, 1, 1])).crops == ()


def test_each_crop_is_framed_and_says_what_it_keeps():
    picture, kept = Image.new("RGB", (80, 40), COLOR), [0, 3, 6, 7, 9]
    plain, labelled = (np.asarray(overlay(picture, one)) for one in (span(quarters([0]).tiles, kept), quarters(kept)))
    assert plain.shape == labelled.shape
    changed = (plain != labelled).any(axis=-1)
    top, left, right = 16, 16 + 768 + 16, 384  # the second panel, 768 x 384 px; the width of a crop in it
    for row, column in ((0, 0), (0, 1), (1, 0), (1, 1)):
        y, x = top + row * 192, left + column * right
        own = changed[y : y + 192, x : x + right]
        assert own[:2].all()
        assert own[-2:].all()
        assert own[:, :2].all()
        assert own[:, -2:].all()
        assert own[8:34, 10:80].mean() > 0.9  # the label
        assert not own[60:-4, 100:-4].any()
    assert changed[top + 8 : top + 34, 26:90].mean() > 0.9  # the thumbnail's, which has no frame
    assert not changed[top + 60 : top + 380, 16 : 16 + 768].any()


def test_labels_become_short_and_vanish_where_there_is_no_room():
    for long, room in ((80, True), (8, False)):
        small, bare = (
            np.asarray(overlay(Image.new("RGB", (320, 320), COLOR), one, side=long))
            for one in (quarters([0]), replace(quarters([0]), crop=torch.empty(0, dtype=torch.long)))
        )
        inside = (small != bare).any(axis=-1)[16 + 4 : 16 + long // 2 - 4, 32 + long + 4 : 32 + long + long // 2 - 4]
        assert inside.any() == room


def test_without_captions_crops_are_not_labelled():
    picture = Image.new("RGB", (80, 40), COLOR)
    plain, labelled = (
        np.asarray(overlay(picture, one, 200, captions=False))
        for one in (span(quarters([0]).tiles, [0]), quarters([0]))
    )
    assert (plain == labelled).all()
