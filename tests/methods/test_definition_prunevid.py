"""PruneVid as the paper and its code define it, in loops."""

from __future__ import annotations

from itertools import combinations, groupby, pairwise

import pytest
import torch

import vtc
from tests.families import batch, model_of
from tests.methods.clips import clip_tokens, random_clip, still_clip
from tests.methods.definitions import defines
from tests.methods.plain import best, cosine, dpc_knn, mean, members, rows, shares

T, HW = 12, 12


def scenes(seed=0):
    """Two scenes of 3 x 4 places, in which some flicker."""
    x = torch.cat([still_clip(5, noise=0.4, seed=seed), still_clip(7, noise=0.4, seed=seed + 1)])
    flicker = [f * HW + p for f in range(T) for p in ((1, 4, 6) if f < 5 else (2, 4, 5, 7, 11))]
    x[flicker] = random_clip(len(flicker), seed=seed + 2)
    return x


def cut_clip(x, cut, neighbours):
    """Runs of frames of one cluster; a run of one frame, or one that is not its cluster's longest, joins the longer of
    the runs beside it, the earlier of equals."""
    frames = [mean([x[f * HW + p] for p in range(HW)]) for f in range(T)]
    _, joins = dpc_knn(frames, max(1, int(cut * T)), neighbours)
    runs = [[label, len(list(same))] for label, same in groupby(joins)]
    longest = {label: max(size for other, size in runs if other == label) for label, _ in runs}
    old = [tuple(run) for run in runs]
    for i, (label, size) in enumerate(old):
        beside = [j for j in (i - 1, i + 1) if 0 <= j < len(runs)]
        if beside and (size == 1 or size < longest[label]):
            near = max(beside, key=lambda j: (runs[j][1], -j))
            runs[i] = [runs[near][0], runs[near][1] + size]
    labels = [label for (label, _), (_, size) in zip(runs, old, strict=True) for _ in range(size)]
    edges = [0, *(f for f in range(1, T) if labels[f] != labels[f - 1]), T]
    return list(pairwise(edges))


def merged(x, ratio=1.0, keep=None, whole=14, cut=0.25, tau=0.8, neighbours=7):
    """Stages 1 and 2: parts, each a list of outputs, each of these a list of tokens."""
    static = {}
    runs = cut_clip(x, cut, neighbours)
    for first, last in runs:
        for p in range(HW):
            pairs = [cosine(x[a * HW + p], x[b * HW + p]) for a, b in combinations(range(first, last), 2)]
            if pairs and sum(pairs) / len(pairs) > tau:
                static[first, p] = sum(pairs) / len(pairs), last - first - 1
    if keep is not None:  # no more merge over time than the budget asks for, the most static first
        saved, order = 0, sorted(static, key=lambda place: -static[place][0])
        for place in order:
            saved += static[place][1]
            if saved > T * HW - keep:
                del static[place]
    parts = []
    for first, last in runs:
        still = [p for p in range(HW) if (first, p) in static]
        parts.append([[f * HW + p for f in range(first, last)] for p in still])
        parts += [[[f * HW + p] for p in range(HW) if p not in still] for f in range(first, last)]
    parts = [part for part in parts if part]
    if keep is not None:
        counts = shares(keep, [len(part) for part in parts])
    else:
        counts = [len(part) if len(part) <= whole else max(1, int(ratio * len(part))) for part in parts]
    return [cluster(x, part, count, neighbours) for part, count in zip(parts, counts, strict=True)]


def cluster(x, part, count, neighbours):
    if not count:
        return []
    centres, joins = dpc_knn([mean([x[i] for i in own]) for own in part], count, neighbours)
    return [sorted(i for own, j in zip(part, joins, strict=True) if j == c for i in own) for c in sorted(centres)]


@defines("prunevid", "ratio", "whole", "cut", "tau", "neighbours")
@pytest.mark.parametrize(
    "options",
    [
        dict(ratio=0.5),
        dict(ratio=0.5, whole=0),
        dict(ratio=0.3, whole=6, tau=0.7),
        dict(ratio=0.5, whole=3, cut=0.5, tau=0.9),
        dict(ratio=0.5, whole=0, neighbours=3),
        dict(keep=24, tau=0.6),
        dict(keep=10),
        dict(keep=4, cut=0.2, neighbours=2),
    ],
)
def test_merging(options):
    """What is left before the language model: of `keep`, as much more as stage 3 drops."""
    x = scenes()
    parts = merged(rows(x), **options | ({"keep": round(options["keep"] / 0.4)} if "keep" in options else {}))
    selection = vtc.select(vtc.PruneVid(**options), x, grid=(T, 3, 4))
    assert sorted(members(selection).values()) == sorted(output for part in parts for output in part)
    expected = [mean([rows(x)[i] for i in own]) for own in members(selection).values()]
    torch.testing.assert_close(selection.apply(x), torch.tensor(expected))


@defines("prunevid", "alpha", "per_part")
@pytest.mark.parametrize("per_part", [False, True])
@pytest.mark.parametrize("options", [dict(ratio=0.5, whole=0), dict(ratio=0.5, alpha=0.7), dict(keep=20)])
def test_the_question_chooses(options, per_part):
    """The best of all or, as released, of the static places of each segment and of each frame's moving tokens."""
    x, alpha = scenes(3), options.get("alpha", 0.4)
    merge, ask, _ = vtc.PruneVid(**options, per_part=per_part).parts()
    first = merge.select(clip_tokens(x, (T, 3, 4)))
    heard = torch.rand(first.tokens_out, generator=torch.Generator().manual_seed(1)) ** 8
    signals = {"peak_attention": heard, "source": first.source}
    left = clip_tokens(x, (T, 3, 4), first.anchor.tolist(), signals=signals, depth=32)
    kept = [first.anchor.tolist()[i] for i in ask.select(left).anchor.tolist()]

    loud = dict(zip(first.anchor.tolist(), heard.tolist(), strict=True))
    stage_2 = {key: options[key] for key in ("ratio", "whole") if key in options}
    parts = merged(rows(x), **(stage_2 if "ratio" in options else {"keep": round(options["keep"] / alpha)}))
    anchor = {min(own): a for a, own in members(first).items()}
    parts = [sorted(anchor[min(output)] for output in part) for part in parts if part]
    sizes = [len(part) for part in parts]
    if not per_part:
        parts = [sorted(i for part in parts for i in part)]
        counts = [options.get("keep", round(alpha * len(parts[0])))]
    else:
        counts = shares(options["keep"], sizes) if "keep" in options else [int(alpha * size) for size in sizes]
    expected = [part[i] for part, n in zip(parts, counts, strict=True) for i in best([loud[a] for a in part], n)]
    assert kept == sorted(expected)
    assert len(kept) == sum(counts)


@defines("prunevid", "layer", "per_part")
@pytest.mark.parametrize("layer", [1, 0.6])
def test_in_a_model_every_part_gives_its_share(layer):
    """Stage 3 acts before `layer` and knows the parts that stages 1 and 2 made; the cache before it is cut to match."""
    model, inputs = model_of("llava_onevision"), batch("llava_onevision", [["v0"]])
    with vtc.wrapped(model, vtc.PruneVid(keep=8, per_part=True, tau=0.0, layer=layer)):
        cache = model(**inputs, use_cache=True).past_key_values
        (span,) = vtc.report(model).spans
    (start, _, source), (at, kept, _) = span.steps
    assert (start, at) == (0, 1 if layer == 1 else round(0.6 * len(cache.layers)))
    hw = span.grid[1] * span.grid[2]
    frames = [{i // hw for i in (source == m).nonzero()[:, 0].tolist()} for m in range(int(source.max()) + 1)]
    part_of = [f"frame {min(own)}" if len(own) == 1 else f"segment from {min(own)}" for own in frames]
    names = sorted({*part_of}, key=lambda name: (int(name.split()[-1]), name[0]))
    left = [part_of[int(source[i])] for i in kept.tolist()]
    sizes = [part_of.count(name) for name in names]
    got = [left.count(name) for name in names]
    assert sum(got) == 8
    assert all(abs(n - 8 * size / sum(sizes)) < 1 for n, size in zip(got, sizes, strict=True))
    assert {layer.keys.shape[2] for layer in cache.layers} == {inputs["input_ids"].shape[1] - span.tokens_in + 8}
