"""`received_attention`: column means of the softmax matrix, against the whole matrix in float64."""

import pytest
import torch

from vtc import ops
from vtc.kernels.received_attention import reference

pytestmark = pytest.mark.core


def define(q, k, scale):
    return (q.double() @ k.double().transpose(-1, -2) * scale).softmax(-1).mean(dim=(1, 2))


@pytest.mark.parametrize("n", [1, 2, 3, 63, 127, pytest.param(577, marks=pytest.mark.large)])
def test_against_the_definition(n):
    g = torch.Generator().manual_seed(n)
    q, k = torch.randn(2, 3, n, 5, generator=g), torch.randn(2, 3, n, 5, generator=g)
    out = ops.received_attention(q, k, 0.7)
    assert out.shape == (2, n)
    torch.testing.assert_close(out.double(), define(q, k, 0.7), atol=1e-6, rtol=1e-5)


@pytest.mark.large
@pytest.mark.parametrize("extra", [-1, 0, 1])
def test_chunk_boundaries(extra, monkeypatch):
    monkeypatch.setattr(reference, "BLOCK", 2 * 100 * 20)  # 20 queries at a time
    q, k = torch.randn(1, 2, 40 + extra, 4), torch.randn(1, 2, 100, 4)
    torch.testing.assert_close(ops.received_attention(q, k, 1.0).double(), define(q, k, 1.0), atol=1e-6, rtol=1e-5)


def test_zero_queries_and_equal_keys_spread_evenly():
    even = torch.full((1, 9), 1 / 9)
    torch.testing.assert_close(ops.received_attention(torch.zeros(1, 2, 9, 4), torch.randn(1, 2, 9, 4), 1.0), even)
    torch.testing.assert_close(ops.received_attention(torch.randn(1, 2, 9, 4), torch.ones(1, 2, 9, 4), 1.0), even)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_input_is_computed_in_fp32(dtype):
    q, k = torch.randn(1, 2, 130, 8).to(dtype), torch.randn(1, 2, 130, 8).to(dtype)
    out = ops.received_attention(q, k, 0.5)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, ops.received_attention(q.float(), k.float(), 0.5))
    torch.testing.assert_close(out.sum(-1), torch.ones(1))
