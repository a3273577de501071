"""holov, as its paper and released code define it: strip by strip, in loops over numbers."""

import pytest
import torch

import vtc
from tests.methods.definitions import defines
from tests.methods.plain import best, cosine, rows


def define(x, attention, k, count, alpha):
    x, attention, n = rows(x), attention.double().tolist(), len(x)
    count = min(count, n)
    sizes = [n // count + (i < n % count) for i in range(count)]
    strips = [list(range(sum(sizes[:i]), sum(sizes[: i + 1]))) for i in range(count)]
    variance = [0.0] * n
    for strip in strips:
        for i in strip:
            others = [cosine(x[i], x[j]) for j in strip if j != i]
            if others:
                mean = sum(others) / len(others)
                variance[i] = sum((c - mean) ** 2 for c in others) / len(others)
    spread = sum(variance) / n
    scale = sum(1000 * abs(a) for a in attention) / n / spread if spread else 0.0
    score = [1000 * a + alpha * scale * v for a, v in zip(attention, variance, strict=True)]
    means = [sum(score[i] for i in strip) / len(strip) for strip in strips]
    weights = [mean / sum(means) for mean in means]
    shares = [min(int(weight * k), len(strip)) for weight, strip in zip(weights, strips, strict=True)]
    while sum(shares) < k:  # no zero vectors: what a strip cannot take goes on to the next
        for i in sorted(range(count), key=lambda i: (-weights[i], i)):
            if shares[i] < len(strips[i]) and sum(shares) < k:
                shares[i] += 1
    kept = []
    for strip, share in zip(strips, shares, strict=True):
        kept += [strip[i] for i in best([attention[j] for j in strip], share)]
    return kept


@defines("holov", "strips", "alpha")
@pytest.mark.parametrize("alpha", [0.0, 0.09, 5.0])
@pytest.mark.parametrize("strips", [1, 4, 16, 100])
@pytest.mark.parametrize("keep", [1, 9, 30, 41, 50])
def test_against_the_definition(keep, strips, alpha):
    g = torch.Generator().manual_seed(keep)
    x, attention = torch.randn(50, 6, generator=g), torch.rand(50, generator=g) ** 4
    got = vtc.select(vtc.HoloV(keep=keep, strips=strips, alpha=alpha), x, cls_attention=attention)
    assert got.anchor.tolist() == define(x, attention, keep, strips, alpha)


def test_what_a_strip_has_no_tokens_for_goes_to_the_others():
    """All attention lies in one strip of four; twelve are to stay, and none of them is made of zeros."""
    attention = torch.full((16,), 1e-6)
    attention[4:8] = 1.0
    x = torch.randn(16, 4, generator=torch.Generator().manual_seed(0))
    got = vtc.select(vtc.HoloV(keep=12, strips=4, alpha=0.0), x, cls_attention=attention)
    assert got.tokens_out == 12
    assert {4, 5, 6, 7} <= set(got.anchor.tolist())
    assert (got.apply(x) != 0).all()


def test_rows_that_are_no_numbers():
    g = torch.Generator().manual_seed(4)
    x, attention = torch.randn(20, 4, generator=g), torch.rand(20, generator=g)
    x[3], attention[7] = float("nan"), float("nan")
    got = vtc.select(vtc.HoloV(keep=12, strips=2), x, cls_attention=attention)
    assert got.tokens_out == 12
    assert 7 not in got.anchor


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"strips": 0}, r"strips=0 is not a whole number of 1 or more: it is a number of strips\.$"),
        ({"alpha": -1.0}, r"alpha=-1.0 is not a number of 0 or more: it is a weight\.$"),
    ],
)
def test_refusals(options, says):
    with pytest.raises(ValueError, match=says):
        vtc.HoloV(**options)
