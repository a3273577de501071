"""DyCoke as the paper and its code define it, in loops."""

from __future__ import annotations

from typing import Any

import pytest

import vtc
from tests.families import batch, model_of
from tests.methods.clips import random_clip
from tests.methods.definitions import defines
from tests.methods.plain import best, cosine, most_different, rows, shares
from tests.oracle import watched

HW = 12


def least_like(x, frame, other, count):
    """The tokens of a frame that are least like the same place in another one."""
    return [frame * HW + p for p in best([-cosine(x[frame * HW + p], x[other * HW + p]) for p in range(HW)], count)]


def paper(x, t, counts):
    """Section 3.2: `counts[f]` tokens stay of frame f, which goes by the first of its window or, the fourth, by the
    third; the first stays whole."""
    kept = []
    for f in range(t):
        place = f % 4
        kept += (
            range(f * HW, f * HW + HW) if not place else least_like(x, f, f - place if place < 3 else f - 1, counts[f])
        )
    return kept


def released(x, t, count):
    """The code: first each odd frame against the even one before it, then frames 2 of four against 0, in windows that
    begin before t - 4."""
    kept: list[Any] = [[] for _ in range(t)]
    for i in range(0, t - 1, 2):
        kept[i] = list(range(i * HW, i * HW + HW))
        kept[i + 1] = least_like(x, i + 1, i, count)
    for i in range(0, t - 4, 4):
        kept[i + 2] = least_like(x, i + 2, i, count)
    return sorted(i for frame in kept for i in frame)


@defines("dycoke", "k", "windows")
@pytest.mark.parametrize("t", [5, 6, 7, 8, 9, 12])
@pytest.mark.parametrize("k", [0.0, 0.7, 1.0])
def test_windows(t, k):
    x = random_clip(t * HW)
    count = int((1 - k) * HW + 1e-6)
    for windows, expected in (("paper", paper(rows(x), t, [count] * t)), ("released", released(rows(x), t, count))):
        selection = vtc.select(vtc.DyCoke(k=k, windows=windows), x, grid=(t, 3, 4))
        assert selection.anchor.tolist() == expected
        assert not selection.merges


@defines("dycoke", "first")
@pytest.mark.parametrize("first", [1.0, 0.5, 0.3])
@pytest.mark.parametrize("keep", [1, 10, 23, 31, 60, 90])
def test_a_budget(keep, first):
    """First frames take their part of it, their most different tokens if they do not fit; the others share the rest."""
    t, x = 8, random_clip(8 * HW, seed=2)
    whole, later = [f * HW + p for f in (0, 4) for p in range(HW)], [f for f in range(t) if f % 4]
    few = min(len(whole), max(1, round(first * keep), keep - HW * len(later)))
    opening = [whole[i] for i in most_different([rows(x)[i] for i in whole], few)]
    counts = dict(zip(later, shares(keep - few, [HW] * len(later)), strict=True))
    rest = [i for i in paper(rows(x), t, [counts.get(f) for f in range(t)]) if i // HW % 4]
    selection = vtc.select(vtc.DyCoke(keep=keep, first=first), x, grid=(t, 3, 4))
    assert selection.anchor.tolist() == sorted(opening + rest)


@pytest.mark.parametrize("t", [1, 3, 4])
def test_clips_that_the_released_code_cannot_have(t):
    with pytest.raises(ValueError, match=rf'^windows="released" needs more than 4 frames, this video has {t}: [^\n]*$'):
        vtc.select(vtc.DyCoke(windows="released"), random_clip(t * HW), grid=(t, 3, 4))


@defines("dycoke", "p", "layer", "refresh", "reset")
@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize(("refresh", "p", "layer"), [(0.53, 0.7, 1), (0.7, 0.4, 2), (-1.0, 0.7, 1), (1.0, 0.7, 1)])
def test_what_rests_while_decoding(refresh, p, layer, reset):
    """All but the best by the head-averaged attention of the layer before `layer`; chosen anew when that attention is
    no longer like it was a step before. Else the old choice serves or, as released, there is none."""
    steps: dict[str, Any] = dict(max_new_tokens=12, do_sample=False, return_dict_in_generate=True)
    model, inputs = model_of("qwen2_5_vl", "eager"), batch("qwen2_5_vl", [["v2"]])
    places = (inputs["input_ids"][0] == 5).nonzero()[:, 0].tolist()
    method = vtc.DyCoke(keep=1.0, p=p, refresh=refresh, layer=layer, reset=reset)
    with vtc.wrapped(model, method), watched(model) as rest:
        out = model.generate(**inputs, **steps, output_attentions=True)
    before, resting, choices = None, [], 0
    for step, attention in enumerate(out.attentions[1:]):
        heads = attention[layer - 1][0, :, 0].double().tolist()
        heard = [sum(head[place] for head in heads) / len(heads) for place in places]
        if before is None or cosine(before, heard) < refresh:
            active = best(heard, round((1 - p) * len(places)))
            resting, choices = [place for i, place in enumerate(places) if i not in active], choices + 1
        elif reset:
            resting = []
        before = heard
        for later in range(layer, 3):
            assert sorted(rest.get((inputs["input_ids"].shape[1] + step, later), [[]])[0]) == resting
    assert choices in ({-1.0: [1], 1.0: [11]}.get(refresh) or range(2, 11))
