"""Spans and tiles: indices, separators and boxes on the picture."""

import torch

from vtc.layout import Tile, VisualLayout, VisualSpan, single_span


def two_tiles():
    """A 2 x 2 thumbnail, then a 2 x 3 mosaic whose rows end in a separator."""
    tiles = (Tile(0, 1, 2, 2, role="thumbnail"), Tile(4, 1, 2, 3, newline=True, role="mosaic"))
    return VisualSpan(row=0, index=torch.arange(10, 22), grid=(1, 2, 3), tiles=tiles)


def test_tile_indices_leave_out_separators():
    thumbnail, mosaic = two_tiles().tiles
    assert thumbnail.indices().tolist() == [[[0, 1], [2, 3]]]
    assert mosaic.indices().tolist() == [[[4, 5, 6], [8, 9, 10]]]
    assert (thumbnail.length, mosaic.length) == (4, 8)


def test_tile_of_frames():
    tile = Tile(5, 3, 2, 2)
    assert tile.length == 12
    assert tile.indices().flatten().tolist() == list(range(5, 17))
    assert tile.indices().shape == (3, 2, 2)


def test_separators():
    span = two_tiles()
    assert span.tokens == 12
    assert span.separators.nonzero().flatten().tolist() == [7, 11]


def test_boxes_cover_the_picture_once_per_tile():
    boxes = two_tiles().boxes()
    assert boxes.shape == (12, 4)
    assert boxes[[7, 11]].isnan().all()
    torch.testing.assert_close(boxes[1], torch.tensor([0.5, 0.0, 1.0, 0.5]))
    torch.testing.assert_close(boxes[9], torch.tensor([1 / 3, 0.5, 2 / 3, 1.0]))
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    torch.testing.assert_close(area[:4].sum(), torch.tensor(1.0))
    torch.testing.assert_close(area[[4, 5, 6, 8, 9, 10]].sum(), torch.tensor(1.0))


def test_boxes_of_a_part_and_of_an_unknown_place():
    tiles = (Tile(0, 1, 1, 2, box=(0.5, 0.0, 1.0, 1.0)), Tile(2, 1, 1, 1, role="crop", box=None))
    boxes = VisualSpan(row=0, index=torch.arange(3), grid=(1, 1, 2), tiles=tiles).boxes()
    assert boxes[:2].tolist() == [[0.5, 0.0, 0.75, 1.0], [0.75, 0.0, 1.0, 1.0]]
    assert boxes[2].isnan().all()


def test_bare_tokens_form_one_line_unless_told():
    assert single_span(6, None).grid == (1, 1, 6)
    span = single_span(6, (1, 2, 3))
    assert span.tiles[0].indices().shape == (1, 2, 3)
    assert not span.separators.any()


def test_layout_splits_by_span():
    spans = tuple(VisualSpan(row=0, index=torch.arange(n), grid=(1, 1, n), tiles=()) for n in (3, 1, 2))
    parts = VisualLayout(1, 10, spans).split(torch.arange(12).view(6, 2))
    assert [p[:, 0].tolist() for p in parts] == [[0, 2, 4], [6], [8, 10]]


def test_rectangles_of_crops():
    """Two crops side by side of which the upper row is padding and gone, and the thumbnail behind them."""
    mosaic = Tile(0, 1, 1, 4, newline=True, role="mosaic", box=(0.0, 0.2, 1.0, 0.8))
    tiles = (mosaic, Tile(5, 1, 2, 2, role="thumbnail"))
    span = VisualSpan(0, torch.arange(9), (1, 1, 4), tiles, crop=torch.tensor([1, 1, 2, 2, -1, 0, 0, 0, 0]))
    found = [(one.number, one.tile.role, one.places.tolist(), one.box) for one in span.rectangles()]
    assert found == [
        (1, "mosaic", [[0, 1]], (0.0, 0.2, 0.5, 0.8)),
        (2, "mosaic", [[2, 3]], (0.5, 0.2, 1.0, 0.8)),
        (0, "thumbnail", [[5, 6], [7, 8]], (0.0, 0.0, 1.0, 1.0)),
    ]
    unknown = Tile(0, 1, 1, 4, newline=True, role="crop", box=None)
    assert unknown.part(0, 0, 1, 2) is None
