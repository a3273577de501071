"""HoliTom as the paper and its code define it, in loops."""

from __future__ import annotations

from itertools import combinations, pairwise
from typing import Any

import pytest
import torch

import vtc
from tests.families import batch, model_of
from tests.methods.clips import clip_tokens, random_clip, still_clip
from tests.methods.definitions import defines
from tests.methods.plain import best, cosine, dpc_knn, mean, rows, shares

T, HW = 6, 12


def scenes(seed=0):
    """Two scenes of 3 x 4 places, more noise at some than at others."""
    x = torch.cat([still_clip(2, noise=0.5, seed=seed), still_clip(4, noise=0.5, seed=seed + 1)])
    flicker = [f * HW + p for f in range(T) for p in ((1, 4) if f < 2 else (2, 4, 5, 7))]
    x[flicker] = random_clip(len(flicker), seed=seed + 2)
    return x


HEARD = torch.rand(1, T * HW, generator=torch.Generator().manual_seed(5))


def cut_clip(alike, tau, longest):
    """The runs of frames through which most tokens are spared; of equal cuts the one with shorter runs at the end."""

    def spared(run):
        return (len(run) - 1) * sum(all(alike[f][p] > tau for f in run[1:]) for p in range(HW))

    found = []
    for count in range(T):
        for edges in combinations(range(1, T), count):
            runs = [list(range(a, b)) for a, b in pairwise([0, *edges, T])]
            if longest is None or max(map(len, runs)) <= longest:
                found.append((sum(map(spared, runs)), [-len(run) for run in reversed(runs)], runs))
    return max(found)[-1]


def define(x, heard, keep, tau=0.8, context=0.0, longest=None, neighbours=7, centre=None):
    """What is left: by the token whose place an output takes, its value."""
    alike = [[cosine(x[f * HW + p], x[(f - 1) * HW + p]) if f else 0.0 for p in range(HW)] for f in range(T)]
    runs = cut_clip(alike, tau, longest)
    still = {(r, p): min(alike[f][p] for f in run[1:]) for r, run in enumerate(runs) if run[1:] for p in range(HW)}
    spared, places = 0, set()
    for r, p in sorted((place for place in still if still[place] > tau), key=lambda place: -still[place]):
        spared += len(runs[r]) - 1
        if spared > T * HW - keep:  # merging over time alone would leave too few
            break
        places.add((r, p))
    parts = []
    for r, run in enumerate(runs):
        parts.append([[f * HW + p for f in run] for p in range(HW) if (r, p) in places])
        parts += [[[f * HW + p] for p in range(HW) if (r, p) not in places] for f in run]
    out = {}
    for part, count in zip(parts, shares(keep, [len(part) for part in parts]), strict=True):
        value = [mean([x[i] for i in place]) for place in part]
        moving = part and len(part[0]) == 1
        few = round(context * count) if moving else count
        stay = best([heard[place[0]] for place in part], count - few) if moving else []
        out |= {part[i][0]: value[i] for i in stay}
        rest = [i for i in range(len(part)) if i not in stay]
        if few:
            centres, joins = dpc_knn([value[i] for i in rest], few, min(neighbours, few))
            for c in centres:
                others = [value[i] for i, own in zip(rest, joins, strict=True) if own == c and i != rest[c]]
                out[part[rest[c]][0]] = merge(value[rest[c]], others, centre)
    return out


def merge(middle, others, centre):
    if not others or centre is None:
        return mean([middle, *others])
    return [centre * a + (1 - centre) * b for a, b in zip(middle, mean(others), strict=True)]


@defines("holitom", "tau", "context", "longest", "neighbours", "centre")
@pytest.mark.parametrize(
    "options",
    [
        dict(),
        dict(tau=0.6),
        dict(tau=0.6, context=0.5),
        dict(tau=0.5, context=1.0, neighbours=2),
        dict(tau=0.6, longest=2),
        dict(tau=0.5, context=0.6, centre=0.6),
        dict(tau=0.3, centre=0.0),
    ],
)
@pytest.mark.parametrize("keep", [6, 20, 37, 60])
def test_before_the_language_model(keep, options):
    x = scenes()
    selection = vtc.select(vtc.HoliTom(keep=keep, **options), x, grid=(T, 3, 4), received_attention=HEARD)
    expected = define(rows(x), HEARD[0].tolist(), keep, **options)
    assert selection.anchor.tolist() == sorted(expected)
    torch.testing.assert_close(selection.apply(x), torch.tensor([expected[i] for i in sorted(expected)]))


@defines("holitom", "inner")
@pytest.mark.parametrize("inner", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("left", [1, 2, 23])
def test_inside_the_language_model(left, inner):
    """The rest joins, one by one and half and half, the kept token that was most like it."""
    x = random_clip(T * HW)
    heard = torch.rand(left, generator=torch.Generator().manual_seed(6))
    tokens = clip_tokens(x, (T, 3, 4), list(range(3, 3 + 2 * left, 2)), signals={"last_attention": heard})
    selection = vtc.HoliTom(inner=inner).parts()[1].select(tokens).check()

    hidden, value = rows(tokens.features), rows(tokens.features)
    kept = best(heard.tolist(), max(1, round(left * (1 - inner))))
    for i in range(left):
        if i not in kept:
            near = max(kept, key=lambda k: cosine(hidden[i], hidden[k]))
            value[near] = [(a + b) / 2 for a, b in zip(value[near], hidden[i], strict=True)]
    assert selection.anchor.tolist() == kept
    torch.testing.assert_close(selection.apply(tokens.features), torch.tensor([value[i] for i in kept]))


@defines("holitom", "inner", "layer")
@pytest.mark.parametrize("family", ["llava_onevision", "qwen2_5_vl"])
@pytest.mark.parametrize("layer", [1, 2])
def test_what_the_layer_before_looks_at_least_merges(family, layer):
    """The attention is that of the prompt's last token in the layer before `layer`, as eager attention makes it."""
    model, inputs = model_of(family, "eager"), batch(family, [["v0"]])
    outer: dict[str, Any] = dict(keep=12, positions="original")
    with vtc.wrapped(model, vtc.HoliTom(**outer)):
        attention = model(**inputs, output_attentions=True).attentions[layer - 1][0]  # [H, S, S]
        (span,) = vtc.report(model).spans
    start = int((inputs["input_ids"][0] == 5).nonzero()[0])
    heard = attention.mean(dim=0)[-1, start : start + 12]
    with vtc.wrapped(model, vtc.HoliTom(inner=0.25, layer=layer, **outer)):
        model(**inputs)
        (merged,) = vtc.report(model).spans
    assert [first for first, _, _ in merged.steps] == [0, layer]
    assert merged.kept.tolist() == [int(span.kept[i]) for i in best(heard.tolist(), 9)]
