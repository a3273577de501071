"""Plan: index arithmetic of shortening a batch, against the same thing done with Python lists."""

import random

import pytest
import torch

from vtc.engine.plan import Places, Plan
from vtc.layout import Tile, VisualLayout, VisualSpan
from vtc.selection import Selection

pytestmark = pytest.mark.core


def planned(layout, selections):
    """The Plan of a whole batch."""
    spans = layout.spans
    rows = torch.cat([torch.full((s.tokens,), s.row) for s in spans])
    at = torch.stack([rows, torch.cat([s.index for s in spans])])
    places = Places(tuple(s.row for s in spans), tuple(s.tokens for s in spans), at)
    return Plan.of(layout.rows, layout.length, places, selections)


def span(row, start, h, w):
    n = h * w
    return VisualSpan(row=row, index=torch.arange(start, start + n), grid=(1, h, w), tiles=(Tile(0, 1, h, w),))


def random_batch(seed):
    """A layout of 3 rows with 0 to 2 images each, and random selections, some out of order."""
    rng = random.Random(seed)
    length, spans, selections = 30, [], []
    for row in range(3):
        start = rng.randint(0, 4)
        for _ in range(rng.choice([0, 1, 1, 2])):
            h, w = rng.choice([(2, 3), (3, 3), (1, 1), (2, 5)])
            spans.append(span(row, start, h, w))
            kept = rng.sample(range(h * w), rng.randint(1, h * w))
            if seed % 2:
                kept.sort()
            selections.append(Selection.prune(torch.tensor(kept), h * w))
            start += h * w + rng.randint(0, 3)
    return VisualLayout(3, length, tuple(spans)), selections


def rows_of(layout, selections):
    """Per row: (original position shown, original position it stands at) of what stays, in order."""
    rows = []
    for row in range(layout.rows):
        shown = {p: p for p in range(layout.length)}
        for s, c in zip(layout.spans, selections, strict=True):
            if s.row == row:
                anchors = [int(s.index[a]) for a in c.anchor]
                for p in s.index.tolist():
                    del shown[p]
                shown |= dict(zip(sorted(anchors), anchors, strict=True))
        rows.append([(shown[p], p) for p in sorted(shown)])
    return rows


@pytest.mark.parametrize("seed", range(12))
def test_slots(seed):
    layout, selections = random_batch(seed)
    plan, rows = planned(layout, selections), rows_of(layout, selections)
    width = max(map(len, rows))
    assert plan.width == width
    assert plan.ragged == (len({len(r) for r in rows}) > 1)
    x = torch.arange(3.0 * layout.length).view(3, layout.length, 1)
    short = plan.gather(x)
    for r, kept in enumerate(rows):
        empty = width - len(kept)
        assert plan.valid[r].tolist() == [False] * empty + [True] * len(kept)
        assert plan.index[r, empty:].tolist() == [shown for shown, _ in kept]
        assert plan.slot[r, empty:].tolist() == [at for _, at in kept]
        assert short[r, empty:, 0].tolist() == [x[r, shown, 0] for shown, _ in kept]


@pytest.mark.parametrize("seed", range(12))
def test_restored_rows_show_the_last_kept_one_before_them(seed):
    layout, selections = random_batch(seed)
    plan, rows = planned(layout, selections), rows_of(layout, selections)
    marks = torch.full((3, plan.width, 1), -1.0)
    for r, kept in enumerate(rows):
        for i, (_, at) in enumerate(kept):
            marks[r, plan.width - len(kept) + i] = at
    back = plan.restore(marks)
    assert back.shape == (3, layout.length, 1)
    for r, kept in enumerate(rows):
        for p in range(layout.length):
            before = [at for _, at in kept if at <= p]
            if before:  # a dropped token that opens a row shows something arbitrary
                assert back[r, p, 0] == before[-1]


@pytest.mark.parametrize("seed", range(12))
def test_visual_slots_and_slots_of_each_span(seed):
    layout, selections = random_batch(seed)
    plan = planned(layout, selections)
    expected = torch.zeros(3, plan.width, dtype=torch.bool)
    for s, c, slots in zip(layout.spans, selections, plan.outputs.split(plan.outputs.at[1]), strict=True):
        assert plan.index[s.row, slots].tolist() == s.index[c.anchor].tolist()
        expected[s.row, slots] = True
    assert torch.equal(plan.visual(), expected)


@pytest.mark.parametrize("seed", range(12))
def test_merged_rows_line_up_with_the_visual_slots(seed):
    layout, selections = random_batch(seed)
    plan = planned(layout, selections)
    rows = torch.cat([s.row * 100 + s.index for s in layout.spans]).float().unsqueeze(1)
    where = plan.visual().nonzero()
    shown = [100 * int(r) + int(plan.index[r, c]) for r, c in where]
    assert plan.merged(rows).flatten().tolist() == shown


@pytest.mark.parametrize("seed", range(12))
def test_line_positions(seed):
    """Original: each slot has the position of its place. Compact: consecutive numbers from the row's first on."""
    layout, selections = random_batch(seed)
    plan, rows = planned(layout, selections), rows_of(layout, selections)
    ids = torch.arange(layout.length).repeat(3, 1) + torch.tensor([[0], [5], [2]])
    kept, shift = plan.positions(ids, compact=False)
    assert shift.tolist() == [0, 0, 0]
    dense, moved = plan.positions(ids, compact=True)
    for r, own in enumerate(rows):
        empty = plan.width - len(own)
        assert kept[r, empty:].tolist() == [int(ids[r, at]) for _, at in own]
        assert dense[r, empty:].tolist() == list(range(int(ids[r, 0]), int(ids[r, 0]) + len(own)))
        assert moved[r] == layout.length - len(own)


def mrope(before, h, w, after):
    """Qwen's position ids [3, 1, L] of text, an h x w image, text."""
    grid = [[before, before + i, before + j] for i in range(h) for j in range(w)]
    start = before + max(h, w)
    ids = [[i] * 3 for i in range(before)] + grid + [[start + i] * 3 for i in range(after)]
    return torch.tensor(ids).T.unsqueeze(1)


def test_grid_positions_follow_the_token_when_original():
    ids = mrope(2, 3, 4, 3)
    layout = VisualLayout(1, 17, (span(0, 2, 3, 4),))
    plan = planned(layout, [Selection.prune(torch.tensor([7, 1]), 12)])
    new, shift = plan.positions(ids, compact=False)
    assert new[:, 0].T.tolist() == [[0] * 3, [1] * 3, [2, 3, 5], [2, 2, 3], [6] * 3, [7] * 3, [8] * 3]
    assert shift.tolist() == [0]


def test_grid_positions_close_gaps_when_compact():
    """Kept tokens at (0, 1), (0, 3), (2, 3) of a 3 x 4 grid: a 2 x 2 grid is left, and text moves down by 2."""
    ids = mrope(2, 3, 4, 3)
    layout = VisualLayout(1, 17, (span(0, 2, 3, 4),))
    plan = planned(layout, [Selection.prune(torch.tensor([1, 3, 11]), 12)])
    new, shift = plan.positions(ids, compact=True)
    image = [[2, 2, 2], [2, 2, 3], [2, 3, 3]]
    assert new[:, 0].T.tolist() == [[0] * 3, [1] * 3, *image, [4] * 3, [5] * 3, [6] * 3]
    assert shift.tolist() == [2]
    assert torch.equal(ids, mrope(2, 3, 4, 3))  # the caller's tensor is left alone


def test_grid_positions_of_two_images_in_a_row():
    """The first image's closed gap pulls the second one up as well."""
    first, second = mrope(1, 2, 2, 1), mrope(0, 2, 2, 1)
    ids = torch.cat([first, second + 4], dim=2)  # text, image, text, image, text
    layout = VisualLayout(1, 11, (span(0, 1, 2, 2), span(0, 6, 2, 2)))
    plan = planned(layout, [Selection.prune(torch.tensor([3]), 4), Selection.prune(torch.tensor([0, 3]), 4)])
    new, shift = plan.positions(ids, compact=True)
    assert new[:, 0].T.tolist() == [[0] * 3, [1] * 3, [2] * 3, [3] * 3, [3, 4, 4], [5] * 3]
    assert shift.tolist() == [1]


def test_keeping_everything_changes_nothing():
    layout = VisualLayout(2, 12, (span(0, 1, 2, 3), span(1, 3, 1, 4)))
    plan = planned(layout, [Selection.identity(6), Selection.identity(4)])
    x = torch.randn(2, 12, 3)
    assert torch.equal(plan.gather(x), x)
    assert torch.equal(plan.restore(x), x)
    assert not plan.ragged
    ids = torch.arange(12).repeat(2, 1)
    for compact in (False, True):
        new, shift = plan.positions(ids, compact)
        assert torch.equal(new, ids)
        assert shift.tolist() == [0, 0]
