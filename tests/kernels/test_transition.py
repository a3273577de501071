"""`transition`: ratio of norms and cosine, against float64."""

import pytest
import torch

from vtc import ops

pytestmark = pytest.mark.core


@pytest.mark.parametrize("size", [1, 2, 17, 64, 1000, 1030])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_against_the_definition(size, dtype):
    g = torch.Generator().manual_seed(size)
    x, y = torch.randn(2, 5, size, generator=g).to(dtype), torch.randn(2, 5, size, generator=g).to(dtype)
    ratio, cosine = ops.transition(x, y)
    assert ratio.dtype == cosine.dtype == torch.float32
    a, b = x.double(), y.double()
    torch.testing.assert_close(ratio.double(), b.norm(dim=-1) / a.norm(dim=-1), atol=0, rtol=1e-5)
    expected = (a * b).sum(-1) / (a.norm(dim=-1) * b.norm(dim=-1))
    torch.testing.assert_close(cosine.double(), expected, atol=1e-6, rtol=1e-5)


def test_zero_rows_are_defined():
    x, y = torch.zeros(3, 8), torch.ones(3, 8)
    for before, after in ((x, y), (y, x), (x, x)):
        ratio, cosine = ops.transition(before, after)
        assert ratio.isfinite().all()
        assert (cosine == 0).all()


def test_rows_that_are_not_contiguous():
    x, y = torch.randn(8, 6, 4).transpose(0, 1), torch.randn(8, 6, 4).transpose(0, 1)
    for a, b in zip(ops.transition(x, y), ops.transition(x.contiguous(), y.contiguous()), strict=True):
        torch.testing.assert_close(a, b)
