"""The Triton kernels on a real GPU, against the references on the CPU: `pytest -m gpu`."""

from __future__ import annotations

import pytest
import torch

from vtc import ops

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is available here"),
]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SIZES = [1, 2, 3, 63, 127, 576, 577, 729, 2880]
WIDTHS = [17, 64, 1000]


def noise(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("d", WIDTHS)
def test_transition_segment_and_gather(monkeypatch, dtype, n, d):
    x, y = noise(2, n, d, dtype=dtype), noise(2, n, d, dtype=dtype, seed=1)
    for got, expected in zip(ops.transition(x.cuda(), y.cuda()), ops.transition(x, y), strict=True):
        torch.testing.assert_close(got.cpu(), expected, atol=1e-4, rtol=1e-4)
    source = torch.randint(-1, 5, (n,), generator=torch.Generator().manual_seed(2))
    weight = torch.rand(n, generator=torch.Generator().manual_seed(3))
    got = ops.segment_sum(x[0].cuda(), source.cuda(), weight.cuda(), 6).cpu()
    tolerance = 1e-4 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(got, ops.segment_sum(x[0], source, weight, 6), atol=tolerance, rtol=tolerance)
    index = torch.randint(0, n, (2, n), generator=torch.Generator().manual_seed(4))
    for choice in ("auto", "triton"):
        monkeypatch.setenv("VTC_KERNELS", choice)
        found = ops.gather_rows(index.cuda(), [x.cuda(), y.cuda()])
        monkeypatch.delenv("VTC_KERNELS")
        for got, expected in zip(found, ops.gather_rows(index, [x, y]), strict=True):
            assert torch.equal(got.cpu(), expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [32, 64, 128, 256])
@pytest.mark.parametrize("n", [1, 63, 577, 2880])
def test_attention(dtype, size, n):
    q, k = noise(2, 4, 7, size, dtype=dtype), noise(2, 2, n, size, dtype=dtype, seed=1)
    at = torch.randint(-1, n, (2, 7), generator=torch.Generator().manual_seed(2))
    expected = ops.attention_rows(q.double().float(), k.double().float(), size**-0.5, at)
    got = ops.attention_rows(q.cuda(), k.cuda(), size**-0.5, at.cuda())
    torch.testing.assert_close(got.cpu(), expected, atol=1e-4, rtol=1e-3)
    expected = ops.received_attention(q.float(), k.float(), size**-0.5, at)
    got = ops.received_attention(q.cuda(), k.cuda(), size**-0.5, at.cuda())
    torch.testing.assert_close(got.cpu(), expected, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mode", ["maxmin", "maxsum"])
@pytest.mark.parametrize("n", [1, 63, 577, 2880, 20_000])
def test_greedy_diversity_is_greedy(dtype, mode, n):
    """Step by step against float64: rounding may order near-ties differently."""
    x, k = noise(1, n, 64, dtype=dtype), min(n, 48)
    chosen = ops.greedy_diversity(x.cuda(), k, mode, torch.tensor([n // 2]).cuda())[0].cpu()
    assert chosen.unique().numel() == k
    unit = torch.nn.functional.normalize(x[0].double(), dim=-1)
    cosine = unit @ unit[chosen].T
    for step in range(1, k):
        score = cosine[:, :step].amax(1) if mode == "maxmin" else cosine[:, :step].sum(1)
        score[chosen[:step]] = torch.inf
        assert score[chosen[step]] <= score.min() + 1e-4


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [1, 63, 577, 2880])
def test_greedy_choices_by_weight(dtype, n):
    """Against the reference: rounding may order near-ties differently, and all that follows."""
    x, k = noise(2, n, 64, dtype=dtype), max(1, n // 20)
    weight = torch.rand(2, n, generator=torch.Generator().manual_seed(1))
    unit = torch.nn.functional.normalize(x.float(), dim=-1)
    cover = unit @ unit.mT
    pairs = [
        (ops.greedy_coverage(cover.cuda(), k, weight.cuda()), ops.greedy_coverage(cover, k, weight)),
        (ops.greedy_determinantal(x.cuda(), k, weight.cuda()), ops.greedy_determinantal(x, k, weight)),
        (ops.greedy_suppression(x.cuda(), k, weight.cuda(), 0.2)[0], ops.greedy_suppression(x, k, weight, 0.2)[0]),
    ]
    for got, expected in pairs:
        for row, right in zip(got.tolist(), expected.tolist(), strict=True):
            assert len(set(row)) == k
            assert len(set(row) & set(right)) >= 0.9 * k


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("margin", [None, 0.45])
@pytest.mark.parametrize("n", [2, 63, 577, 2880])
def test_bipartite_match(dtype, margin, n):
    x = noise(2, n, 64, dtype=dtype)
    got, expected = ops.bipartite_match(x.cuda(), n // 3, margin).cpu(), ops.bipartite_match(x, n // 3, margin)
    assert (got != expected).float().mean() < 0.01  # near-ties


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("n", [63, 577, 2880])
def test_kmeans_is_a_fixed_point(metric, n):
    x = noise(2, n, 64)
    centroids, label = (t.cpu() for t in ops.kmeans(x.cuda(), 12, metric))
    ends = torch.nn.functional.normalize(centroids, dim=-1) if metric == "cosine" else centroids
    score = x @ ends.mT - (0 if metric == "cosine" else 0.5 * ends.square().sum(-1)[:, None])
    own = score.gather(2, label.unsqueeze(-1))[..., 0]
    torch.testing.assert_close(own, score.amax(-1), atol=1e-3, rtol=0)


@pytest.mark.parametrize("op", ["greedy_diversity", "bipartite_match"])
def test_autocast_changes_nothing(op):
    x = noise(2, 577, 64, dtype=torch.bfloat16).cuda()
    rest = (50, "maxmin") if op == "greedy_diversity" else (100, None)
    alone = getattr(ops, op)(x, *rest)
    with torch.autocast("cuda", dtype=torch.float16):
        assert torch.equal(getattr(ops, op)(x, *rest), alone)


def test_the_same_input_gives_the_same_indices():
    x = noise(4, 2880, 256, dtype=torch.bfloat16).cuda()
    for call in (
        lambda: ops.greedy_diversity(x, 288, "maxmin"),
        lambda: ops.bipartite_match(x, 1000, None),
        lambda: ops.kmeans(x, 32, "cosine")[1],
    ):
        assert torch.equal(call(), call())
