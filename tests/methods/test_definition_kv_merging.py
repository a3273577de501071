"""LOOK-M and D2O as their papers define them, in loops over the attention, the keys and the values of a plain model."""

from __future__ import annotations

import math
from typing import Any

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


def compared(one, layer, kept, slots, rotated, per_head):
    """For each head: token that goes -> (the kept one whose key is most similar, how similar)."""
    keys = [
        {s: one.keys[layer][g][s] if rotated else turned(one.keys[layer][g][s], -s) for s in slots}
        for g in range(GROUPS)
    ]
    partners = []
    for g in range(GROUPS):
        found = {}
        for i in slots:
            if i in kept[g]:
                continue
            heads = [g] if per_head else range(GROUPS)
            alike = {j: sum(cosine(keys[h][i], keys[h][j]) for h in heads) / len(heads) for j in kept[g]}
            partner = max(alike, key=lambda j: alike[j])
            found[i] = (partner, alike[partner])
        partners.append(found)
    return partners


def made_of(one, layer, kept, weights, rotated, of_keys=None):
    """What each head holds: in each slot the weighted sum of the keys and of the values of `weights[head][slot]`, keys
    turned back to position 0 before and to the slot's after; `of_keys` where keys have weights of their own."""
    heads = []
    for g in range(GROUPS):
        own = {}
        for j in kept[g]:
            key, value = [0.0] * 8, [0.0] * 8
            for i, w in weights[g][j].items():
                k, v = one.entry(layer, g, i)
                k, of_key = k if rotated else turned(k, -i), w if of_keys is None else of_keys[g][j][i]
                key = [a + of_key * b for a, b in zip(key, k, strict=True)]
                value = [a + w * b for a, b in zip(value, v, strict=True)]
            own[j] = (key if rotated else turned(key, j), value)
        heads.append(own)
    return heads


def lookm(scope, how="pivot", recent=0.5, rotated=False, per_head=True, sinks=4):
    """LOOK-M, section 3: text before all that is visual, and three ways to merge what goes."""

    def rule(one, layer, slots, count):
        visual = [slot for picture in one.pictures for slot in picture]
        scores = together(per_head, received(one, layer, range(one.length), slots))
        if scope == "all":
            scores = [{s: x - 1000 * (s in visual) for s, x in score.items()} for score in scores]
        late, first = int(recent * count) if is_text(one, slots) else 0, sinks if slots[0] == 0 else 0
        kept = [with_forced(score, slots, count, first, late) for score in scores]
        partners, weights = compared(one, layer, kept, slots, rotated, per_head), []
        for g in range(GROUPS):
            own = {}
            for j in kept[g]:
                joins = {i: alike for i, (partner, alike) in partners[g].items() if partner == j}
                of = 1 + len(joins)
                if how == "average":
                    own[j] = {j: 1 / of, **dict.fromkeys(joins, 1 / of)}
                elif how == "pivot":  # each that joins is the mean of itself and the kept one
                    own[j] = {j: (1 + len(joins) / 2) / of, **dict.fromkeys(joins, 0.5 / of)}
                else:
                    own[j] = {j: 1 / of, **{i: alike / of for i, alike in joins.items()}}
            weights.append(own)
        return made_of(one, layer, kept, weights, rotated)

    return rule


@defines("lookm", "how", "recent", "rotated", "per_head", "sinks")
@pytest.mark.parametrize(("scope", "keep"), [("visual", 8), ("all", 16), ("apart", 6)])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"how": "average", "sinks": 0},
        {"how": "weighted", "recent": 0.2},
        {"rotated": True, "how": "average"},
        {"per_head": False, "how": "weighted"},
        {"per_head": False, "rotated": True},
    ],
    ids=str,
)
def test_lookm(options, scope, keep):
    assert_holds(vtc.LookM(keep=keep, scope=scope, **options), expected(lookm(scope, **options), scope, keep))


def test_lookm_keeps_all_text_that_fits():
    """Of 80 tokens eight are text: a budget of 20 holds them and twelve of the pictures."""
    text = [slot for slot in range(plain().length) if not any(slot in picture for picture in plain().pictures)]
    for layer, heads in enumerate(held(vtc.LookM(keep=20, scope="all", rotated=True, recent=0.0))):
        for g, (keys, _) in enumerate(heads):
            whole = torch.tensor(plain().keys[layer][g])
            nearest = torch.cdist(keys, whole).argmin(dim=1).tolist()
            assert sorted({slot for slot in nearest if slot in text}) == text


def variance(one, layer, slots):
    """D2O's f: attention that tokens receive, scaled over heads to 0..1; variance over tokens, mean over heads."""
    scores = [received(one, layer, range(one.length), slots)(g) for g in range(GROUPS)]
    total = 0.0
    for g in range(GROUPS):
        scaled = []
        for s in slots:
            numbers = [score[s] for score in scores]
            scaled.append((scores[g][s] - min(numbers)) / (max(numbers) - min(numbers)))
        mean = sum(scaled) / len(scaled)
        total += sum((x - mean) ** 2 for x in scaled) / len(scaled) / GROUPS
    return total


def d2o_budgets(one, slots, keep, layers):
    """Section 3.2: in proportion to the softmax of -f; together `keep` in each layer."""
    weights = [math.exp(-variance(one, layer, slots)) for layer in layers]
    counts = shares(count_of(keep, slots) * len(layers), [round(weight * 1e9) for weight in weights])
    return dict(zip(layers, counts, strict=True))


def d2o(recent=0.5, weights="exp", rotated=False, per_head=True, sinks=4, budgets=None):
    """Section 3.3: heavy hitters and the latest stay; what is at least as similar as the mean joins."""

    def rule(one, layer, slots, count):
        if budgets is not None:
            count = budgets[slots[0]][layer]
        scores = together(per_head, received(one, layer, range(one.length), slots))
        late, first = int(recent * count) if is_text(one, slots) else 0, sinks if slots[0] == 0 else 0
        kept = [with_forced(score, slots, count, first, late) for score in scores]
        partners, made = compared(one, layer, kept, slots, rotated, per_head), []
        for g in range(GROUPS):
            alikes = [alike for _, alike in partners[g].values()]
            threshold = sum(alikes) / max(1, len(alikes))
            own = {}
            for j in kept[g]:
                joins = {i: a for i, (partner, a) in partners[g].items() if partner == j and a >= threshold - 1e-7}
                if weights == "exp":
                    all_of_it = math.e + sum(math.exp(a) for a in joins.values())
                    own[j] = {j: math.e / all_of_it, **{i: math.exp(a) / all_of_it for i, a in joins.items()}}
                else:
                    own[j] = {j: 1 / (1 + len(joins)), **{i: a / (1 + len(joins)) for i, a in joins.items()}}
            made.append(own)
        return made_of(one, layer, kept, made, rotated)

    return rule


@defines("d2o", "recent", "layered", "spared", "weights", "rotated", "per_head", "sinks")
@pytest.mark.parametrize(("scope", "keep"), [("visual", 8), ("all", 40)])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"weights": "released", "rotated": True},
        {"recent": 0.2, "sinks": 0},
        {"layered": False, "weights": "released"},
        {"per_head": False, "rotated": True},
    ],
    ids=str,
)
def test_d2o(options, scope, keep):
    one = plain()
    chosen_among = one.pictures if scope == "visual" else [list(range(one.length))]
    budgets = None
    if options.get("layered", True) and options.get("per_head", True):  # one head for all has no variance among heads
        budgets = {slots[0]: d2o_budgets(one, slots, keep, range(DEPTH)) for slots in chosen_among}
    rule = d2o(**{name: value for name, value in options.items() if name != "layered"}, budgets=budgets)
    assert_holds(vtc.D2O(keep=keep, scope=scope, **options), expected(rule, scope, keep))


def test_d2o_spares_the_first_two_layers_and_the_last():
    """Of three layers all: nothing goes. From layer 1 of a model of three on: nothing, either."""
    for method in (vtc.D2O(keep=4, spared=True), vtc.D2O(keep=4, spared=True, first=1)):
        assert all(len(keys) == plain().length for heads in held(method) for keys, _ in heads)


class Tokens:
    """36 tokens of a layer of six; in layer 2 one head receives more of all, in others each of half of them."""

    depth, begins, budget, total, features = 6, False, None, 36, torch.empty(36, 0)

    def __init__(self, layer):
        self.layer = layer

    def signal(self, name):
        assert name == "attention_record"
        spread = torch.linspace(0, 1, 36)
        return torch.stack([spread, spread + 1 if self.layer == 2 else spread.flip(0)])


@pytest.mark.parametrize(
    ("options", "budgets"),
    [
        # f is 0 in layer 2, 1/4 elsewhere: of the sum of 1 and five times exp(-1/4), layer 2 has 0.2043 of 48 tokens
        ({}, [8, 8, 10, 8, 7, 7]),
        ({"spared": True}, [36, 36, 10, 7, 7, 36]),  # 0.391 of 24, and 0.3045 of them
        ({"spared": True, "layered": False}, [36, 36, 8, 8, 8, 36]),
    ],
)
def test_layers_of_d2o(options, budgets):
    layers: Any = [Tokens(i) for i in range(6)]
    assert vtc.D2O(keep=8, **options).layer_budgets(layers) == budgets


def ems(scope, window=32, joining=1.0, threshold=0.6, rotated=False, per_head=True, sinks=4):
    """EMS as vtc reads it: the larger of what all queries and what the last ones give; the next best join."""

    def rule(one, layer, slots, count):
        last = range(one.length - window, one.length)
        spread = [
            {s: x / (one.length - s) for s, x in own.items()}
            for own in together(per_head, received(one, layer, range(one.length), slots))
        ]
        local = together(per_head, received(one, layer, last, slots))
        scores = []
        for g in range(GROUPS):
            scale = sum(spread[g].values()) / sum(local[g].values())
            scores.append({s: max(spread[g][s], local[g][s] * scale) for s in slots})
        late, first = window if is_text(one, slots) else 0, sinks if slots[0] == 0 else 0
        kept = [with_forced(score, slots, count, first, late) for score in scores]
        keys = [
            {s: one.keys[layer][g][s] if rotated else turned(one.keys[layer][g][s], -s) for s in slots}
            for g in range(GROUPS)
        ]
        values = one.values[layer]

        def alike(g, i, j):
            return max(0, cosine(keys[g][i], keys[g][j])) * max(0, cosine(values[g][i], values[g][j]))

        weights, of_keys = [], []
        for g in range(GROUPS):
            heads = [g] if per_head else range(GROUPS)
            left = {s: scores[g][s] for s in slots if s not in kept[g]}
            members = {j: [j] for j in kept[g]}
            for i in best(left, int(joining * count)):
                product = {j: sum(alike(h, i, j) for h in heads) / len(heads) for j in kept[g]}
                centre = max(product, key=lambda j: product[j])
                if product[centre] >= threshold:
                    members[centre].append(i)
            shares_ = {j: {i: scores[g][i] / sum(scores[g][m] for m in own) for i in own} for j, own in members.items()}
            weights.append(shares_)
            of_keys.append({j: directed([keys[h] for h in heads], j, own) for j, own in shares_.items()})
        return made_of(one, layer, kept, weights, rotated, of_keys)

    return rule


def directed(heads, centre, share):
    """Weights of keys whose sum is the mean direction, as long as the centre; for all heads alike their mean."""
    total = dict.fromkeys(share, 0.0)
    for keys in heads:
        size = {i: math.sqrt(sum(x * x for x in keys[i])) for i in share}
        mean = [sum(share[i] * keys[i][c] / size[i] for i in share) for c in range(8)]
        long = math.sqrt(sum(x * x for x in mean))
        for i in share:
            total[i] += share[i] / size[i] * size[centre] / long / len(heads)
    return total


@defines("ems", "window", "joining", "threshold", "rotated", "per_head", "sinks")
@pytest.mark.parametrize(("scope", "keep"), [("visual", 8), ("all", 28), ("apart", 6)])
@pytest.mark.parametrize(
    "options",
    [
        {"threshold": 0.3},
        {"window": 5, "threshold": 0.1, "rotated": True},
        {"window": 5, "threshold": 0.0, "joining": 2.5, "sinks": 0},
        {"window": 9, "threshold": 0.2, "per_head": False},
        {"window": 9, "joining": 0.0},
    ],
    ids=str,
)
def test_ems(options, scope, keep):
    assert_holds(vtc.EMS(keep=keep, scope=scope, **options), expected(ems(scope, **options), scope, keep))


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: vtc.LookM(how="mean"), r"how='mean' is not one of pivot, average, weighted\."),
        (lambda: vtc.LookM(recent=1.0), r"recent=1\.0 is not a number in \[0, 1\): it is a share of the kept tokens\."),
        (lambda: vtc.D2O(weights="log"), r"weights='log' is not one of exp, released\."),
    ],
)
def test_refused(make, sentence):
    with pytest.raises(ValueError, match=f"^{sentence}$"):
        make()
