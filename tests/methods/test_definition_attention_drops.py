"""fastv, pyramiddrop and transprune in loops over Python numbers, from their papers; by hand, and in models."""

import math
from typing import Any

import pytest
import torch

import vtc
from tests.methods.definitions import defines
from tests.methods.eager import eager
from vtc import ops

N = 36


def seeded(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def best(score, k):
    return sorted(sorted(range(len(score)), key=lambda i: (-score[i], i))[:k])


# -- fastv and pyramiddrop: what the last token looks at ------------------------------------------------------------


@defines("fastv")
@defines("pyramiddrop")
@pytest.mark.parametrize("name", ["fastv", "pyramiddrop"])
@pytest.mark.parametrize("keep", [1, 9, 35, 36])
def test_the_last_tokens_attention_decides(name, keep):
    attention = seeded(N, seed=keep).softmax(dim=0)
    attention[7] = attention[20]  # the lower index of equals
    chosen = vtc.select(name, seeded(N, 8), keep=keep, last_attention=attention)
    assert chosen.anchor.tolist() == best(attention.tolist(), keep)


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "internvl"])
@pytest.mark.parametrize(("method", "heard"), [(vtc.FastV, 0), (vtc.PyramidDrop, 1)])
def test_which_layer_is_heard(family, method, heard):
    """FastV hears the layer that has run, PyramidDrop queries and keys of the one that comes next."""
    seen = eager(family)
    assert seen.kept(method(keep=5, layers=(1,))) == best(seen.rows(heard)[-1], 5)


# -- transprune: how a module transforms a token, and what the text looks at ----------------------------------------


def variation(modules, absolute, counted):
    """Sum over modules of |out| / |in| * exp(d) / (sum of exp(d) over the row), d = 1 - |cos| or 1 - cos."""
    total = [0.0] * len(counted)
    for before, after in modules:
        weights, sizes = [], []
        for x, y in zip(before, after, strict=True):
            cosine = sum(a * b for a, b in zip(x, y, strict=True)) / (math.hypot(*x) * math.hypot(*y))
            weights.append(math.exp(1 - (abs(cosine) if absolute else cosine)))
            sizes.append(math.hypot(*y) / math.hypot(*x))
        whole = sum(weight for weight, counts in zip(weights, counted, strict=True) if counts)
        total = [t + size * weight / whole for t, size, weight in zip(total, sizes, weights, strict=True)]
    return total


def scores(changes, rows, ttv_only):
    """Shares of the variation, and of the mean attention of the text."""
    heard = [sum(column) / len(rows) for column in zip(*rows, strict=True)]
    return [c / sum(changes) + (0 if ttv_only else h / sum(heard)) for c, h in zip(changes, heard, strict=True)]


@defines("transprune", "ttv_only")
@pytest.mark.parametrize("ttv_only", [True, False])
@pytest.mark.parametrize("keep", [1, 9, 36])
def test_transprune_adds_two_shares(ttv_only, keep):
    changes, rows = seeded(N, seed=1).abs(), seeded(5, N, seed=2).abs()
    method = vtc.TransPrune(keep=keep, ttv_only=ttv_only)
    heard: dict[str, Any] = {} if ttv_only else {"text_attention": rows}
    chosen = vtc.select(method, seeded(N, 8), transition=changes, **heard)
    assert chosen.anchor.tolist() == best(scores(changes.tolist(), rows.tolist(), ttv_only), keep)


@defines("transprune", "absolute")
@pytest.mark.parametrize("absolute", [True, False])
def test_transition_of_a_module(absolute):
    """Padding has no part in the sum."""
    before, after = seeded(2, 6, 8), seeded(2, 6, 8, seed=1)
    real = torch.tensor([[True] * 6, [False, False, True, True, True, True]])
    made = vtc.TransPrune(absolute=absolute).transition(*ops.transition(before, after), real)
    for row in range(2):
        pairs = [(before[row].double().tolist(), after[row].double().tolist())]
        assert made[row].tolist() == pytest.approx(variation(pairs, absolute, real[row].tolist()), rel=1e-5)


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "internvl"])
@pytest.mark.parametrize("absolute", [True, False])
@pytest.mark.parametrize("ttv_only", [True, False])
def test_what_transprune_chooses_in_a_model(family, absolute, ttv_only):
    """Both modules of layer 0, between its norms and its residual sums, and the attention of layer 1, which is next."""
    seen = eager(family)
    modules = [tuple(x.double().tolist() for x in pair) for pair in seen.modules[0]]
    changes = variation(modules, absolute, [True] * len(seen.states[0]))
    score = scores([changes[i] for i in seen.visual], seen.rows(1), ttv_only)
    method = vtc.TransPrune(keep=6, layers=(1,), absolute=absolute, ttv_only=ttv_only)
    assert seen.kept(method) == best(score, 6)


def test_transprune_adds_up_from_the_first_listed_layer_to_the_last():
    """After layers 7, 9 and 12 of 32, counted from 1; the layers in between are heard, too."""
    method = vtc.TransPrune()
    assert (method.steps(32), list(method.listens(32))) == ((7, 9, 12), [6, 7, 8, 9, 10, 11])
