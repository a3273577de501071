"""`attention_rows`: softmax rows of a few queries, averaged over heads, against float64 loops."""

import math

import pytest
import torch

from vtc import ops

pytestmark = pytest.mark.core


def define(q, k, scale):
    b, h, r, _ = q.shape
    n = k.shape[2]
    out = torch.zeros(b, r, n, dtype=torch.float64)
    for i in range(b):
        for j in range(r):
            for head in range(h):
                logits = [float(q[i, head, j].double() @ k[i, head, m].double()) * scale for m in range(n)]
                top = max(logits)
                weights = [math.exp(x - top) for x in logits]
                out[i, j] += torch.tensor(weights, dtype=torch.float64) / sum(weights) / h
    return out


@pytest.mark.parametrize("n", [1, 2, 3, 63, 127, pytest.param(577, marks=pytest.mark.large)])
def test_against_the_definition(n):
    g = torch.Generator().manual_seed(n)
    q, k = torch.randn(2, 3, 2, 5, generator=g), torch.randn(2, 3, n, 5, generator=g)
    out = ops.attention_rows(q, k, 0.7)
    assert out.shape == (2, 2, n)
    torch.testing.assert_close(out.double(), define(q, k, 0.7), atol=1e-6, rtol=1e-5)


def test_zero_and_equal_rows_give_uniform_attention():
    q, k = torch.zeros(1, 2, 1, 4), torch.randn(1, 2, 7, 4)
    torch.testing.assert_close(ops.attention_rows(q, k, 1.0), torch.full((1, 1, 7), 1 / 7))
    q, k = torch.randn(1, 2, 1, 4), torch.ones(1, 2, 7, 4)
    torch.testing.assert_close(ops.attention_rows(q, k, 1.0), torch.full((1, 1, 7), 1 / 7))


def test_large_logits_do_not_overflow():
    q = torch.full((1, 1, 1, 4), 300.0)
    k = torch.stack([torch.full((4,), 300.0), torch.full((4,), -300.0)]).view(1, 1, 2, 4)
    assert ops.attention_rows(q, k, 1.0).flatten().tolist() == [1.0, 0.0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_input_is_computed_in_fp32(dtype):
    q, k = torch.randn(1, 2, 1, 8).to(dtype), torch.randn(1, 2, 33, 8).to(dtype)
    out = ops.attention_rows(q, k, 0.5)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, ops.attention_rows(q.float(), k.float(), 0.5))
    torch.testing.assert_close(out.sum(-1), torch.ones(1, 1))


#: with fewer queries than 256 in all, keys beyond 128 are shared out; a block has 16 of the one and 32 of the other
LARGE = [pytest.param(*sizes, marks=pytest.mark.large) for sizes in ((2, 600), (70, 130))]


def masked(q, k, scale, at, seen, since=None):
    """Float64, row by row: grouped heads, causal limits, keys that are not there, or lie before a window."""
    b, h, r, _ = q.shape
    groups, n = k.shape[1], k.shape[2]
    out = torch.zeros(b, r, n, dtype=torch.float64)
    for i in range(b):
        for j in range(r):
            start = 0 if since is None else int(since[i, j])
            keys = [m for m in range(start, n) if seen[i, m] and m <= at[i, j]]
            for head in range(h):
                if keys:
                    logits = k[i, head // (h // groups)][keys].double() @ q[i, head, j].double() * scale
                    out[i, j, keys] += logits.softmax(0) / h
    return out


@pytest.mark.parametrize(("heads", "groups"), [(4, 4), (4, 2), (6, 1)])
@pytest.mark.parametrize(("rows", "n"), [(1, 1), (3, 40), (20, 130), *LARGE])
def test_causal_grouped_and_padded(heads, groups, rows, n):
    g = torch.Generator().manual_seed(rows)
    q, k = torch.randn(2, heads, rows, 8, generator=g), torch.randn(2, groups, n, 8, generator=g)
    at = torch.randint(-1, n, (2, rows), generator=g)
    seen = torch.rand(2, n, generator=g) < 0.7
    expected = masked(q, k, 0.4, at, seen)
    out = ops.attention_rows(q, k, 0.4, at, seen)
    torch.testing.assert_close(out.double(), expected, atol=1e-6, rtol=1e-5)
    assert (out[at < 0] == 0).all()  # absent queries
    received = ops.received_attention(q, k, 0.4, at, seen)
    mean = expected.sum(1) / (at >= 0).sum(1, keepdim=True).clamp(min=1)
    torch.testing.assert_close(received.double(), mean, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(("heads", "groups"), [(4, 2), (6, 1)])
@pytest.mark.parametrize(("rows", "n"), [(1, 1), (3, 40), (20, 70), *LARGE[1:]])
def test_a_window(heads, groups, rows, n):
    """Keys before a query's first one get nothing; a query may see none at all."""
    g = torch.Generator().manual_seed(rows)
    q, k = torch.randn(2, heads, rows, 8, generator=g), torch.randn(2, groups, n, 8, generator=g)
    at, seen = torch.randint(-1, n, (2, rows), generator=g), torch.rand(2, n, generator=g) < 0.7
    since = (at - torch.randint(0, 9, (2, rows), generator=g)).clamp(min=0)
    expected = masked(q, k, 0.4, at, seen, since)
    torch.testing.assert_close(ops.attention_rows(q, k, 0.4, at, seen, since).double(), expected, atol=1e-6, rtol=1e-5)
    mean = expected.sum(1) / (at >= 0).sum(1, keepdim=True).clamp(min=1)
    received = ops.received_attention(q, k, 0.4, at, seen, since)
    torch.testing.assert_close(received.double(), mean, atol=1e-6, rtol=1e-5)
    alone = ops.attention_rows(q, k, 0.4, since=since)
    everything = torch.full((2, rows), n - 1)
    expected = masked(q, k, 0.4, everything, torch.ones_like(seen), since)
    torch.testing.assert_close(alone.double(), expected, atol=1e-6, rtol=1e-5)
