"""vtc-cls, as its paper and released code define it: the CLS rows of a range of tower layers, added up."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import vtc
from tests.families import batch, model_of
from tests.methods.definitions import defines


def defined(weights: Any, layers: range, keep: int, own: range) -> list[int]:
    """Section 3: sum over the layers of the mean over heads of CLS attention; the highest, in raster order.

    weights: of each layer, nested lists [heads][T][T] of one crop, the CLS token first.
    """
    score = []
    for place in own:
        rows = [[head[0][1 + place] for head in weights[layer]] for layer in layers]
        score.append(sum(sum(heads) / len(heads) for heads in rows))
    best = sorted(own, key=lambda place: (-score[place - own.start], place))
    return sorted(best[:keep])


def weights_of(model: Any, pixels: torch.Tensor) -> Any:
    """[layers][crops][heads][T][T] of the tower's own attention."""
    attentions = model.model.vision_tower(pixels, output_attentions=True).attentions
    return [layer.double().tolist() for layer in attentions]


@defines("vtc-cls", "start_layer")
@pytest.mark.parametrize("keep", [1, 8, 30])
@pytest.mark.parametrize(("start_layer", "first"), [(0, 0), (1, 1), (0.5, 1), (0.4, 1), (2, 1)])
def test_the_layers_from_the_start_to_the_features(start_layer: Any, first: int, keep: int) -> None:
    """A tower of three layers whose second one's output is projected; a later start means that one alone."""
    model, inputs = model_of("llava", "eager"), batch("llava", [[5]])
    weights = [layer[0] for layer in weights_of(model, inputs["pixel_values"])]
    with torch.no_grad(), vtc.wrapped(model, vtc.VTCCLS(keep=keep, start_layer=start_layer)):
        model(**inputs)
        kept = vtc.report(model).spans[0].kept.tolist()
    assert kept == defined(weights, range(first, 2), keep, range(36))


@defines("vtc-cls", "scope")
def test_each_crop_has_its_share() -> None:
    """Our extension to any-resolution images: the thumbnail (the tower's first picture) chooses for itself."""
    model, inputs = model_of("llava_next", "eager"), batch("llava_next", [[1]])
    weights = [layer[0] for layer in weights_of(model, inputs["pixel_values"][0, :1])]
    with torch.no_grad(), vtc.wrapped(model, vtc.VTCCLS(keep=0.25, start_layer=0, scope="crop")):
        model(**inputs)
        span = vtc.report(model).spans[0]
    kept = [place for place in span.kept.tolist() if place < 36]
    patches = span.tokens_in - 12  # as many rows, each with a newline
    assert abs(len(kept) - round(0.25 * span.tokens_in) * 36 / patches) < 1
    assert kept == defined(weights, range(2), len(kept), range(36))
