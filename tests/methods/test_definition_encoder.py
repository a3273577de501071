"""pitome and zerotprune inside the vision tower, as their papers define them: lists of numbers."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import vtc
from tests.methods.definitions import defines

Row = list[float]


def cosine(a: Row, b: Row) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True)) / math.hypot(*a) / math.hypot(*b)


def block(keys: Tensor, gone: int, number: int, depth: int, prefix: int = 1, **more: Any) -> vtc.BlockTokens:
    n = keys.shape[1]
    ways: dict[str, Any] = {"attention": lambda: None, "pictures": list, **more}
    return vtc.BlockTokens(
        keys, torch.ones(keys.shape[:2]), prefix, prefix > 0, gone, n - prefix, number, depth, **ways
    )


def seeded(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def energies(keys: list[Row], margin: float) -> list[float]:
    def f(x: float) -> float:
        return x - margin if x >= margin else math.exp(x - margin) - 1

    return [sum(f(1.0 if i == j else cosine(a, b)) for j, b in enumerate(keys)) / len(keys) for i, a in enumerate(keys)]


def pitome(keys: list[Row], gone: int, margin: float, bipartite: bool) -> dict[int, int]:
    """Who joins whom."""
    energy = energies(keys, margin)
    order = sorted(range(len(keys)), key=lambda i: -energy[i])
    if not bipartite:  # the others are protected
        order = order[: 2 * gone]
    looking, found = order[0::2], order[1::2]
    best = {i: max(found, key=lambda j: cosine(keys[i], keys[j])) for i in looking}
    ranked = sorted(looking, key=lambda i: -cosine(keys[i], keys[best[i]])) if bipartite else looking
    return {i: best[i] for i in ranked[:gone]}


@defines("pitome", "mode", "margin")
@pytest.mark.parametrize("number", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("mode", ["protected", "bipartite", "released"])
def test_pitome_merges_what_its_paper_says(mode: str, number: int):
    depth, prefix, keys = 5, 2, seeded(2, 15, 6)
    method = vtc.PiToMe(mode=mode, margin=0.45)
    joined = method.join(block(keys, 4, number, depth, prefix))
    assert joined.stays is None
    bipartite = mode == "bipartite" or (mode == "released" and number < math.ceil(depth / 2))
    for row in range(2):
        margin = 0.9 - 0.9 * number / depth
        joins = pitome(keys[row, prefix:].tolist(), 4, margin, bipartite)
        expected = [*range(prefix), *(prefix + joins.get(i, i) for i in range(13))]
        assert joined.target[row].tolist() == expected


def page_rank(q: Tensor, k: Tensor, rows: list[int], scale: float, times: int, first: bool, span: Row) -> list[float]:
    """Importance of `rows`, of one picture's queries and keys [H, T, d]."""
    heads = []
    for h in range(len(q)):
        logits = [[float(q[h, i] @ k[h, j]) * scale for j in rows] for i in rows]
        share = [[math.exp(x) for x in line] for line in logits]
        share = [[x / sum(line) for x in line] for line in share]
        s = [math.sqrt(len(rows)) if first and n == 0 else 1.0 for n in range(len(rows))]
        s = [x / sum(s) for x in s]
        for _ in range(times):
            s = [sum(share[i][j] * s[i] for i in range(len(rows))) for j in range(len(rows))]
        heads.append(s)
    t = len(rows)
    variance = [sum((t * x - 1) ** 2 for x in s) / t for s in heads]
    heard = [s for s, v in zip(heads, variance, strict=True) if span[0] <= v <= span[1]] or heads
    return [math.sqrt(sum(s[n] ** 2 for s in heard) / len(heard)) for n in range(t)]


@defines("zerotprune", "similar", "iterations", "start", "variance")
@pytest.mark.parametrize("start", ["uniform", "cls"])
@pytest.mark.parametrize(("number", "times"), [(0, 6), (5, 3), (11, 1)])
@pytest.mark.parametrize("similar", [0.0, 0.2, 1.0])
def test_zerotprune_drops_what_its_paper_says(start: str, number: int, times: int, similar: float):
    t, depth, gone, scale = 12, 12, 4, 0.5
    q, k, keys = seeded(2, 3, t, 4), seeded(2, 3, t, 4, seed=1), seeded(2, t, 5, seed=2)
    method = vtc.ZeroTPrune(iterations=(6, 3, 1), similar=similar, start=start, variance=(0.02, 0.4))
    joined = method.join(block(keys, gone, number, depth, attention=lambda: (q, k, scale)))
    for row in range(2):
        rank = page_rank(q[row], k[row], list(range(t)), scale, times, start == "cls", [0.02, 0.4])
        patches = sorted(range(1, t), key=lambda i: rank[i])
        less, more = patches[: len(patches) // 2], patches[len(patches) // 2 :]
        like = {i: max(cosine(keys[row, i].tolist(), keys[row, j].tolist()) for j in more) for i in less}
        count = min(gone, round(similar * (t - 1)), len(less))
        lost = sorted(less, key=lambda i: -like[i])[:count]
        left = [i for i in range(t) if i not in lost]
        again = page_rank(q[row], k[row], left, scale, times, start == "cls", [0.02, 0.4])
        worst = sorted(left[1:], key=lambda i: again[left.index(i)])[: gone - count]
        dropped = {*lost, *worst}
        assert joined.target[row].tolist() == [-1 if i in dropped else i for i in range(t)]


@defines("zerotprune", "blocks")
def test_zerotprune_keeps_as_many_as_it_is_asked_to():
    counts = vtc.ZeroTPrune(keep=67).counts(196, 12)
    assert [counts[i] for i in (0, 2, 5, 8, 10)] == [186, 159, 120, 77, 67]  # the paper's DeiT-S
    assert counts[1] == counts[0]
    assert counts[-1] == 67
    assert vtc.ZeroTPrune(keep=0.5).counts(196, 12)[-1] == 98
    assert vtc.ZeroTPrune(keep=1.0).counts(196, 12) == (196,) * 12
    assert vtc.ZeroTPrune(keep=4, blocks=(1,)).counts(16, 3) == (16, 4, 4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stage": "input"}, r"stage='input' is not one of encoder\."),
        ({"blocks": ()}, r"zerotprune needs at least one block"),
        ({"blocks": (1.5,)}, r"blocks=1.5 is not a number in \[0, 1\)"),
        ({"similar": 2}, r"similar=2 is not a number in \[0, 1\]"),
        ({"iterations": (1, 2)}, r"iterations=\(1, 2\) of zerotprune are not three numbers"),
        ({"start": "random"}, r"start='random' is not one of uniform, cls"),
        ({"variance": (1, 0)}, r"variance=\(1, 0\) of zerotprune is no interval"),
    ],
)
def test_bad_options_of_zerotprune_are_refused(options: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        vtc.ZeroTPrune(**options)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: vtc.ToMe(stage="layer"), r"stage='layer' is not one of input, encoder\."),
        (lambda: vtc.ToMe(schedule="fast"), r"schedule='fast' is not one of constant, decreasing, "),
        (lambda: vtc.resolve("tome(proportional=1)"), r"proportional=1 of tome is neither True nor False"),
        (lambda: vtc.PiToMe(mode="both"), r"mode='both' is not one of protected, bipartite, released"),
        (lambda: vtc.VTCCLS(block=1.0), r"block=1.0 is not a number in \[0, 1\)"),
        (lambda: vtc.VTCCLS(block=-1), r"block=-1 is not a whole number of 0 or more"),
    ],
)
def test_bad_options_are_refused(make: Any, message: str):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    "text", ["tome(keep=0.5, schedule=geometric, stage=encoder)", "vtc-cls(block=12, stage=encoder)"]
)
def test_methods_at_the_stage_are_written_and_read(text: str):
    method = vtc.resolve(text)
    assert str(method) == text
    assert vtc.Method.from_dict(method.as_dict()) == method
