"""pool: average pooling on the grid, with exact counts."""

import math

import pytest
import torch

import vtc
from tests.methods.definitions import defines
from vtc.budget import split_budget
from vtc.layout import Tile, VisualSpan
from vtc.methods.pool import cell_map
from vtc.signals import VisualTokens


@pytest.mark.parametrize(("cells", "side"), [(144, 2), (36, 4), (9, 8), (1, 24)])
def test_the_nested_sets_of_matryoshka(cells, side):
    """576 -> 144, 36, 9, 1 are plain average pooling."""
    x = torch.randn(576, 5)
    out = vtc.select(vtc.Pool(keep=cells), x, grid=(1, 24, 24)).apply(x)
    image = x.T.view(1, 5, 24, 24)
    expected = torch.nn.functional.avg_pool2d(image, side).flatten(2)[0].T
    torch.testing.assert_close(out, expected)


@defines("pool")
@pytest.mark.parametrize(("h", "w", "keep"), [(6, 6, 9), (6, 6, 7), (3, 8, 10), (5, 2, 4), (4, 4, 16), (2, 9, 1)])
def test_bands_of_rows_are_cut_into_cells(h, w, keep):
    """As many bands as make cells near-square, at least so many that a band is wide enough for its cells; the tallest
    bands have a cell more where they do not all have equally many."""
    x = torch.randn(h * w, 2, generator=torch.Generator().manual_seed(0))
    bands = min(max(round(math.sqrt(keep * h / w)), math.ceil(keep / w)), h, keep)
    rows = [[i for i in range(h) if i * bands // h == band] for band in range(bands)]
    tallest = sorted(range(bands), key=lambda band: (-len(rows[band]), band))[: keep % bands]
    expected = []
    for band in range(bands):
        cells = keep // bands + (band in tallest)
        for cell in range(cells):
            own = [i * w + j for i in rows[band] for j in range(w) if j * cells // w == cell]
            expected.append([sum(float(x[place, c]) for place in own) / len(own) for c in range(2)])
    got = vtc.select(vtc.Pool(keep=keep), x, grid=(1, h, w)).apply(x)
    torch.testing.assert_close(got, torch.tensor(expected))


@pytest.mark.parametrize(("h", "w"), [(1, 1), (1, 7), (7, 1), (3, 5), (6, 6), (24, 24), (13, 40)])
def test_any_count_is_a_partition_into_rectangles(h, w):
    for count in {1, 2, 3, h, w, (h * w) // 3, h * w - 1, h * w} & set(range(1, h * w + 1)):
        cell = cell_map(h, w, count)
        assert cell.shape == (h, w)
        assert cell.unique().tolist() == list(range(count))
        for c in range(count):
            ys, xs = (cell == c).nonzero().T
            height, width = int(ys.max() - ys.min()) + 1, int(xs.max() - xs.min()) + 1
            assert len(ys) == height * width  # a full rectangle
        sizes = cell.flatten().bincount()
        assert sizes.max() <= 4 * max(1, sizes.min())  # cut evenly, up to rounding on both axes


def test_each_output_is_the_mean_of_its_cell_and_stands_inside_it():
    x = torch.randn(35, 3)
    selection = vtc.select(vtc.Pool(keep=8), x, grid=(1, 5, 7))
    cell = cell_map(5, 7, 8).flatten()
    assert selection.source.tolist() == cell.tolist()
    assert cell[selection.anchor].tolist() == list(range(8))
    out = selection.apply(x)
    for c in range(8):
        torch.testing.assert_close(out[c], x[cell == c].mean(0))


def test_frames_are_pooled_one_by_one():
    x = torch.randn(3 * 4 * 4, 2)
    selection = vtc.select(vtc.Pool(keep=12), x, grid=(3, 4, 4))
    frame = torch.arange(48) // 16
    for m in range(12):
        assert frame[selection.source == m].unique().numel() == 1
    assert frame[selection.anchor].bincount().tolist() == [4, 4, 4]


def test_tiles_share_the_budget_and_separators_go():
    """A 2 x 2 thumbnail and a 4 x 6 mosaic with newlines: 7 outputs go 1 to 6."""
    tiles = (Tile(0, 1, 2, 2, role="thumbnail"), Tile(4, 1, 4, 6, newline=True, role="mosaic"))
    span = VisualSpan(row=0, index=torch.arange(32), grid=(1, 4, 6), tiles=tiles)
    x = torch.randn(32, 3)
    selection = vtc.Pool(keep=7).select(VisualTokens(x, span, torch.arange(32), {}.__getitem__)).check()
    assert (selection.anchor < 4).sum() == 1
    assert selection.tokens_out == 7
    assert (selection.source[span.separators] == -1).all()
    assert (selection.source[~span.separators] >= 0).all()
    torch.testing.assert_close(selection.apply(x)[0], x[:4].mean(0))


def test_split_budget_is_proportional_and_within_bounds():
    for sizes in ([4, 24], [576, 576, 576], [1, 1, 1], [81, 9, 10]):
        for total in range(1, sum(sizes) + 1):
            shares = split_budget(total, sizes)
            assert sum(shares) == total
            for share, size in zip(shares, sizes, strict=True):
                assert share <= size
                assert abs(share - total * size / sum(sizes)) < 1


def test_without_a_grid_it_is_refused():
    with pytest.raises(ValueError, match=r"pool works on the grid: pass grid=\(t, h, w\)"):
        vtc.select("pool", torch.randn(9, 2))


def test_a_wrong_grid_is_refused():
    with pytest.raises(ValueError, match="does not hold 9 tokens"):
        vtc.select("pool", torch.randn(9, 2), grid=(1, 2, 4))


def test_a_budget_beyond_the_tiles_keeps_separators_too():
    """As many as it asks for; all of them at 1.0."""
    tiles = (Tile(0, 1, 2, 2, role="thumbnail"), Tile(4, 1, 4, 6, newline=True, role="mosaic"))
    span = VisualSpan(row=0, index=torch.arange(32), grid=(1, 4, 6), tiles=tiles)
    tokens = VisualTokens(torch.randn(32, 3), span, torch.arange(32), {}.__getitem__)
    assert vtc.Pool(keep=1.0).select(tokens).check().is_identity
    some = vtc.Pool(keep=30).select(tokens).check()
    assert some.anchor.tolist() == sorted([*(~span.separators).nonzero()[:, 0].tolist(), 10, 17])
