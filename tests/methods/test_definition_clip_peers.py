"""vidcom2, fastvid and flashvid as their papers and their authors' code define them, in loops."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

import vtc
from tests.methods.clips import clip_tokens, random_clip, still_clip
from tests.methods.definitions import defines
from tests.methods.plain import best, cosine, dpc_knn, mean, rows, shares

T, HW = 6, 12
FRAMES = [list(range(f * HW, f * HW + HW)) for f in range(T)]
HEARD = torch.rand(2, T * HW, generator=torch.Generator().manual_seed(5))
SUMMED = HEARD.double().sum(dim=0).tolist()


def scenes(seed=0):
    """Three scenes of 3 x 4 places, of one, two and three frames, the second noisy."""
    lengths, noise = (1, 2, 3), (0.2, 0.8, 0.3)
    return torch.cat([still_clip(t, noise=n, seed=seed + t) for t, n in zip(lengths, noise, strict=True)])


def allocate(total, weights, least=1):
    """`least` for each frame if that can be, the rest by weight; what a full frame cannot take the others do; the
    largest remainders are rounded up."""
    got = [least if least * len(weights) <= total else 0] * len(weights)
    open_ = [i for i in range(len(weights)) if got[i] < HW]
    while open_:
        rest, whole = total - sum(got), sum(weights[i] for i in open_)
        exact = {i: rest * weights[i] / whole for i in open_}
        full = [i for i in open_ if got[i] + exact[i] >= HW]
        if not full:
            up = sorted(open_, key=lambda i: (math.floor(exact[i]) - exact[i], i))
            for i in open_:
                got[i] += math.floor(exact[i])
            for i in up[: total - sum(got)]:
                got[i] += 1
            return got
        for i in full:
            got[i] = HW
        open_ = [i for i in open_ if i not in full]
    return got


def likeness(a, b):
    apart = sum((p - q) ** 2 for p, q in zip(a, b, strict=True))
    return sum(math.exp(-apart / (2 * width)) for width in (1 / 8, 1 / 4, 1 / 2, 1, 2))


@defines("vidcom2", "channels", "temperature", "exact_count")
@pytest.mark.parametrize("clip", [scenes(), 3 * random_clip(T * HW, seed=7)], ids=["scenes", "random"])
@pytest.mark.parametrize("exact_count", [True, False])
@pytest.mark.parametrize(
    "options", [{}, {"channels": 1.0}, {"channels": 0.4, "temperature": 0.3}, {"temperature": 100.0}]
)
@pytest.mark.parametrize("keep", [5, 18, 40, 66])
def test_vidcom2(keep, options, exact_count, clip):
    x = rows(clip)
    spread = []
    for column in zip(*x, strict=True):
        middle = sum(column) / len(column)
        spread.append(sum((value - middle) ** 2 for value in column) / len(column))
    few = int(options.get("channels", 0.5) * len(spread))
    quiet = sorted(sorted(range(len(spread)), key=lambda c: spread[c])[:few])
    unit = []
    for row in x:
        length = math.sqrt(sum(row[c] ** 2 for c in quiet))
        unit.append([row[c] / length for c in quiet])
    whole = mean(unit)
    to_clip = [likeness(row, whole) for row in unit]
    score, odd = [], []
    for frame in FRAMES:
        middle = mean([unit[i] for i in frame])
        score.append([to_clip[i] + likeness(unit[i], middle) for i in frame])
        odd.append(-sum(to_clip[i] for i in frame) / HW)
    scaled = [math.exp((o - max(odd)) / options.get("temperature", 0.01)) for o in odd]
    p = [s / sum(scaled) for s in scaled]
    more = [1 + one - sum(p) / T for one in p]
    if exact_count:
        counts = allocate(keep, more)
    else:
        share = keep / (T * HW)
        counts = [max(1, round(min(1.0, share * m) * HW)) for m in more]
    expected = [
        frame[i] for frame, own, k in zip(FRAMES, score, counts, strict=True) for i in best([-s for s in own], k)
    ]
    method = vtc.VidCom2(keep=keep, exact_count=exact_count, **options)
    assert vtc.select(method, clip, grid=(T, 3, 4)).anchor.tolist() == expected


def cut_clip(x, least, tau):
    """Runs of frames: neighbours whose mean tokens are unlike each other are parted, and the least alike ones."""
    middle = [mean([x[i] for i in frame]) for frame in FRAMES]
    alike = [cosine(a, b) for a, b in pairwise(middle)]
    edges = {i for i in range(T - 1) if alike[i] < tau}
    edges |= set(sorted(range(T - 1), key=lambda i: alike[i])[: least - 1])
    runs: list[list[int]] = [[]]
    for f in range(T):
        runs[-1].append(f)
        if f in edges:
            runs.append([])
    return [run for run in runs if run]


def fastvid(x, keep, segments=8, tau=0.9, context=0.4, step=4, beta=0.6, neighbours=4):
    """By the token whose place an output takes, its value."""
    counts, out = shares(keep, [HW] * T), {}
    for run in cut_clip(x, segments, tau):
        few = {f: int(context * counts[f]) for f in run}
        salient = {f: [FRAMES[f][i] for i in best([SUMMED[i] for i in FRAMES[f]], counts[f] - few[f])] for f in run}
        rest = {f: [i for i in FRAMES[f] if i not in salient[f]] for f in run}
        out |= {i: x[i] for f in run for i in salient[f]}
        total = sum(few.values())
        anchors = list(reversed(run))[::step]
        if sum(len(rest[f]) for f in anchors) < total:
            anchors = run
        got = dict.fromkeys(anchors, 0)
        while sum(got.values()) < total:  # one by one, to the anchor that has least
            got[min((f for f in anchors if got[f] < len(rest[f])), key=lambda f: (got[f], anchors.index(f)))] += 1
        peaks = [rest[f][c] for f in anchors if got[f] for c in dpc_knn([x[i] for i in rest[f]], got[f], neighbours)[0]]
        members = {peak: [peak] for peak in peaks}
        for i in (i for f in run for i in rest[f] if i not in peaks):
            if peaks:
                members[max(peaks, key=lambda c: cosine(x[i], x[c]))].append(i)
        for peak, own in members.items():
            w = max(beta, 1 / (len(own) + 1))
            others = mean([x[i] for i in own])
            out[peak] = [w * a + (1 - w) * b for a, b in zip(x[peak], others, strict=True)]
    return out


@defines("fastvid", "segments", "tau", "context", "step", "beta", "neighbours")
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"segments": 1, "tau": 0.5},
        {"segments": 2, "tau": -1.0, "step": 2},
        {"segments": 1, "tau": 0.7, "context": 1.0, "beta": 0.0},
        {"segments": 1, "tau": -1.0, "context": 0.9, "step": 1, "neighbours": 2},
        {"segments": 3, "context": 0.0},
    ],
)
@pytest.mark.parametrize("keep", [4, 20, 45, 70])
def test_fastvid(keep, options):
    x = scenes(seed=3)
    selection = vtc.select(vtc.FastVID(keep=keep, **options), x, grid=(T, 3, 4), received_attention=HEARD)
    expected = fastvid(rows(x), keep, **options)
    assert selection.anchor.tolist() == sorted(expected)
    assert len(expected) == keep
    torch.testing.assert_close(selection.apply(x), torch.tensor([expected[i] for i in sorted(expected)]))


def flashvid(x, keep, alpha=0.7, tau=0.8, segments=8, scene=0.9, events=True, neighbours=7):
    """By the token whose place an output takes, its value."""
    counts, out = shares(keep, [HW] * T), {}
    middle = [mean([x[i] for i in frame]) for frame in FRAMES]
    for run in cut_clip(x, segments, scene):
        rest = {}
        for f in run:
            weight = {}
            for i in FRAMES[f]:
                event = [sum(a * b for a, b in zip(x[i], middle[g], strict=True)) for g in run]
                weight[i] = SUMMED[i] * (sum(event) / len(event) if events else 1.0)
            chosen: list[int] = []
            while len(chosen) < math.ceil(alpha * counts[f]):
                left = [i for i in FRAMES[f] if i not in chosen]
                against = chosen or FRAMES[f]
                far = {i: min(1 - cosine(x[i], x[j]) for j in against if j != i) * weight[i] for i in left}
                chosen.append(max(left, key=lambda i: (far[i], -i)))
            out |= {i: x[i] for i in chosen}
            rest[f] = [i for i in FRAMES[f] if i not in chosen]
        few = sum(counts[f] for f in run) - sum(HW - len(rest[f]) for f in run)
        links = []
        for before, f in pairwise(run):
            for i in rest[f] if rest[before] else []:
                near = max(rest[before], key=lambda j: cosine(x[i], x[j]))
                links.append((cosine(x[i], x[near]), i, near))
        links = sorted((link for link in links if link[0] > tau), key=lambda link: (-link[0], link[1]))
        parent = {i: near for _, i, near in links[: sum(map(len, rest.values())) - few]}
        trees: dict[int, list[int]] = {}
        for f in run:
            for i in rest[f]:
                top = i
                while top in parent:
                    top = parent[top]
                trees.setdefault(top, []).append(i)
        roots = [[i for i in rest[f] if i in trees] for f in run]
        value = {top: mean([x[i] for i in own]) for top, own in trees.items()}
        for own, share in zip(roots, shares(few, [len(r) for r in roots]) if few else [0] * len(run), strict=True):
            if share:
                centres, joins = dpc_knn([value[i] for i in own], share, min(neighbours, share))
                for c in centres:
                    out[own[c]] = mean([value[i] for i, mine in zip(own, joins, strict=True) if mine == c])
    return out


@defines("flashvid", "alpha", "tau", "segments", "scene", "events", "neighbours")
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"segments": 1, "scene": 0.5},
        {"segments": 2, "scene": -1.0, "tau": 0.5, "alpha": 0.3},
        {"segments": 1, "scene": -1.0, "tau": -1.0, "alpha": 0.0, "events": False},
        {"segments": 1, "scene": 0.6, "alpha": 1.0},
        {"segments": 1, "scene": 0.6, "alpha": 0.2, "neighbours": 2, "events": False},
    ],
)
@pytest.mark.parametrize("keep", [7, 20, 45, 70])
def test_flashvid(keep, options):
    x = scenes(seed=6)
    selection = vtc.select(vtc.FlashVID(keep=keep, **options), x, grid=(T, 3, 4), received_attention=HEARD)
    expected = flashvid(rows(x), keep, **options)
    assert selection.anchor.tolist() == sorted(expected)
    assert len(expected) == keep
    torch.testing.assert_close(selection.apply(x), torch.tensor([expected[i] for i in sorted(expected)]))


@defines("flashvid", "inner", "layer")
@pytest.mark.parametrize("inner", [0.1, 0.3, 0.8])
def test_flashvid_inside_the_language_model(inner):
    """What the prompt's last token attends to, a share of what came in, before the layer that is named."""
    first, second = vtc.FlashVID(keep=20, inner=inner, layer=3).parts()
    assert (first.keep, second.keep) == (20, round(20 * inner))
    assert second.steps(28) == (3,)  # type: ignore[attr-defined]
    assert vtc.FlashVID(inner=inner).parts()[1].steps(28) == (20,)  # type: ignore[attr-defined]
    heard = torch.rand(20, generator=torch.Generator().manual_seed(6))
    tokens = clip_tokens(random_clip(T * HW), (T, 3, 4), range(3, 43, 2), signals={"last_attention": heard})
    assert second.select(tokens).anchor.tolist() == best(heard.tolist(), round(20 * inner))
