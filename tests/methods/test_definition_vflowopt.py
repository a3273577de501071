"""vflowopt, as its paper (arXiv 2508.05211) and its released code define it: loops over numbers."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch

import vtc
from tests.families import batch, model_of
from tests.methods.definitions import defines
from vtc.engine.per_crop import select_scoped
from vtc.layout import Tile, VisualSpan, single_span
from vtc.methods.vflowopt import LaterCuts
from vtc.signals import VisualTokens

Row = list[float]


def anyres(side: int) -> VisualSpan:
    """A thumbnail, and a mosaic of 1 x 2 crops of which only the middle rows are left, each with a line break."""
    n, rows = side * side, side - 2
    row = [1] * side + [2] * side + [-1]
    crop = torch.tensor([0] * n + row * rows)
    tiles = (Tile(0, 1, side, side, role="thumbnail"), Tile(n, 1, rows, 2 * side, newline=True, role="mosaic"))
    return VisualSpan(0, torch.arange(len(crop)), (1, rows, 2 * side), tiles, crop=crop)


SPANS = {"square": single_span(36, (1, 6, 6)), "wide": single_span(60, (1, 5, 12)), "crops": anyres(6)}


def cells_of(span: VisualSpan, side: float) -> dict[int, Any]:
    """token -> its cell: tile, and rows and columns in `side`s; line breaks have none."""
    found: dict[int, Any] = {}
    for number, tile in enumerate(span.tiles):
        width = tile.w + tile.newline
        for i in range(tile.h):
            for j in range(tile.w):
                found[tile.start + i * width + j] = (number, math.floor(i / side), math.floor(j / side))
    return found


def drop(score: Row, cells: dict[int, Any], gone: int) -> tuple[list[int], dict[Any, list[int]]]:
    """What stays when the `gone` least important go (of equals the later ones), and what goes, by cell."""
    order = sorted(range(len(score)), key=lambda i: (-score[i], i))
    stays, groups = sorted(order[: len(score) - gone]), {}
    for i in sorted(order[len(score) - gone :]):
        if i in cells:
            groups.setdefault(cells[i], []).append(i)
    return stays, groups


def outputs(x: list[Row], score: Row, stays: list[int], groups: dict[Any, list[int]]) -> dict[int, Row]:
    """place -> what stands there: each group's mean, weighted by importance, at its most important member."""
    made = {i: x[i] for i in stays}
    for group in groups.values():
        best = max(group, key=lambda i: (score[i], -i))
        weight = [max(0.0, score[i]) for i in group]
        weight = weight if sum(weight) else [1.0] * len(group)
        made[best] = [
            sum(w * x[i][c] for w, i in zip(weight, group, strict=True)) / sum(weight) for c in range(len(x[0]))
        ]
    return dict(sorted(made.items()))


def recycled(span: VisualSpan, x: list[Row], score: Row, count: int, side: float, exact: bool) -> dict[int, Row]:
    """D + Z tokens go and come back as one per cell, Z of them; exactly `count`, or as released."""
    n, breaks = len(score), [i for i, apart in enumerate(span.separators.tolist()) if apart]
    if count >= n:
        return dict(enumerate(x))
    score = list(score)
    for i in breaks:  # first, unless they would be more than half: then last
        score[i] = math.inf if 2 * len(breaks) <= count else -math.inf
    if not exact:
        more = math.floor(n / side**2)
        gone = min(n - count + more, sum(s < math.inf for s in score))
        return outputs(x, score, *drop(score, cells_of(span, side), gone))
    room = count - len(breaks) if 2 * len(breaks) <= count else count
    while len(set(cells_of(span, side).values())) > room and len(set(cells_of(span, side).values())) > len(span.tiles):
        side += 1
    for more in range(n):
        stays, groups = drop(score, cells_of(span, side), n - count + more)
        if len(stays) + len(groups) == count:
            return outputs(x, score, stays, groups)
    raise AssertionError


@defines("vflowopt", "cell", "exact_count")
@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("side", [1.0, 1.7, 2.5, 3.0, 24.0])
@pytest.mark.parametrize("span", SPANS)
def test_what_goes_is_recycled_by_cells(span, side, exact):
    for seed, count in enumerate([3, 5, 9, 20, 33, 59, 83, 84]):
        n, g = SPANS[span].tokens, torch.Generator().manual_seed(seed)
        x, score = torch.randn(n, 4, generator=g), torch.rand(n, generator=g) / n
        if seed % 2:  # ties, and tokens that nothing is given to
            score = (score * n * 4).round() / 4
        method = vtc.VFlowOpt(keep=count, cell=side, exact_count=exact)
        tokens = VisualTokens(x, SPANS[span], torch.arange(n), {"global_attention": score}.__getitem__)
        (selection,) = select_scoped(method, [tokens])
        expected = recycled(SPANS[span], x.double().tolist(), score.double().tolist(), count, side, exact)
        selection = selection.check().sorted()
        assert selection.anchor.tolist() == list(expected)
        if exact:
            assert selection.tokens_out == min(n, count)
        torch.testing.assert_close(selection.apply(x), torch.tensor(list(expected.values())), atol=1e-5, rtol=1e-5)


def test_the_released_count_depends_on_the_picture():
    x, counts = torch.randn(36, 4), set()
    for seed in range(12):
        score = torch.rand(36, generator=torch.Generator().manual_seed(seed))
        method = vtc.VFlowOpt(keep=30, cell=2.0, exact_count=False)
        counts.add(vtc.select(method, x, grid=(1, 6, 6), global_attention=score).tokens_out)
    assert len(counts) > 1


# -- importance ------------------------------------------------------------------------------------------------------


def asked(family: str, inputs: Any, name: str, number: float = 0.0, before: tuple[vtc.Method, ...] = ()) -> list[Row]:
    """The signal `name` of each picture in a model, as a method hears it behind others."""
    heard: list[Row] = []

    class Hears(vtc.Method):
        needs = (name,)

        def signal_number(self, name):
            return number

        def score(self, tokens):
            heard.append(tokens.signal(name).tolist())
            return tokens.signal(name)

    model = model_of(family, "eager")
    with torch.no_grad(), vtc.wrapped(model, [*before, Hears(keep=1)]):
        model(**inputs)
    return heard


def flow(attention: list[list[Row]], first: int, times: float) -> Row:
    """[H][T][T] of one crop -> of each patch, the mean of what the global patches give it."""
    t = len(attention[0])
    mean = [[sum(head[i][j] for head in attention) / len(attention) for j in range(t)] for i in range(t)]
    received = [sum(mean[i][j] for i in range(t)) / t for j in range(t)]
    patches = range(first, t)
    average = sum(received[j] for j in patches) / len(patches)
    chosen = [j for j in patches if received[j] > times * average]
    chosen = chosen or [max(patches, key=lambda j: (received[j], -j))]
    return [sum(mean[j][i] for j in chosen) / len(chosen) for i in patches]


@defines("vflowopt", "threshold")
@pytest.mark.parametrize("times", [0.0, 0.9, 1.1, 1.5, 40.0])
@pytest.mark.parametrize("family", ["llava", "llava_siglip"])
def test_importance_is_what_global_patches_give(family, times):
    model, inputs = model_of(family, "eager"), batch(family, [[3], [4]])
    tower, layer = model.model.vision_tower, model._modules["model"].config.vision_feature_layer
    with torch.no_grad():
        maps = tower(inputs["pixel_values"], output_attentions=True).attentions[layer % 4 - 1]  # of three blocks
    first = int(family == "llava")  # CLS
    expected = [flow(one.double().tolist(), first, times) for one in maps]
    heard = asked(family, inputs, "global_attention", times)
    torch.testing.assert_close(torch.tensor(heard), torch.tensor(expected), atol=1e-6, rtol=1e-4)


def entropy(pixels: list[Row], mean: Row, deviation: Row) -> float:
    """[C][P] of one patch: bits of its 256 grey levels, as they were in the picture."""
    grey = [
        sum(w * (x * s + m) for w, x, s, m in zip((0.299, 0.587, 0.114), colour, deviation, mean, strict=True))
        for colour in zip(*pixels, strict=True)
    ]
    levels = [min(255, max(0, round(255 * value))) for value in grey]
    shares = [levels.count(level) / len(levels) for level in set(levels)]
    return -sum(share * math.log2(share) for share in shares)


CLIP = ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711])
HALF = ([0.5] * 3, [0.5] * 3)


@pytest.mark.parametrize(("family", "norm"), [("llava", CLIP), ("llava_siglip", HALF)])
def test_entropy_of_crops(family, norm):
    inputs = batch(family, [[5]])
    inputs["pixel_values"] = inputs["pixel_values"] * 0.3
    pixels = inputs["pixel_values"][0].double()
    expected = [
        entropy(pixels[:, 4 * i : 4 * i + 4, 4 * j : 4 * j + 4].flatten(1).tolist(), *norm)
        for i in range(6)
        for j in range(6)
    ]
    (heard,) = asked(family, inputs, "patch_entropy")
    assert heard == pytest.approx(expected, abs=1e-5)
    assert max(heard) - min(heard) > 0.1


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl"])
def test_entropy_of_packed_patches_is_the_mean_of_four(family):
    inputs = batch(family, [[0, 1]])
    inputs["pixel_values"] = inputs["pixel_values"] * 0.3
    bits = [entropy(row.view(3, -1).tolist(), *CLIP) for row in inputs["pixel_values"].double()]
    expected = [sum(bits[i : i + 4]) / 4 for i in range(0, len(bits), 4)]
    one, two = asked(family, inputs, "patch_entropy")
    assert one + two == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_entropy_of_what_the_tower_has_not_lost(family):
    inputs, cut = batch(family, [[0, 1]]), vtc.PixelPrune(keep=0.5)
    inputs["pixel_values"] = inputs["pixel_values"] * 0.3
    whole = asked(family, inputs, "patch_entropy")
    left = asked(family, inputs, "patch_entropy", before=(cut,))
    with torch.no_grad(), vtc.wrapped(model_of(family), cut) as model:
        model(**inputs)
        spans = vtc.report(model).spans
    for span, all_of_it, some in zip(spans, whole, left, strict=True):
        assert some == pytest.approx([all_of_it[i] for i in span.kept.tolist()], abs=1e-6)


@defines("vflowopt", "alpha")
@pytest.mark.parametrize("alpha", [0.5, -0.02, 3.0])
@pytest.mark.parametrize("span", SPANS)
def test_entropy_is_added_by_a_softmax_over_each_crop(span, alpha):
    shown = SPANS[span]
    n, g = shown.tokens, torch.Generator().manual_seed(3)
    score, bits = torch.rand(n, generator=g) / n, 8 * torch.rand(n, generator=g)
    crops, apart = shown.crop.tolist(), shown.separators.tolist()
    total = {c: sum(math.exp(bits[i]) for i in range(n) if crops[i] == c and not apart[i]) for c in set(crops)}
    expected = [float(score[i]) + (0.0 if apart[i] else alpha * math.exp(bits[i]) / total[crops[i]]) for i in range(n)]
    read = {"global_attention": score, "patch_entropy": bits}
    tokens = VisualTokens(torch.randn(n, 4), shown, torch.arange(n), read.__getitem__)
    method = vtc.VFlowOpt(alpha=alpha)
    assert method.requires() == ("global_attention", "patch_entropy", "grid")
    assert method.importance(tokens).tolist() == pytest.approx(expected, abs=1e-6)
    assert vtc.VFlowOpt().requires() == vtc.VFlowOpt(alpha=0.0).requires() == ("global_attention", "grid")


# -- how the budget falls on the layers --------------------------------------------------------------------------------


def counts(method: vtc.VFlowOpt, total: int, depth: int) -> tuple[int, ...]:
    """Tokens that each decoder layer sees."""
    first, later = method.parts()
    assert isinstance(later, LaterCuts)
    span = single_span(total, (1, 1, total))
    kept = first.count(VisualTokens(torch.zeros(total, 1), span, torch.arange(total), {}.__getitem__))
    at, left = later.steps(depth), later.counts(total, depth)
    edges = [*at, depth]
    return (kept,) * at[0] + tuple(c for i, c in enumerate(left) for _ in range(edges[i], edges[i + 1]))


@defines("vflowopt", "average", "layers")
@pytest.mark.parametrize("keep", [0.1, 0.25, 0.5, 0.7, 0.05])
@pytest.mark.parametrize(("total", "depth"), [(2928, 28), (576, 32), (576, 4), (100, 3), (36, 2)])
def test_the_average_over_the_layers_is_the_budget(keep, total, depth):
    layers = counts(vtc.VFlowOpt(keep=keep), total, depth)
    assert abs(sum(layers) / depth - max(1, round(keep * total))) <= 0.5
    assert list(layers) == sorted(layers, reverse=True)
    final = counts(vtc.VFlowOpt(keep=keep, average=False), total, depth)
    assert final[-1] == max(1, round(keep * total))
    assert list(final) == sorted(final, reverse=True)
    early = counts(vtc.VFlowOpt(keep=keep, layers=(1, 0.9)), 2928, 28)
    assert abs(sum(early) / 28 - round(keep * 2928)) <= 0.5
    assert len(set(early[1:25])) == 1


@defines("vflowopt", "r1", "r2", "r3")
@pytest.mark.parametrize("keep", [0.5, 0.25, 0.1])
def test_released_shares(keep):
    """The released numbers, and R3 as the paper's identity has it: 9 R1 + 9 R1 R2 + 10 R1 R2 R3 = 28 keep."""
    r1, r2, r3 = {0.5: (0.723, 0.749, 0.487), 0.25: (0.265, 0.983, 0.877), 0.1: (0.117, 1.0, 0.601)}[keep]
    n = 100_000
    whole = vtc.VFlowOpt(keep=keep, r1=r1, r2=r2, r3=r3)
    assert vtc.resolve(str(whole)) == vtc.Method.from_dict(whole.as_dict()) == whole
    told = counts(whole, n, 28)
    for layer, share in ((0, r1), (8, r1), (9, r1 * r2), (17, r1 * r2), (18, r1 * r2 * r3), (27, r1 * r2 * r3)):
        assert told[layer] == pytest.approx(share * n, abs=1)
    solved = (28 * keep - 9 * r1 - 9 * r1 * r2) / 10
    for method in (vtc.VFlowOpt(keep=keep), vtc.VFlowOpt(keep=keep, r1=r1, r2=r2)):
        own = counts(method, n, 28)
        assert own[:18] == told[:18]
        assert own[18] == pytest.approx(solved * n, abs=2)


def test_shares_that_cannot_meet_the_budget_leave_more():
    layers = counts(vtc.VFlowOpt(keep=0.25, r1=0.26, r2=0.1), 1000, 28)  # R3 would have to be far above 1
    assert layers[0] == 260
    assert sum(layers) / 28 == pytest.approx(250, abs=0.5)


def test_counts_stay_counts():
    layers = counts(vtc.VFlowOpt(keep=64, r1=90, r2=0.9), 1000, 28)
    assert (layers[0], layers[9]) == (90, 81)
    assert sum(layers) / 28 == pytest.approx(64, abs=0.5)
    assert counts(vtc.VFlowOpt(keep=64, r1=90), 50, 28) == (50,) * 28


def test_released_settings_by_the_nearest_budget():
    asked = {0.5: 28.68, 0.4: 28.68, 1.0: 28.68, 0.3: 34.76, 0.25: 34.76, 0.12: 39.26, 0.01: 39.26, 64: 34.76}
    for keep, threshold in asked.items():
        assert vtc.VFlowOpt(keep=keep).signal_number("global_attention") == threshold
    assert vtc.VFlowOpt(keep=0.1, threshold=3).signal_number("global_attention") == 3


@pytest.mark.parametrize("family", ["llava", "llava_next", "qwen2_5_vl"])
def test_later_cuts_go_by_the_same_importance(family):
    """In a model of three layers: of what the first cut leaves, the most important; line breaks first."""
    model, inputs = model_of(family), batch(family, [[2]])
    method = vtc.VFlowOpt(keep=0.5, r1=0.8, r2=0.7, threshold=1.0, cell=2.0)
    (score,) = asked(family, inputs, "global_attention", 1.0)
    with torch.no_grad(), vtc.wrapped(model, method):
        model(**inputs)
        (span,) = vtc.report(model).spans
    steps = [span.at(layer).kept.tolist() for layer in range(3)]
    apart = [i for tile in span.tiles for i in range(tile.start, tile.start + tile.length)]
    breaks = set(apart) - {int(i) for tile in span.tiles for i in tile.indices().flatten()}
    for before, after in pairwise(steps):
        order = sorted(before, key=lambda i: (i not in breaks, -score[i], i))
        assert after == sorted(order[: len(after)])
    assert len(steps[0]) > len(steps[1]) > len(steps[2])


@pytest.mark.parametrize(("family", "row"), [("llava", [0, 1]), ("llava_next", [0, 2]), ("llava_onevision", ["v0"])])
def test_several_pictures_and_videos_are_cut_without_recycling(family, row):
    model, inputs = model_of(family), batch(family, [row])
    scores = asked(family, inputs, "global_attention", 1.2)
    with torch.no_grad(), vtc.wrapped(model, vtc.VFlowOpt(keep=0.4, threshold=1.2, cell=2.0)):
        model(**inputs)
        spans = vtc.report(model).spans
    for span, score in zip(spans, scores, strict=True):
        first = span.at(0)
        n = span.tokens_in
        inside = {int(i) for tile in span.tiles for i in tile.indices().flatten()}
        order = sorted(range(n), key=lambda i: (i not in inside, -score[i], i))
        assert first.kept.tolist() == sorted(order[: first.tokens_out])
        assert sum(s >= 0 for s in first.source.tolist()) == first.tokens_out  # nothing lives on in anything


def test_a_picture_beside_another_row_that_has_two():
    """Its choice is the one that it has alone, though the same picture stands in a row of two as well."""
    model = model_of("llava")
    method, kept = vtc.VFlowOpt(keep=0.3, threshold=1.0, cell=2.0), []
    for rows in ([[0]], [[0], [0, 1]], [[0, 1], [0]]):
        with torch.no_grad(), vtc.wrapped(model, method):
            model(**batch("llava", rows))
            kept.append([span.at(0).source.tolist() for span in vtc.report(model).spans])
    assert kept[0][0] == kept[1][0] == kept[2][2]
    assert kept[1][1] == kept[2][0] != kept[0][0]


def test_shares_that_are_refused():
    for wrong, says in (
        (dict(keep=0.25, r1=0.2), "r1=0.2 is below keep=0.25"),
        (dict(keep=64, r1=60), "r1=60 is below keep=64"),
        (dict(keep=64, r1=0), "r1=0 is not"),
        (dict(r1=1.5), "r1=1.5 is not"),
        (dict(r3=0.5), "r3 is what r1, r2 and keep leave"),
        (dict(r1=0.3, r2=0.9, r3=0.9, keep=64), "r3 is what r1, r2 and keep leave"),
        (dict(keep=0.25, r1=0.5, r2=0.9, r3=0.9), "on average, not keep=0.25"),
        (dict(layers=(3,)), "are not two"),
        (dict(layers=0.5), "is no row of two decoder layers"),
        (dict(cell=0.5), "cell=0.5"),
        (dict(threshold=-1), "threshold=-1"),
    ):
        options: dict[str, Any] = dict(wrong)
        with pytest.raises((ValueError, TypeError), match=says):
            vtc.VFlowOpt(**options)


def test_a_first_cut_too_small_for_the_budget_is_refused_when_wrapped():
    with pytest.raises(ValueError, match=r"on average: before layer 1 of 3 9000 are there, which makes 3001 at least"):
        vtc.wrap(model_of("llava"), vtc.VFlowOpt(keep=0.1, r1=0.9, layers=(1, 2)))
