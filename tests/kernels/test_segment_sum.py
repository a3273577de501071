"""`segment_sum` and `segment_mean`: weighted sums and means of rows per segment, against loops in float64."""

import pytest
import torch

from vtc import ops

pytestmark = pytest.mark.core


def define(x, source, weight, segments):
    out = torch.zeros(segments, x.shape[1], dtype=torch.float64)
    for row, segment, w in zip(x.double(), source.tolist(), weight.double(), strict=True):
        if segment >= 0:
            out[segment] += w * row
    return out


@pytest.mark.parametrize("n", [1, 2, 3, 63, 127, pytest.param(577, marks=pytest.mark.large)])
def test_against_the_definition(n):
    g = torch.Generator().manual_seed(n)
    x, weight = torch.randn(n, 5, generator=g), torch.rand(n, generator=g)
    segments = n // 2 + 2  # some stay empty
    source = torch.randint(-1, segments - 1, (n,), generator=g)
    out = ops.segment_sum(x, source, weight, segments)
    torch.testing.assert_close(out.double(), define(x, source, weight, segments), atol=1e-5, rtol=1e-5)


def test_nothing_used_gives_zeros_even_beside_nan():
    x = torch.full((3, 2), float("nan"))
    out = ops.segment_sum(x, torch.tensor([-1, -1, -1]), torch.ones(3), 2)
    assert out.tolist() == [[0.0, 0.0], [0.0, 0.0]]


@pytest.mark.parametrize(("dtype", "count"), [(torch.float16, 2304), (torch.bfloat16, 304)])
def test_half_precision_is_summed_in_fp32(dtype, count):
    """A running sum of ones in half precision would stall at 2048, or at 256."""
    x = torch.ones(count, 1, dtype=dtype)
    out = ops.segment_sum(x, torch.zeros(count, dtype=torch.long), torch.ones(count), 1)
    assert out.dtype == dtype
    assert out.item() == count


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_means_are_weighted_and_empty_segments_zero(dtype):
    g = torch.Generator().manual_seed(0)
    x, weight = torch.randn(127, 17, generator=g).to(dtype), torch.rand(127, generator=g) + 0.1
    source = torch.randint(-1, 9, (127,), generator=g)
    out = ops.segment_mean(x, source, 11, weight)
    expected = define(x, source, weight, 11) / define(torch.ones(127, 1), source, weight, 11).clamp(min=1e-9)
    assert out.dtype == dtype
    error = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 8e-3}[dtype]
    torch.testing.assert_close(out.double(), expected, atol=error, rtol=error)
    assert (out[9:] == 0).all()


def test_a_mean_without_weights_counts_everybody_once():
    x = torch.tensor([[1.0], [3.0], [8.0]])
    assert ops.segment_mean(x, torch.tensor([0, 0, 1]), 2).tolist() == [[2.0], [8.0]]
