"""`dpc_knn`: density-peaks clustering against loops."""

import math

import pytest
import torch

from vtc import ops

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
