"""hiprune, as its paper defines it: anchors, their neighbours on the grid, and the last layer's best."""

import pytest
import torch

import vtc
from tests.methods.definitions import defines


def define(early, late, h, w, k, alpha):
    order = sorted(range(h * w), key=lambda i: (-float(early[i]), i))
    anchors = order[: round(k * alpha / 5)]
    kept = list(anchors)
    for i in anchors:
        row, column = divmod(i, w)
        for r, c in ((row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)):
            if 0 <= r < h and 0 <= c < w and r * w + c not in kept:
                kept.append(r * w + c)
    kept = kept[:k]
    for i in sorted(range(h * w), key=lambda i: (-float(late[i]), i)):
        if len(kept) < k and i not in kept:
            kept.append(i)
    return sorted(kept)


@defines("hiprune", "alpha", "object_layer")
@pytest.mark.parametrize("alpha", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("keep", [1, 3, 8, 20, 41, 42])
def test_against_the_definition(keep, alpha):
    attention = torch.rand(2, 42, generator=torch.Generator().manual_seed(keep))
    method = vtc.HiPrune(keep=keep, alpha=alpha, object_layer=0.5)
    got = vtc.select(method, torch.randn(42, 3), grid=(1, 6, 7), received_attention=attention)
    assert got.anchor.tolist() == define(attention[0], attention[1], 6, 7, keep, alpha)


def test_neighbours_do_not_wrap_around_at_the_end_of_a_row():
    """The anchor is the last of the second of five rows of four: 3, 11 and 6 are beside it, 8 is not."""
    early, late = torch.zeros(20), torch.zeros(20)
    early[7], late[0] = 1.0, 1.0
    got = vtc.select(
        vtc.HiPrune(keep=5, alpha=1.0),
        torch.randn(20, 3),
        grid=(1, 5, 4),
        received_attention=torch.stack([early, late]),
    )
    assert got.anchor.tolist() == [0, 3, 6, 7, 11]


@defines("hiprune", "object_layer")
def test_the_layers_that_are_read():
    assert vtc.HiPrune().tower_layers(24, 22) == (8, 22)  # the ninth, as released for LLaVA
    assert vtc.HiPrune(object_layer=0.5).tower_layers(32, 31) == (15, 31)  # the sixteenth: Qwen2.5-VL
    assert vtc.HiPrune(object_layer=3).tower_layers(24, 22) == (3, 22)
    assert vtc.HiPrune(object_layer=0.01).tower_layers(24, 22) == (0, 22)
    with pytest.raises(ValueError, match=r"object_layer=24 is outside the vision tower's 24 layers\.$"):
        vtc.HiPrune(object_layer=24).tower_layers(24, 22)


def test_rows_that_are_no_numbers():
    attention = torch.rand(2, 42, generator=torch.Generator().manual_seed(0))
    attention[:, 5] = float("nan")
    got = vtc.select(vtc.HiPrune(keep=20), torch.randn(42, 3), grid=(1, 6, 7), received_attention=attention)
    assert got.tokens_out == 20
    assert 5 not in got.anchor


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"alpha": 2.0}, r"alpha=2.0 is not a number in \[0, 1\]: it is a share of the budget\.$"),
        ({"object_layer": 0.0}, r"object_layer=0.0 is not a number in \(0, 1\]: it is a layer's number"),
        ({"object_layer": -1}, r"object_layer=-1 is not a whole number of 0 or more: it is a layer's number"),
    ],
)
def test_refusals(options, says):
    with pytest.raises(ValueError, match=says):
        vtc.HiPrune(**options)
