"""SnapKV, PyramidKV and Ada-KV as their papers define them, in loops over the attention of a plain model."""

from __future__ import annotations

import math
import re

import pytest

import vtc
from tests.methods.definitions import defines
from tests.methods.kv import (
    GROUPS,
    Plain,
    assert_holds,
    best,
    expected,
    held,
    is_text,
    plain,
    together,
    with_forced,
)


def observed(one: Plain, layer, slots, window, kernel, pool, weighted, per_head):
    """SnapKV, section 4: scores of the slots before the window, smoothed, per head; how many slots are the window's."""
    queries = one.text() if window == "text" else list(range(one.length - window, one.length))
    states = [one.states[layer][q] for q in queries]
    mean = [sum(column) / len(states) for column in zip(*states, strict=True)]
    weight = dict.fromkeys(queries, 1.0)
    if weighted:  # after ActQKV: by the distance from the mean state
        weight = {
            q: math.sqrt(sum((a - b) ** 2 for a, b in zip(s, mean, strict=True)))
            for q, s in zip(queries, states, strict=True)
        }
    text = is_text(one, slots)
    late = min(len(queries), len(slots)) if text else 0
    before = slots[: len(slots) - late]

    def score(g):
        return {s: sum(weight[q] * one.attention[layer][g][q][s] for q in queries) for s in before}

    smooth = []
    for own in together(per_head, score):
        numbers = [own[s] for s in before]
        pooled = []
        for i in range(len(numbers)):
            around = [numbers[j] if 0 <= j < len(numbers) else 0.0 for j in range(i - kernel // 2, i + kernel // 2 + 1)]
            pooled.append(max(around) if pool == "max" else sum(around) / kernel)
        smooth.append(dict(zip(before, pooled, strict=True)))
    return smooth, late


def snapkv(window=32, kernel=5, pool="avg", weighted=False, per_head=True, sinks=4):
    def rule(one, layer, slots, count):
        scores, late = observed(one, layer, slots, window, kernel, pool, weighted, per_head)
        first = sinks if slots[0] == 0 else 0
        last = dict.fromkeys(slots[len(slots) - late :], -math.inf)
        return one.entries(layer, [with_forced(score | last, slots, count, first, late) for score in scores])

    return rule


SETTINGS = [
    {},
    {"window": 3},
    {"window": "text", "kernel": 1},
    {"window": 6, "kernel": 7, "pool": "max"},
    {"window": "text", "weighted": True},
    {"window": 9, "weighted": True, "sinks": 0, "kernel": 3},
    {"window": 4, "per_head": False},
]


@defines("snapkv", "window", "kernel", "pool", "weighted", "per_head", "sinks")
@pytest.mark.parametrize(
    ("scope", "keep"), [("visual", 7), ("visual", 0.4), ("all", 7), ("all", 30), ("all", 0.6), ("apart", 5)]
)
@pytest.mark.parametrize("options", SETTINGS, ids=str)
def test_snapkv(options, scope, keep):
    assert_holds(vtc.SnapKV(keep=keep, scope=scope, **options), expected(snapkv(**options), scope, keep))


@pytest.mark.parametrize(
    ("scope", "options", "keep", "first", "budgets"),
    [
        # the mean of 9 falls from 2 * 9 - 9 / beta to 9 / beta
        ("visual", {"beta": 3}, 9, 0, [15, 9, 3]),
        ("visual", {"beta": 1}, 9, 0, [9, 9, 9]),
        ("visual", {"beta": 3}, 9, 1, [36, 15, 3]),
        # 17.55, 9 and 0.45: the last is made 1, the others give it in their proportions
        ("visual", {}, 9, 0, [17, 9, 1]),
        # 35.1, 18 and 0.9
        ("visual", {}, 18, 0, [35, 18, 1]),
        # twice the mean is more than there is
        ("visual", {}, 19, 0, [19, 19, 19]),
        # 80 in all; the window of 6 on top of a mean of 14
        ("all", {"beta": 2, "window": 6}, 20, 0, [27, 20, 13]),
        # 70.3, 37 and 3.7 on top of it
        ("all", {"beta": 10, "window": 6}, 43, 0, [76, 43, 10]),
        # 74.1 were more than the 74 before the window
        ("all", {"beta": 10, "window": 6}, 45, 0, [80, 45, 10]),
    ],
)
def test_pyramid_budgets(scope, options, keep, first, budgets):
    method = vtc.PyramidKV(keep=keep, scope=scope, first=first, **options)
    text = plain(1).length - 36 if scope == "visual" else 0
    assert [len(heads[0][0]) - text for heads in held(method, 1 if scope == "visual" else 2)] == budgets


@defines("pyramidkv", "beta", "window", "kernel", "pool", "weighted", "per_head", "sinks")
@pytest.mark.parametrize("options", SETTINGS, ids=str)
def test_pyramidkv(options):
    """In each layer it is SnapKV, with the budget of the layer."""
    method = vtc.PyramidKV(keep=9, beta=3, **options)
    assert_holds(method, expected(snapkv(**options), "visual", 9, budgets={0: 15, 1: 9, 2: 3}))


def adakv(floor, window=32, kernel=5, pool="avg", weighted=False, sinks=4):
    """Ada-KV, algorithm 1: the best of all heads together are counted; a head's budget is `floor` of the even one and
    for the rest what it has of them."""

    def rule(one, layer, slots, count):
        scores, late = observed(one, layer, slots, window, kernel, pool, weighted, True)
        first = min(sinks, count) if slots[0] == 0 else 0
        late = min(late, count - first)
        free = count - first - late
        forced = {*slots[:first], *slots[len(slots) - late :]}
        open_ = {(g, s): x for g, score in enumerate(scores) for s, x in score.items() if s not in forced}
        marked = sorted(open_, key=lambda at: (-open_[at], at))[: GROUPS * free]
        exact = [floor * free + (1 - floor) * sum(head == g for head, _ in marked) for g in range(GROUPS)]
        counts = [math.floor(x + 1e-9) for x in exact]
        for g in sorted(range(GROUPS), key=lambda g: round(counts[g] - exact[g], 9))[: GROUPS * free - sum(counts)]:
            counts[g] += 1
        if 0 in counts and not forced:  # no head is left empty
            counts[counts.index(max(counts))] -= 1
            counts[counts.index(0)] += 1
        kept = []
        for g, score in enumerate(scores):
            own = best({s: x for s, x in score.items() if s not in forced}, counts[g])
            kept.append(sorted([*forced, *own]))
        return one.entries(layer, kept)

    return rule


@defines("adakv", "floor", "window", "kernel", "pool", "weighted", "sinks", "per_head")
@pytest.mark.parametrize(("scope", "keep"), [("visual", 7), ("all", 30), ("all", 0.6), ("apart", 6)])
@pytest.mark.parametrize("floor", [0.0, 0.2, 0.5, 1.0])
@pytest.mark.parametrize(
    "options",
    [{"window": 3}, {"window": "text", "kernel": 1, "weighted": True}, {"window": 7, "pool": "max", "sinks": 0}],
    ids=str,
)
def test_adakv(options, floor, scope, keep):
    method = vtc.AdaKV(keep=keep, scope=scope, floor=floor, per_head=True, **options)
    assert_holds(method, expected(adakv(floor, **options), scope, keep))


def test_heads_of_adakv_differ():
    """What is tested above is not always the even split."""
    counts = {len(keys) for heads in held(vtc.AdaKV(keep=9, floor=0.0, window="text")) for keys, _ in heads}
    assert len(counts) > 1


def test_no_head_is_left_empty():
    for heads in held(vtc.AdaKV(keep=1, floor=0.0, window="text")):
        assert all(len(keys) == plain().length - 72 + 2 for keys, _ in heads)  # one of each picture


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"kernel": 4}, "kernel=4 is even: a token and its neighbours on both sides are an odd number."),
        ({"pool": "mean"}, "pool='mean' is not one of avg, max."),
        ({"window": 0}, 'window=0 is not a whole number of 1 or more: it is a number of queries, or "text".'),
        ({"sinks": -1}, "sinks=-1 is not a whole number of 0 or more: it is a number of tokens."),
    ],
)
@pytest.mark.parametrize("cls", [vtc.SnapKV, vtc.PyramidKV, vtc.AdaKV])
def test_refused(cls, options, sentence):
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        cls(**options)


def test_adakv_needs_heads():
    with pytest.raises(ValueError, match=r"^per_head=False of adakv leaves no heads to share out among: use snapkv\.$"):
        vtc.AdaKV(per_head=False)
