"""Methods with a score per token and head as their papers define them: H2O, Scissorhands, VL-Cache, K-norm, KeyDiff."""

from __future__ import annotations

import math

import pytest
import torch

import vtc
from tests.methods.definitions import defines
from tests.methods.kv import (
    DEPTH,
    GROUPS,
    assert_holds,
    best,
    count_of,
    expected,
    held,
    is_text,
    plain,
    received,
    together,
    turned,
    with_forced,
)
from tests.methods.plain import cosine, shares


def heavy_hitters(recent, corrected, per_head, of_pictures):
    """H2O, algorithm 1, for each head: attention summed over all queries; a share of the budget is for the latest, of a
    picture's own only where that is asked for."""

    def rule(one, layer, slots, count):
        scores = together(per_head, received(one, layer, range(one.length), slots))
        if corrected:  # the mean over queries at or behind the token
            scores = [{s: x / (one.length - s) for s, x in score.items()} for score in scores]
        late = int(recent * count) if is_text(one, slots) or of_pictures else 0
        return one.entries(layer, [with_forced(score, slots, count, 0, late) for score in scores])

    return rule


@defines("h2o", "recent", "corrected", "per_head")
@pytest.mark.parametrize(("scope", "keep"), [("visual", 7), ("visual", 0.3), ("all", 18), ("apart", 6)])
@pytest.mark.parametrize(
    ("options", "share"),
    [({}, 0.5), ({"corrected": True}, 0.5), ({"recent": 0.0}, 0.0), ({"recent": 0.25, "corrected": True}, 0.25)],
    ids=str,
)
@pytest.mark.parametrize("per_head", [True, False])
def test_h2o(per_head, options, share, scope, keep):
    method = vtc.H2O(keep=keep, scope=scope, per_head=per_head, **options)
    rule = heavy_hitters(share, options.get("corrected", False), per_head, scope == "visual" and "recent" in options)
    assert_holds(method, expected(rule, scope, keep))


def voted_important(history, recent, per_head):
    """Scissorhands, section 4, for each head: queries vote for what gets more than 1/t from them."""

    def rule(one, layer, slots, count):
        def votes(g):
            seen = range(max(0, one.length - history), one.length)
            return {s: float(sum(one.attention[layer][g][q][s] > 1 / (q + 1) for q in seen)) for s in slots}

        scores, late = [votes(g) for g in range(GROUPS)], recent if is_text(one, slots) else 0
        return one.entries(layer, [with_forced(score, slots, count, 0, late) for score in scores])

    return rule


@defines("scissorhands", "history", "recent", "per_head")
@pytest.mark.parametrize(("scope", "keep"), [("visual", 7), ("all", 18), ("apart", 6)])
@pytest.mark.parametrize(("history", "recent"), [(9, 10), (400, 3)])
def test_scissorhands(history, recent, scope, keep):
    """One vote for all heads is in test_definition_cache.py."""
    method = vtc.Scissorhands(keep=keep, scope=scope, history=history, recent=recent, per_head=True)
    assert_holds(method, expected(voted_important(history, recent, True), scope, keep))


def density(one, layer, p, per_head):
    """VL-Cache, section 4.1: the share of the text's attention that is at least `p` of its row's largest."""
    dense = there = 0
    for rows in one.attention[layer] if per_head else [mean_head(one, layer)]:
        for query in one.text():
            row = rows[query][: query + 1]
            dense += sum(x >= p * max(row) for x in row)
            there += len(row)
    return dense / there


def mean_head(one, layer):
    heads = one.attention[layer]
    return [[sum(x) / GROUPS for x in zip(*rows, strict=True)] for rows in zip(*heads, strict=True)]


def vl_budgets(one, p, scope, keep, per_head, layered):
    if not layered:
        return None
    size = 36 if scope == "visual" else one.length
    densities = [density(one, layer, p, per_head) for layer in range(DEPTH)]
    exact = [count_of(keep, range(size)) * DEPTH * d / sum(densities) for d in densities]
    assert all(max(1, round(0.01 * size)) <= x <= size for x in exact)
    return dict(enumerate(shares(count_of(keep, range(size)) * DEPTH, [round(d * 1e9) for d in densities])))


def post_vision(recent, per_head, sinks):
    """VL-Cache, section 4.2: attention summed over the text behind the picture; the latest stay."""

    def rule(one, layer, slots, count):
        scores = together(per_head, received(one, layer, one.text(), slots))
        late, first = int(recent * count) if is_text(one, slots) else 0, sinks if slots[0] == 0 else 0
        return one.entries(layer, [with_forced(score, slots, count, first, late) for score in scores])

    return rule


@defines("vl-cache", "p", "layered", "recent", "per_head", "sinks")
@pytest.mark.parametrize(("scope", "keep"), [("visual", 9), ("visual", 0.2), ("all", 24), ("all", 0.5)])
@pytest.mark.parametrize(
    "options",
    [
        {"p": 0.1},
        {"p": 0.3, "recent": 0.3},
        {"p": 0.6, "sinks": 0},
        {"p": 0.6, "layered": False},
        {"p": 0.3, "per_head": False, "sinks": 1},
    ],
    ids=str,
)
def test_vl_cache(options, scope, keep):
    p, layered, per_head = options["p"], options.get("layered", True), options.get("per_head", True)
    budgets = vl_budgets(plain(), p, scope, keep, per_head, layered)
    rule = post_vision(options.get("recent", 0.1), per_head, options.get("sinks", 4))
    assert_holds(vtc.VLCache(keep=keep, scope=scope, **options), expected(rule, scope, keep, budgets=budgets))


def test_layers_of_vl_cache_differ():
    """What is tested above is not the same budget in all layers, and those it is make the same sum."""
    counts = [len(heads[0][0]) for heads in held(vtc.VLCache(keep=9, p=0.6))]
    assert len(set(counts)) > 1
    assert sum(counts) == DEPTH * (plain().length - 72 + 18)


def small_keys(per_head, sinks):
    """K-norm, section 3: the smallest L2 norms stay."""

    def rule(one, layer, slots, count):
        def score(g):
            return {s: -math.sqrt(sum(x * x for x in one.keys[layer][g][s])) for s in slots}

        first = sinks if slots[0] == 0 else 0
        return one.entries(layer, [with_forced(own, slots, count, first, 0) for own in together(per_head, score)])

    return rule


@defines("knorm", "per_head", "sinks")
@pytest.mark.parametrize(("scope", "keep"), [("visual", 7), ("all", 30), ("apart", 6)])
@pytest.mark.parametrize(("per_head", "sinks"), [(True, 4), (True, 0), (False, 2)])
def test_knorm(per_head, sinks, scope, keep):
    method = vtc.KNorm(keep=keep, scope=scope, per_head=per_head, sinks=sinks)
    assert_holds(method, expected(small_keys(per_head, sinks), scope, keep))


def unlike_the_mean(rotated, per_head, sinks):
    """KeyDiff, section 3: the smallest cosines with the mean of the keys' directions stay."""

    def rule(one, layer, slots, count):
        def score(g):
            keys = {s: one.keys[layer][g][s] if rotated else turned(one.keys[layer][g][s], -s) for s in slots}
            sizes = {s: math.sqrt(sum(x * x for x in key)) for s, key in keys.items()}
            directions = [[x / sizes[s] for x in key] for s, key in keys.items()]
            anchor = [sum(column) / len(keys) for column in zip(*directions, strict=True)]
            return {s: -cosine(key, anchor) for s, key in keys.items()}

        first = sinks if slots[0] == 0 else 0
        return one.entries(layer, [with_forced(own, slots, count, first, 0) for own in together(per_head, score)])

    return rule


@defines("keydiff", "rotated", "per_head", "sinks")
@pytest.mark.parametrize(("scope", "keep"), [("visual", 7), ("all", 30), ("apart", 6)])
@pytest.mark.parametrize(("rotated", "per_head", "sinks"), [(True, True, 4), (False, True, 0), (True, False, 2)])
def test_keydiff(rotated, per_head, sinks, scope, keep):
    method = vtc.KeyDiff(keep=keep, scope=scope, rotated=rotated, per_head=per_head, sinks=sinks)
    assert_holds(method, expected(unlike_the_mean(rotated, per_head, sinks), scope, keep))


def test_bare_tensors_have_no_heads():
    keys = torch.randn(2, 12, 4, generator=torch.Generator().manual_seed(0))
    with pytest.raises(
        ValueError, match=r"^knorm chooses for each KV head of a cache, and one Selection has no heads: "
    ):
        vtc.select("knorm", torch.zeros(12, 3), keep=5, cached_keys=keys)
    kept = vtc.select("knorm(per_head=False)", torch.zeros(12, 3), keep=5, cached_keys=keys).anchor.tolist()
    norms = {i: -sum(math.hypot(*keys[g, i].tolist()) for g in range(2)) for i in range(12)}
    assert kept == sorted(best(norms, 5))
