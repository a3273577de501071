"""`bipartite_match`: ToMe's and PiToMe's pairs, against loops in float64."""

import math

import pytest
import torch

from vtc import ops
from vtc.kernels.bipartite_match import reference

pytestmark = pytest.mark.core


def define(x, r, margin):
    """Plain bipartite matching of rows x [N, D] -> the token each joins."""
    x = x.double()
    n = len(x)
    norms = x.norm(dim=1)
    cosine = [
        [float(x[i] @ x[j] / (norms[i] * norms[j])) if norms[i] and norms[j] else 0.0 for j in range(n)]
        for i in range(n)
    ]
    target = list(range(n))
    if margin is None:
        left, right = list(range(0, n, 2)), list(range(1, n, 2))
    else:

        def elu(value):
            return value if value > 0 else math.exp(value) - 1

        energy = [round(2**28 * sum(elu(value - margin) for value in row) / n) for row in cosine]
        order = sorted(range(n), key=lambda i: (-energy[i], i))[: 2 * r]
        left, right = order[0::2], order[1::2]
    if not right:
        return target
    best = [max(range(len(right)), key=lambda p: (cosine[i][right[p]], -p)) for i in left]
    pairs = list(zip(left, [right[p] for p in best], strict=True))
    if margin is None:
        pairs = sorted(pairs, key=lambda pair: (-cosine[pair[0]][pair[1]], pair[0]))[:r]
    for one, other in pairs:
        target[one] = other
    return target


@pytest.mark.parametrize(
    ("margin", "n"),
    [(margin, n) for margin in (None, 0.0, 0.45, 0.9) for n in (1, 2, 3, 63, 127)],
)
def test_against_the_definition(margin, n):
    x = torch.randn(2, n, 17, generator=torch.Generator().manual_seed(n))
    for r in {0, n // 4, n // 2}:
        out = ops.bipartite_match(x, r, margin)
        assert out.shape == (2, n)
        for i in range(2):
            assert out[i].tolist() == define(x[i], r, margin)


@pytest.mark.parametrize("margin", [None, 0.5])
@pytest.mark.parametrize("n", [64, 577])
def test_exactly_r_join_tokens_that_stay(margin, n):
    x = torch.randn(1, n, 8, generator=torch.Generator().manual_seed(0))
    target = ops.bipartite_match(x, n // 3, margin)[0]
    moved = target != torch.arange(n)
    assert int(moved.sum()) == n // 3
    assert not moved[target[moved]].any()


@pytest.mark.parametrize("margin", [None, 0.5])
def test_unequal_lengths_are_as_each_alone(margin):
    g = torch.Generator().manual_seed(0)
    lengths, r = torch.tensor([40, 97, 1]), torch.tensor([20, 30, 0])
    pictures = [torch.randn(n, 16, generator=g) for n in lengths.tolist()]
    batch = torch.full((3, 97, 16), float("nan"))
    for row, picture in zip(batch, pictures, strict=True):
        row[: len(picture)] = picture
    out = ops.bipartite_match(batch, r, margin, lengths)
    for i, picture in enumerate(pictures):
        alone = ops.bipartite_match(picture[None], int(r[i]), margin)[0]
        assert out[i, : len(picture)].tolist() == alone.tolist()
        assert out[i, len(picture) :].tolist() == list(range(len(picture), 97))


@pytest.mark.parametrize(("strip", "tile"), [(1, 17), (64, 40), (33, 127), (1000, 1000)])
def test_tiles_are_the_whole(monkeypatch, strip, tile):
    """Whatever is computed at a time, also in a batch, and with copies far apart: the same energies, the same pairs."""
    g = torch.Generator().manual_seed(3)
    x = torch.randint(-4, 5, (2, 127, 6), generator=g).float()
    x[0, 100], lengths, r = x[0, 3], torch.tensor([127, 90]), torch.tensor([60, 40])
    energy = ops.energy(x, 0.3)
    pairs = [ops.bipartite_match(x, r, margin, lengths) for margin in (None, 0.3)]
    monkeypatch.setattr(reference, "STRIP", strip)
    monkeypatch.setattr(reference, "TILE", tile)
    monkeypatch.setattr(reference, "IN_CACHE", 100)
    assert torch.equal(ops.energy(x, 0.3), energy)
    assert energy[0, 3] == energy[0, 100]
    for margin, expected in zip((None, 0.3), pairs, strict=True):
        assert torch.equal(ops.bipartite_match(x, r, margin, lengths), expected)


def test_energy_finds_the_crowd():
    """Ten near-copies and six loners: PiToMe merges within the crowd and leaves the loners alone."""
    g = torch.Generator().manual_seed(0)
    crowd = torch.ones(10, 32) + 0.05 * torch.randn(10, 32, generator=g)
    x = torch.cat([torch.randn(6, 32, generator=g), crowd])[None]
    target = ops.bipartite_match(x, 5, 0.5)[0]
    assert target[:6].tolist() == list(range(6))
    assert (target[6:] >= 6).all()


@pytest.mark.parametrize("margin", [None, 0.5])
@pytest.mark.parametrize("row", [[0.0] * 7, [1.0] * 7])
def test_equal_rows_join_the_lowest(margin, row):
    target = ops.bipartite_match(torch.tensor(row).expand(1, 10, 7), 2, margin)[0]
    assert target.tolist() == [1, 1, 1, 3, 4, 5, 6, 7, 8, 9]


@pytest.mark.parametrize("margin", [None, 0.5])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_rows_that_are_no_numbers_count_as_zero_rows(margin, value):
    x = torch.randn(1, 20, 4, generator=torch.Generator().manual_seed(0))
    broken, zeroed = x.clone(), x.clone()
    broken[0, [3, 8], 1] = value
    zeroed[0, [3, 8]] = 0
    assert torch.equal(ops.bipartite_match(broken, 6, margin), ops.bipartite_match(zeroed, 6, margin))


def test_more_than_half_is_refused():
    with pytest.raises(ValueError, match="at most half"):
        ops.bipartite_match(torch.zeros(1, 5, 3), 3, None)
