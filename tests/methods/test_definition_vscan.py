"""vscan, as its paper and released code define it: windows, the whole grid, means, and the cut."""

import pytest
import torch

import vtc
from tests.methods.definitions import defines
from tests.methods.eager import eager
from tests.methods.plain import best, cosine, rows, shares
from vtc.layout import single_span
from vtc.methods.vscan import Cut, Scan
from vtc.signals import VisualTokens


def define(x, early, late, h, w, k, local, side):
    """(kept, outputs) of the stage before the language model."""
    windows = [
        [r * w + c for r in range(top, min(top + side, h)) for c in range(left, min(left + side, w))]
        for top in range(0, h, side)
        for left in range(0, w, side)
    ]
    few = int(k * local)
    kept = []
    for own, count in zip(windows, shares(few, [len(own) for own in windows]), strict=True):
        kept += [own[i] for i in best([early[j] for j in own], count)]
    others = [i for i in range(h * w) if i not in kept]
    kept = sorted(kept + [others[i] for i in best([late[j] for j in others], k - few)])
    groups = {i: [i] for i in kept}
    for j in range(h * w):
        if j not in groups:
            groups[max(kept, key=lambda i: (cosine(x[j], x[i]), -i))].append(j)
    return kept, [[sum(x[j][c] for j in groups[i]) / len(groups[i]) for c in range(len(x[0]))] for i in kept]


def nothing_read(total, depth=0):
    signals: dict[str, torch.Tensor] = {}
    index = torch.arange(total)
    return VisualTokens(torch.zeros(total, 1), single_span(total, None), index, signals.__getitem__, depth=depth)


@defines("vscan", "local", "window", "average")
@pytest.mark.parametrize("local", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("window", [2, 4, 100])
@pytest.mark.parametrize("keep", [1, 3, 7])
def test_the_scan_against_the_definition(keep, window, local):
    """Three times as many as are left after the cut; counts that windows cannot share evenly are exact, too."""
    g = torch.Generator().manual_seed(keep)
    x, attention = torch.randn(42, 4, generator=g), torch.rand(2, 42, generator=g)
    method = vtc.VScan(keep=keep, average=False, local=local, window=window)
    got = vtc.select(method, x, grid=(1, 6, 7), cls_attention=attention)
    early, late = attention.double().tolist()
    kept, outputs = define(rows(x), early, late, 6, 7, 3 * keep, local, window)
    assert got.anchor.tolist() == kept
    torch.testing.assert_close(got.apply(x).double(), torch.tensor(outputs).double(), atol=1e-5, rtol=1e-5)


@defines("vscan", "average", "cut")
@pytest.mark.parametrize("cut", [0.25, 0.5])
@pytest.mark.parametrize("keep", [1, 16, 64, 0.5, 500, 1.0])
@pytest.mark.parametrize("depth", [2, 3, 7, 32])
def test_the_average_over_the_layers(keep, cut, depth):
    """As released: 96 tokens, and 32 from the middle on, are 64. In shallow models the cut is where a layer begins."""
    total = 576
    wanted = keep if isinstance(keep, int) else round(keep * total)
    first, second = vtc.VScan(keep=keep, cut=cut).parts()
    assert isinstance(first, Scan)
    assert isinstance(second, Cut)
    before = first.count(nothing_read(total, depth))
    (after,), (layer,) = second.counts(total, depth), second.steps(depth)
    assert layer == max(1, round(cut * depth))
    assert abs(before * layer + after * (depth - layer) - wanted * depth) <= depth / 2
    assert after <= before <= total
    if (keep, cut, depth) == (64, 0.5, 32):
        assert (before, after) == (96, 32)


@defines("vscan", "average")
def test_what_is_left_at_the_end():
    first, second = vtc.VScan(keep=32, average=False).parts()
    assert (first.count(nothing_read(576)), *second.counts(576, 32)) == (96, 32)  # type: ignore[attr-defined]


@defines("vscan", "shallow")
def test_the_layers_that_are_read():
    def layers(depth, last, **options):
        return vtc.VScan(**options).parts()[0].tower_layers(depth, last)

    assert layers(24, 22) == (5, 22)  # as released for LLaVA
    assert layers(32, 31) == (7, 31)  # the first of Qwen2.5-VL's blocks in which all patches see each other
    assert layers(24, 22, shallow=3) == (3, 22)
    assert vtc.VScan(keep=0.5).parts()[0].tower_layers(1, 0) == (0, 0)  # a share of one layer is that layer
    with pytest.raises(ValueError, match=r"shallow=24 is outside the vision tower's 24 layers\.$"):
        layers(24, 22, shallow=24)


@defines("vscan", "cut", "shallow", "window")
def test_the_cut_in_a_model():
    """The attention of the prompt's last token in the layer about to run, among the tokens of the scan."""
    seen = eager()
    attention = seen.attention[1].mean(dim=0)[-1].tolist()
    scores = [attention[i] for i in seen.visual]
    cut = vtc.VScan(keep=9, average=False, cut=0.4, shallow=0, window=3).parts()[1]
    assert seen.kept(cut) == best(scores, 9)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"local": 1.5}, r"local=1.5 is not a number in \[0, 1\]: it is a share of the kept tokens\.$"),
        ({"window": 0}, r"window=0 is not a whole number of 1 or more: it is a number of tokens\.$"),
        ({"cut": 1.0}, r"cut=1.0 is not a number in \(0, 1\): it is a share of the decoder layers\.$"),
        ({"shallow": -1}, r"shallow=-1 is not a whole number of 0 or more: it is a layer's number"),
        ({"shallow": 1.0}, r"shallow=1.0 is not a number in \[0, 1\): it is a layer's number"),
    ],
)
def test_refusals(options, says):
    with pytest.raises(ValueError, match=says):
        vtc.VScan(**options)
