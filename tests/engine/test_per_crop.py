"""scope="crop" and "frame": every crop of an any-resolution image, and every frame, is chosen in for itself."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

import vtc
from tests.families import batch, model_of
from vtc.engine.per_crop import crops_of, select_scoped
from vtc.layout import Tile, VisualSpan
from vtc.methods.visiondrop import Opening
from vtc.selection import Selection
from vtc.signals import VisualTokens

METHODS: dict[str, Any] = {
    "visionzip": vtc.VisionZip,
    "visionzip, without contextual": lambda **o: vtc.VisionZip(contextual=0, **o),
    "visiondrop": lambda **o: vtc.VisionDrop(average=False, **o).parts()[0],
    "vtc-cls": vtc.VTCCLS,
    "tome": lambda **o: vtc.ToMe(scope="crop", **o),
    "pitome": lambda **o: vtc.PiToMe(scope="crop", **o),
    "random": lambda **o: vtc.Random(scope="crop", **o),
    "divprune": lambda **o: vtc.DivPrune(scope="crop", **o),
}
BATCHES: dict[str, list[list[int | str]]] = {
    "llava_next": [[0], [1, 3]],
    "llava_next_video": [[0, "v0"]],
    "llava_onevision": [[1, "v0"], [2]],
    "internvl": [[0, 1], [3]],
    "llava": [[0, 1]],
}
SIGNALS = ("cls_attention", "keys")


SEEN: list[VisualTokens] = []


class Watch(vtc.Method):
    """Keeps everything, and notes what it is shown."""

    needs = SIGNALS

    def select(self, tokens: VisualTokens) -> Selection:
        SEEN.append(replace(tokens, read={name: tokens.read(name) for name in SIGNALS}.__getitem__))
        return Selection.identity(len(tokens.features))


@cache
def shown(family: str) -> list[VisualTokens]:
    """The images and videos of the family's batch, as a method sees them."""
    SEEN.clear()
    model = model_of(family)
    with torch.no_grad(), vtc.wrapped(model, Watch(keep=0.999)):
        model(**batch(family, BATCHES[family]))
    return list(SEEN)


def crops(span: VisualSpan) -> dict[int, list[int]]:
    """Crop or frame -> its tokens, in reading order; separators are of none."""
    found: dict[int, list[int]] = {}
    for token, crop in enumerate(span.crop.tolist()):
        if crop >= 0:
            found.setdefault(crop, []).append(token)
    return dict(sorted(found.items()))


def shares(budget: int, sizes: list[int]) -> list[int]:
    """`budget` shared in proportion to `sizes`, by largest remainders, the first of equal ones going first."""
    whole = [budget * size // sum(sizes) for size in sizes]
    for _ in range(budget - sum(whole)):
        left = [budget * size / sum(sizes) - share for size, share in zip(sizes, whole, strict=True)]
        whole[left.index(max(left))] += 1
    return whole


def alone(method: vtc.Method, tokens: VisualTokens, own: list[int], budget: int) -> tuple[Selection, Tensor]:
    """What the method makes of one crop, handed over as an image of its own."""
    if isinstance(method, Opening):  # whose `keep` is not what it keeps itself
        method = vtc.VisionZip(contextual=method.contextual)
    rows = torch.tensor(own)
    attention, keys = tokens.signal("cls_attention")[:, rows], tokens.signal("keys")[rows]
    signals: dict[str, Any] = {
        name: x for name, x in (("cls_attention", attention), ("keys", keys)) if name in method.requires()
    }
    return vtc.select(replace(method, keep=budget), tokens.features[rows], **signals), rows


@pytest.mark.parametrize("keep", [0.1, 0.3, 7, 0.9])
@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("family", BATCHES)
def test_each_crop_is_chosen_in_for_itself(family: str, name: str, keep: Any) -> None:
    method = METHODS[name](keep=keep)
    for tokens in shown(family):
        own, budget = list(crops(tokens.span).values()), method.count(tokens)
        result = select_scoped(method, [tokens])[0].check()
        assert result.tokens_out == budget
        out = dict(zip(result.anchor.tolist(), result.apply(tokens.features), strict=True))
        expected: dict[int, Tensor] = {}
        for crop, share in zip(own, shares(min(budget, sum(map(len, own))), list(map(len, own))), strict=True):
            if share:
                choice, places = alone(method, tokens, crop, share)
                rows = choice.apply(tokens.features[places])
                expected |= zip(places[choice.anchor].tolist(), rows, strict=True)
        assert {place for place in out if not tokens.separators[place]} == expected.keys()
        for place, row in expected.items():
            torch.testing.assert_close(out[place], row)


@pytest.mark.parametrize("name", ["visionzip", "vtc-cls"])
@pytest.mark.parametrize("family", BATCHES)
def test_the_default_is_what_the_wrapped_model_does(family: str, name: str) -> None:
    model, inputs = model_of(family), batch(family, BATCHES[family])
    with torch.no_grad(), vtc.wrapped(model, METHODS[name](keep=0.3)):
        model(**inputs)
        spans = vtc.report(model).spans
    for span, tokens in zip(spans, shown(family), strict=True):
        own = crops(tokens.span)
        counts = [sum(i in set(rows) for i in span.kept.tolist()) for rows in own.values()]
        assert counts == shares(round(0.3 * span.tokens_in), list(map(len, own.values())))


def image(side: int, across: int, down: int) -> VisualSpan:
    """A thumbnail and a mosaic of whole crops, as LLaVA-NeXT has it."""
    rows, cols, n = down * side, across * side, side * side
    crop = 1 + torch.arange(rows)[:, None] // side * across + torch.arange(cols)[None] // side
    crop = torch.cat([torch.zeros(n, dtype=torch.long), torch.cat([crop, torch.full((rows, 1), -1)], 1).flatten()])
    tiles = (Tile(0, 1, side, side, role="thumbnail"), Tile(n, 1, rows, cols, newline=True, role="mosaic"))
    return VisualSpan(0, torch.arange(len(crop)), (1, rows, cols), tiles, crop=crop)


def of(span: VisualSpan, seed: int = 0) -> VisualTokens:
    """Tokens of a span whose crops differ in how sharp the attention to them is."""
    g, n = torch.Generator().manual_seed(seed), span.tokens
    attention = torch.rand(1, n, generator=g) ** (1 + 3 * span.crop.clamp(min=0).float())
    signals = {"cls_attention": attention, "keys": torch.randn(n, 5, generator=g)}
    return VisualTokens(torch.randn(n, 8, generator=g), span, torch.arange(n), signals.__getitem__)


@pytest.mark.parametrize("name", METHODS)
def test_equal_crops_keep_equally_many(name: str) -> None:
    """The authors' NeXT: five crops of 576 patches, 2880 in all, keep the same number each."""
    tokens = of(image(6, 2, 2))
    method = METHODS[name](keep=18 if name == "visiondrop" else 45)  # 18 at the end are 45 before the language model
    kept = tokens.span.crop[select_scoped(method, [tokens])[0].anchor]
    assert kept.bincount().tolist() == [9] * 5


def test_scopes_of_an_image() -> None:
    """Sharp attention takes everything where the image is one; frame and clip are the same for it."""
    tokens = of(image(6, 2, 2))
    whole = [select_scoped(vtc.VTCCLS(keep=20, scope=scope), [tokens])[0].anchor for scope in ("frame", "clip")]
    assert whole[0].equal(whole[1])
    assert whole[0].tolist() == tokens.signal("cls_attention")[0].topk(20).indices.sort().values.tolist()
    assert crops_of(tokens.span, "frame") == []
    assert [number for number, _ in crops_of(tokens.span, "crop")] == [0, 1, 2, 3, 4]


def test_separators_stay_only_beyond_the_crops() -> None:
    tokens = of(image(3, 2, 1))
    patches, n = 27, tokens.span.tokens
    for keep in range(1, n + 1):
        for method in (vtc.VisionZip(keep=keep), vtc.VTCCLS(keep=keep)):
            result = select_scoped(method, [tokens])[0].check()
            assert result.tokens_out == keep
            assert int(tokens.separators[result.anchor].sum()) == max(0, keep - patches)
            assert (result.source[tokens.separators] >= 0).sum() == max(0, keep - patches)
    assert select_scoped(vtc.VisionZip(keep=1.0), [tokens])[0].is_identity


def test_order_of_the_outputs() -> None:
    """Pruned tokens stay in reading order; dominant and contextual ones come crop after crop, as released."""
    tokens = of(image(6, 2, 1))
    pruned = select_scoped(vtc.VTCCLS(keep=30), [tokens])[0].anchor
    assert pruned.tolist() == sorted(pruned.tolist())
    zipped = tokens.span.crop[select_scoped(vtc.VisionZip(keep=30, contextual=0.5), [tokens])[0].anchor]
    assert zipped.tolist() == [0] * 10 + [1] * 10 + [2] * 10


def test_a_crop_knows_which_part_of_the_picture_it_is() -> None:
    shown: list[VisualTokens] = []

    class Place(vtc.Method):
        scope_default = "crop"

        def select(self, tokens: VisualTokens) -> Selection:
            shown.append(tokens)
            return Selection.prune(torch.arange(self.count(tokens)), len(tokens.features))

    film = VisualSpan(0, torch.arange(24), (4, 2, 3), (Tile(0, 4, 2, 3, role="frames"),), modality="video")
    unknown = VisualSpan(0, torch.arange(8), (1, 2, 2), (Tile(0, 1, 2, 2, role="crop", box=None), Tile(4, 1, 2, 2)))
    unknown = replace(unknown, crop=torch.arange(8) // 4)
    for span, crops in ((image(3, 2, 3), 7), (film, 4), (unknown, 2)):
        shown.clear()
        select_scoped(
            Place(keep=crops),
            [VisualTokens(torch.randn(span.tokens, 2), span, torch.arange(span.tokens), {}.__getitem__)],
        )
        assert len(shown) == crops
        for tokens in shown:
            expected = span.boxes()[tokens.span.index]
            torch.testing.assert_close(tokens.span.boxes(), expected, equal_nan=True)
            assert tokens.span.modality == span.modality


@pytest.mark.parametrize("index", [list(range(9, 30)), [4, 12, 13, 15, 22, 29], [15, 22, 29], [0, 15]])
def test_what_an_earlier_stage_has_left(index: list[int]) -> None:
    """Crops share the budget by what is still there of them; newlines alone are left alone."""
    tokens = of(image(3, 2, 1))
    rows = torch.tensor(index)
    left = replace(tokens, features=tokens.features[rows], index=rows)
    size = sum(not tokens.separators[i] for i in index)
    for keep in range(1, len(index) + 1):
        result = select_scoped(vtc.VTCCLS(keep=keep), [left])[0].check()
        assert result.tokens_out == keep
        counts = [sum(int(tokens.span.crop[index[i]]) == c for i in result.anchor.tolist()) for c in range(3)]
        there = [sum(int(tokens.span.crop[i]) == c for i in index) for c in range(3)]
        assert counts == (shares(min(keep, size), there) if size else [0, 0, 0])
