"""`dpc_knn`: density-peaks clustering against loops."""

import math

import pytest
import torch

from vtc import ops
from vtc.kernels.dpc_knn import reference

pytestmark = pytest.mark.core


def define(x, clusters, neighbours):
    n = len(x)
    distance = [[float((x[i].double() - x[j].double()).norm()) / x.shape[1] ** 0.5 for j in range(n)] for i in range(n)]
    density = [math.exp(-sum(d * d for d in sorted(row)[:neighbours]) / min(neighbours, n)) for row in distance]
    order = sorted(range(n), key=lambda i: (-density[i], i))
    furthest = max(max(row) for row in distance)
    apart = [min((distance[i][j] for j in order[: order.index(i)]), default=furthest) for i in range(n)]
    score = [density[i] * apart[i] for i in range(n)]
    centres = sorted(range(n), key=lambda i: (-score[i], i))[:clusters]
    member = [min(range(clusters), key=lambda c: (distance[i][centres[c]], c)) for i in range(n)]
    for c, i in enumerate(centres):
        member[i] = c
    return centres, member


@pytest.mark.parametrize("neighbours", [1, 5, 40])
@pytest.mark.parametrize(("n", "clusters"), [(1, 1), (2, 1), (7, 3), (40, 5), (40, 40)])
def test_against_the_definition(n, clusters, neighbours):
    x = torch.randn(n, 6, generator=torch.Generator().manual_seed(n))
    centres, member = ops.dpc_knn(x, clusters, neighbours)
    expected = define(x, clusters, neighbours)
    assert centres.tolist() == expected[0]
    assert member.tolist() == expected[1]


@pytest.mark.parametrize("at_once", [1, 100, 700, 10**6])
@pytest.mark.parametrize("neighbours", [1, 5, 40])
@pytest.mark.parametrize(("n", "clusters"), [(1, 1), (2, 1), (7, 3), (40, 5), (40, 40)])
def test_tiles_are_the_whole(monkeypatch, n, clusters, neighbours, at_once):
    """Where there are too many tokens to hold all their distances, also with copies among them."""
    x = torch.randn(n, 6, generator=torch.Generator().manual_seed(n))
    expected = define(x, clusters, neighbours)
    copies = torch.randint(-4, 5, (n, 3), generator=torch.Generator().manual_seed(n)).float().repeat(2, 1)
    whole = ops.dpc_knn(copies, clusters, neighbours)
    monkeypatch.setattr(reference, "LARGEST", (0, 0))
    monkeypatch.setattr(reference, "AT_ONCE", (at_once, at_once))
    centres, member = ops.dpc_knn(x, clusters, neighbours)
    assert centres.tolist() == expected[0]
    assert member.tolist() == expected[1]
    for got, held in zip(ops.dpc_knn(copies, clusters, neighbours), whole, strict=True):
        assert torch.equal(got, held)


def test_separate_blobs_are_found():
    g = torch.Generator().manual_seed(0)
    blobs = torch.cat([torch.randn(20, 4, generator=g) * 0.1 + 10 * i for i in range(3)])
    _, member = ops.dpc_knn(blobs, 3, 5)
    assert [len(set(member[i * 20 : (i + 1) * 20].tolist())) for i in range(3)] == [1, 1, 1]
    assert len(set(member.tolist())) == 3


def test_equal_points_are_defined():
    centres, member = ops.dpc_knn(torch.ones(9, 3), 4, 5)
    assert centres.unique().numel() == 4
    assert (member[centres] == torch.arange(4)).all()
