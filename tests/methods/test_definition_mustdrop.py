"""mustdrop in loops over Python numbers, from arXiv 2411.10803, section 3, and facts of the released code."""

import itertools
import math
from typing import Any

import pytest
import torch

import vtc
from tests.methods.definitions import defines
from tests.methods.eager import eager

N = 36


def seeded(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def filters(**options) -> Any:
    """MustDrop's second stage."""
    return vtc.MustDrop(**options).parts()[1]


def best(score, k):
    return sorted(sorted(range(len(score)), key=lambda i: (-score[i], i))[:k])


def cosine(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True)) / math.hypot(*a) / math.hypot(*b)


def windows(x, grid, similar, least):
    """Groups of tokens by their middle one: whole 3 x 3 windows whose 36 pairs are similar, the most similar first."""
    (t, h, w), alike = grid, {}
    for f, top, left in itertools.product(range(t), range(0, h - 2, 3), range(0, w - 2, 3)):
        members = [f * h * w + (top + i) * w + left + j for i in range(3) for j in range(3)]
        pairs = list(itertools.combinations(members, 2))
        alike[tuple(members)] = sum(cosine(x[a], x[b]) for a, b in pairs) / len(pairs)
    groups = {i: [i] for i in range(len(x))}
    for members in sorted(alike, key=lambda members: (-alike[members], members)):
        if alike[members] >= similar and len(groups) - 8 >= least:
            for i in members:
                del groups[i]
            groups[members[4]] = list(members)
    return [groups[i] for i in sorted(groups)]


@defines("mustdrop", "similar", "exact")
@pytest.mark.parametrize("similar", [-1.0, 0.3, 0.8, 0.999])
@pytest.mark.parametrize("grid", [(1, 6, 7), (2, 3, 6), (1, 2, 9)])
@pytest.mark.parametrize(("exact", "keep"), [(False, 30), (True, 1), (True, 20), (True, 36)])
def test_windows_of_similar_tokens_become_their_mean(similar, grid, exact, keep):
    n = math.prod(grid)
    x = seeded(n, 5) * 0.4 + seeded(n, 1, seed=1).sigmoid() * torch.ones(5)
    groups = windows(x.tolist(), grid, similar, keep if exact else 1)
    chosen = vtc.select(vtc.MustDrop(keep=keep, exact=exact, similar=similar), x, grid=grid)
    assert [[i for i in range(n) if chosen.source[i] == m] for m in range(len(groups))] == groups
    assert chosen.anchor.tolist() == [group[len(group) // 2] for group in groups]
    torch.testing.assert_close(chosen.apply(x), torch.stack([x[group].mean(dim=0) for group in groups]))


def filtered(rows, cls, share, peak, key_share):
    """A token goes if all text together ignores it, and every single text token does; the key set stays."""
    heard = [sum(column) for column in zip(*rows, strict=True)]
    key_set = best(cls, math.ceil(key_share * len(cls)))
    kept = [
        i
        for i in range(len(cls))
        if i in key_set or heard[i] >= share * sum(heard) or max(row[i] for row in rows) >= peak
    ]
    return kept or best(heard, 1)


@defines("mustdrop", "share", "peak", "key_share")
@pytest.mark.parametrize(
    ("share", "peak", "key_share"),
    [(0.001, 0.001, 0.08), (0.028, 0.05, 0.08), (0.028, 0.03, 0.0), (0.03, 0.2, 0.3), (1, 1, 0), (1, 1, 1), (0, 0, 0)],
)
def test_a_token_goes_if_the_text_ignores_it_as_a_whole_and_one_by_one(share, peak, key_share):
    rows, cls = seeded(5, N, seed=2).softmax(dim=1), seeded(N, seed=1).abs()
    method = filters(share=share, peak=peak, key_share=key_share)
    chosen = vtc.select(method, seeded(N, 4), text_attention=rows, cls_attention=cls)
    assert chosen.anchor.tolist() == filtered(rows.tolist(), cls.tolist(), share, peak, key_share)


@defines("mustdrop", "exact", "key_share")
@pytest.mark.parametrize("key_share", [0.0, 0.08, 0.5])
@pytest.mark.parametrize("keep", [1, 9, 36])
def test_exact_counts_take_the_key_set_first(key_share, keep):
    rows, cls = seeded(5, N, seed=2).softmax(dim=1), seeded(N, seed=1).abs().tolist()
    heard, key_set = rows.sum(dim=0).tolist(), best(cls, math.ceil(key_share * N))
    order = sorted(range(N), key=lambda i: (i not in key_set, -heard[i], i))
    method = filters(keep=keep, exact=True, key_share=key_share)
    chosen = vtc.select(method, seeded(N, 4), text_attention=rows, cls_attention=torch.tensor(cls))
    assert chosen.anchor.tolist() == sorted(order[:keep])


@defines("mustdrop", "average", "exact")
@pytest.mark.parametrize("keep", [192, 300])
def test_the_average_is_over_all_layers(keep):
    method = filters(keep=keep, exact=True, average=True)
    steps, counts = method.steps(32), method.counts(576, 32)
    assert steps == (3, 7, 11, 15)
    seen = [576 if layer < 3 else counts[max(i for i in range(4) if steps[i] <= layer)] for layer in range(32)]
    assert abs(sum(seen) / 32 - keep) <= 0.5
    assert filters(keep=keep, exact=True).counts(576, 32)[-1] == keep


def test_the_cache_is_cut_from_the_listening_layer_on():
    """The filter before layer 3 has listened to layer 2, whose cache is the first that is cut."""
    cut: Any = vtc.MustDrop().parts()[2]
    assert [cut.first_layer(depth) for depth in (32, 28, 3)] == [2, 2, 0]


def test_what_is_chosen_and_cached_in_a_model():
    """The text's eager attention in layer 0, the CLS token's in the tower's last; caches hold what is left of it."""
    seen = eager()
    rows = seen.rows(0)
    with torch.no_grad():
        tower = seen.model.model.vision_tower(seen.inputs["pixel_values"], output_attentions=True).attentions
    cls = tower[-1][0].mean(dim=0)[0, 1:].tolist()
    share, peak = 0.03, 0.05
    kept = filtered(rows, cls, share, peak, 0.08)
    assert 3 < len(kept) < N
    method = vtc.MustDrop(share=share, peak=peak, similar=1.0)
    assert seen.kept(method) == kept
    with vtc.wrapped(seen.model, method) as model, torch.no_grad():
        cache = model(**seen.inputs, use_cache=True).past_key_values
    first = seen.visual[0]
    places = [*range(first), *(first + i for i in kept), *seen.text]
    torch.testing.assert_close(cache.layers[0].keys[0], seen.keys[0][:, places])
    assert {layer.keys.shape[2] for layer in cache.layers} == {len(places)}
