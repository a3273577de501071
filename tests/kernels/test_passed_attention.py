"""What keys collect of the weights that queries hand out, against the whole softmax matrix."""

from __future__ import annotations

import pytest
import torch

from vtc import ops
from vtc.kernels.passed_attention import reference

pytestmark = pytest.mark.core


@pytest.mark.parametrize("block", [1, 40, 2**20])
@pytest.mark.parametrize(("rows", "keys"), [(1, 1), (17, 17), (33, 5)])
def test_it_is_the_transposed_matrix_times_the_weights(
    rows: int, keys: int, block: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(reference, "BLOCK", block)
    g = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 3, rows, 8, generator=g), torch.randn(2, 3, keys, 8, generator=g)
    weight = torch.rand(2, 3, rows, generator=g)
    matrix = (q @ k.mT * 0.3).softmax(dim=-1)
    expected = (matrix.mT @ weight[..., None])[..., 0]
    torch.testing.assert_close(ops.passed_attention(q, k, 0.3, weight), expected)


@pytest.mark.parametrize("block", [1, 17 * 17, 2 * 17 * 17, 2**20])
def test_passed_on_several_times(block: int, monkeypatch: pytest.MonkeyPatch):
    """Head by head, in pairs, all at once, or row by row where not even one matrix fits."""
    monkeypatch.setattr(reference, "BLOCK", block)
    g = torch.Generator().manual_seed(1)
    q, k = torch.randn(2, 3, 17, 8, generator=g), torch.randn(2, 3, 17, 8, generator=g)
    weight = torch.rand(2, 3, 17, generator=g)
    found = ops.passed_attention(q, k, 0.3, weight, 4)
    for b in range(2):
        for h in range(3):
            matrix, own = (q[b, h] @ k[b, h].T * 0.3).softmax(dim=-1), weight[b, h]
            for _ in range(4):
                own = torch.stack([(own * matrix[:, j]).sum() for j in range(17)])
            torch.testing.assert_close(found[b, h], own)


def test_the_nearest_by_cosine_is_found():
    x = torch.tensor([[[2.0, 0.1], [0.0, 1.0], [-1.0, 0.0], [1.0, 1.0]]])
    others = torch.tensor([[[0.0, 5.0], [9.0, 0.0]]])
    assert ops.nearest(x, others).tolist() == [[1, 0, 0, 0]]  # ties go to the lowest


def test_protected_tokens_neither_join_nor_are_joined():
    x = torch.ones(1, 7, 3)  # all alike: any pair would do
    for protected in range(4):
        target = ops.bipartite_match(x, 2, None, protected=protected)[0].tolist()
        joins = {i: j for i, j in enumerate(target) if i != j}
        assert len(joins) == 2
        assert all(i >= protected and j >= protected and i % 2 == 0 and j % 2 == 1 for i, j in joins.items())
    with pytest.raises(ValueError, match="at most half of them can be merged away"):
        ops.bipartite_match(x, 3, None, protected=2)
