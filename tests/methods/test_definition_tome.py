"""tome and pitome, as their papers define them: lists of tokens that merge, round by round."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

import vtc
from tests.methods.definitions import defines

Row = list[float]
Group = list[int]  # the tokens in one, the last of which absorbed the others: it is where the merged token stands


def cosine(a: Row, b: Row) -> float:
    norms = sum(x * x for x in a) ** 0.5 * sum(x * x for x in b) ** 0.5
    return sum(x * y for x, y in zip(a, b, strict=True)) / norms


def mean(x: list[Row], group: Group) -> Row:
    """Size-weighted means of means are means of all that went in."""
    return [sum(x[i][c] for i in group) / len(group) for c in range(len(x[0]))]


def merge(x: list[Row], k: int, rate: float, order: str, margin: float | None) -> list[Group]:
    """Rounds of bipartite matching down to `k` tokens, in the order of the places where they stand."""
    groups: list[Group] = [[i] for i in range(len(x))]
    while len(groups) > k:
        n = len(groups)
        r = min(n - k, max(1, int(rate * n)))
        rows = [mean(x, group) for group in groups]
        if margin is None:  # every second one looks, and the r best pairs merge
            looking, found = list(range(0, n, 2)), list(range(1, n, 2))
            partner = {i: max(found, key=lambda j: (cosine(rows[i], rows[j]), -j)) for i in looking}
            ranked = sorted(looking, key=lambda i: (-cosine(rows[i], rows[partner[i]]), i))
        else:  # of the 2r tokens of highest energy every second one looks, and all of them merge
            elu = lambda v: v if v > 0 else math.exp(v) - 1  # noqa: E731
            energy = [
                sum(elu((1.0 if i == j else cosine(rows[i], rows[j])) - margin) for j in range(n)) for i in range(n)
            ]
            crowd = sorted(range(n), key=lambda i: (-round(energy[i] / n, 12), i))[: 2 * r]
            ranked, found = crowd[0::2], crowd[1::2]
            partner = {i: max(found, key=lambda j: (cosine(rows[i], rows[j]), -found.index(j))) for i in ranked}
        for i in ranked[:r]:
            groups[partner[i]] = groups[i] + groups[partner[i]]
        if order == "released":  # those that looked in vain, the best pair's first; then those that were looked at
            groups = [groups[i] for i in ranked[r:]] + [groups[j] for j in range(1, n, 2)]
        else:
            groups = [group for i, group in enumerate(groups) if i not in ranked[:r]]
    return sorted(groups, key=lambda group: group[-1])


def check(method: Any, x: torch.Tensor, groups: list[Group]) -> None:
    got = vtc.select(method, x)
    assert got.anchor.tolist() == [group[-1] for group in groups]
    assert [sorted(group) for group in groups] == [
        (got.source == m).nonzero()[:, 0].tolist() for m in range(len(groups))
    ]
    expected = [mean(x.double().tolist(), group) for group in groups]
    torch.testing.assert_close(got.apply(x).double(), torch.tensor(expected).double(), atol=1e-5, rtol=1e-5)


@defines("tome", "rate", "order")
@pytest.mark.parametrize("order", ["raster", "released"])
@pytest.mark.parametrize(("keep", "rate"), [(20, 0.5), (20, 0.25), (11, 0.1), (3, 0.5), (1, 0.3)])
def test_tome(keep: int, rate: float, order: str) -> None:
    x = torch.randn(27, 6, generator=torch.Generator().manual_seed(keep))
    check(vtc.ToMe(keep=keep, rate=rate, order=order), x, merge(x.double().tolist(), keep, rate, order, None))


@defines("pitome", "rate", "margin")
@pytest.mark.parametrize("margin", [-0.2, 0.45, 0.9])
@pytest.mark.parametrize(("keep", "rate"), [(20, 0.5), (20, 0.25), (11, 0.1), (4, 0.5)])
def test_pitome(keep: int, rate: float, margin: float) -> None:
    x = torch.randn(27, 6, generator=torch.Generator().manual_seed(keep))
    check(vtc.PiToMe(keep=keep, rate=rate, margin=margin), x, merge(x.double().tolist(), keep, rate, "raster", margin))


def test_the_orders_agree_on_the_first_round_only() -> None:
    x = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    for keep, same in ((48, True), (16, False)):
        raster, released = (vtc.select(vtc.ToMe(keep=keep, order=order), x).source for order in ("raster", "released"))
        assert raster.equal(released) is same


def test_an_order_there_is_not() -> None:
    with pytest.raises(ValueError, match=r"^order='random' is not one of raster, released\.$"):
        vtc.ToMe(order="random")
