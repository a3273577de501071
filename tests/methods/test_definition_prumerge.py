"""prumerge and PruMerge+, as their released code and our options define them: loops over numbers."""

import pytest
import torch

import vtc
from tests.methods.definitions import defines
from tests.methods.plain import best, cosine, rows


def quartile(values, share):
    """By linear interpolation between neighbours in order."""
    values = sorted(values)
    place = share * (len(values) - 1)
    low = int(place)
    high = min(low + 1, len(values) - 1)
    return values[low] + (place - low) * (values[high] - values[low])


def kept_of(attention, room, plus, exact):
    n = len(attention)
    if exact:
        first = best(attention, max(1, round(room / 4)) if plus else room)
        spaced = [i for i in range(n) if i not in first]
    else:
        low, high = quartile(attention, 0.25), quartile(attention, 0.75)
        found = max(1, sum(a > high + 1.5 * (high - low) for a in attention))
        first = best(attention, min(found, room))
        spaced = [i for i in range(0, n - 1, max(1, int(n / found) // 3)) if i not in first] if plus else []
    some = min(len(spaced), room - len(first))
    return sorted(first + [spaced[i * len(spaced) // some] for i in range(some)])


def define(x, attention, keys, k, neighbours, plus=False, exact=True):
    """(anchors, outputs): kept ones and what is near them, then the sum of all others."""
    n = len(x)
    kept = kept_of(attention, max(1, k - 1), plus, exact)
    outputs = []
    for i in kept:
        near = sorted((j for j in range(n) if j != i), key=lambda j: (-cosine(keys[i], keys[j]), j))[:neighbours]
        outputs.append([x[i][c] + sum(attention[j] * x[j][c] for j in near) for c in range(len(x[0]))])
    rest = [j for j in range(n) if j not in kept]
    if k == 1:
        return kept, outputs
    last = [sum(attention[j] * x[j][c] for j in rest) for c in range(len(x[0]))]
    return [*kept, max(rest, key=lambda j: (attention[j], -j))], [*outputs, last]


def seen(seed, n=40):
    g = torch.Generator().manual_seed(seed)
    attention = torch.rand(n, generator=g) ** 6
    return torch.randn(n, 4, generator=g), attention / attention.sum(), torch.randn(n, 5, generator=g)


def compare(method, x, attention, keys, expected):
    got = vtc.select(method, x, joined_cls_attention=attention, joined_keys=keys)
    assert got.anchor.tolist() == expected[0]
    torch.testing.assert_close(got.apply(x).double(), torch.tensor(expected[1]).double(), atol=1e-5, rtol=1e-5)


@defines("prumerge", "plus", "neighbours")
@pytest.mark.parametrize("plus", [False, True])
@pytest.mark.parametrize("neighbours", [1, 8, 100])
@pytest.mark.parametrize("keep", [1, 2, 9, 30])
def test_against_the_definition(keep, neighbours, plus):
    x, attention, keys = seen(keep)
    method = vtc.PruMerge(keep=keep, neighbours=neighbours, plus=plus)
    numbers = rows(x), attention.double().tolist(), rows(keys)
    compare(method, x, attention, keys, define(*numbers, keep, neighbours, plus))


@defines("prumerge", "exact_count", "plus")
@pytest.mark.parametrize("plus", [False, True])
@pytest.mark.parametrize("keep", [1.0, 5])
def test_as_many_as_stand_out(keep, plus):
    """`keep` is a limit: 1.0 is none."""
    x, attention, keys = seen(3)
    method = vtc.PruMerge(keep=keep, exact_count=False, plus=plus)
    limit = 40 if keep == 1.0 else keep
    expected = define(rows(x), attention.double().tolist(), rows(keys), limit, 32, plus, exact=False)
    assert len(expected[0]) <= limit
    compare(method, x, attention, keys, expected)
    assert not method.keeps_all()


def test_even_attention_has_no_outliers_and_one_token_stays():
    """The released code divides by their number."""
    x = torch.randn(20, 4)
    method = vtc.PruMerge(keep=1.0, exact_count=False, plus=True)
    got = vtc.select(method, x, joined_cls_attention=torch.full((20,), 0.05), joined_keys=torch.randn(20, 3))
    assert got.anchor.tolist()[:2] == [0, 6]  # every sixth of 20, and the first
    assert got.apply(x).isfinite().all()


def test_rows_that_are_no_numbers():
    x, attention, keys = seen(5)
    attention[7], keys[3] = float("nan"), float("nan")
    got = vtc.select(vtc.PruMerge(keep=12), x, joined_cls_attention=attention, joined_keys=keys)
    assert got.tokens_out == 12
    assert 7 not in got.anchor.tolist()[:-1]
    assert got.apply(x).isfinite().all()


def test_refusals():
    with pytest.raises(
        ValueError, match=r"neighbours=0 is not a whole number of 1 or more: it is a number of tokens\.$"
    ):
        vtc.PruMerge(neighbours=0)
    assert vtc.PruMerge().tower_layers(24, 22) == (23,)
