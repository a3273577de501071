"""`gather_rows`: the same rows of tensors of any dtype and width, bit by bit."""

import pytest
import torch

from vtc import ops

pytestmark = pytest.mark.core


@pytest.mark.parametrize("n", [1, 2, 3, 63, 127, pytest.param(577, marks=pytest.mark.large)])
def test_rows_of_everything_at_once(n):
    g = torch.Generator().manual_seed(n)
    index = torch.randint(0, n, (2, n // 2 + 1), generator=g)
    tensors = [
        torch.randn(2, n, 33, generator=g),
        torch.randn(2, n, 2, 5, generator=g).to(torch.bfloat16),
        torch.randn(1, n, 8, generator=g).half(),  # one for the whole batch
        torch.rand(2, n, generator=g) > 0.5,
        torch.randint(-(2**60), 2**60, (2, n), generator=g),
        torch.randn(2, 1500, n, generator=g).transpose(1, 2),  # not contiguous
    ]
    out = ops.gather_rows(index, tensors)
    assert len(out) == len(tensors)
    for x, got in zip(tensors, out, strict=True):
        assert got.dtype == x.dtype
        expected = torch.stack([x.expand(2, *x.shape[1:])[b, index[b]] for b in range(2)])
        assert torch.equal(got, expected)


def test_bits_that_are_no_numbers_survive():
    x = torch.tensor([[[float("nan")], [float("inf")], [-0.0]]])
    got = ops.gather_rows(torch.tensor([[2, 0, 1]]), [x])[0]
    assert got.flatten().view(torch.int32).tolist() == x.flatten().view(torch.int32)[[2, 0, 1]].tolist()


def test_no_rows():
    assert ops.gather_rows(torch.zeros(2, 0, dtype=torch.long), [torch.zeros(2, 4, 3)])[0].shape == (2, 0, 3)
