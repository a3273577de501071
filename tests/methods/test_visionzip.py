"""visionzip: dominant tokens, and contextual ones that absorb the rest."""

import pytest
import torch

import vtc
from vtc.layout import Tile, VisualSpan
from vtc.signals import VisualTokens


def define(x, attention, keys, dominant, contextual):
    """methods.md, Part B: outputs [dominant + contextual, D] of the released algorithm, and where they stand."""
    n = len(x)
    strongest = sorted(sorted(range(n), key=lambda j: (-float(attention[j]), j))[:dominant])
    rest = [j for j in range(n) if j not in strongest]
    step = max(1, len(rest) // contextual)
    targets = rest[::step][:contextual]
    absorbed = {t: [] for t in targets}
    for j in rest:
        if j not in targets:
            similarity = [float(torch.cosine_similarity(keys[j], keys[t], dim=0)) for t in targets]
            absorbed[targets[similarity.index(max(similarity))]].append(j)
    out = [x[j] for j in strongest]
    for t in targets:
        out.append(x[t] + (x[absorbed[t]].mean(0) if absorbed[t] else 0))
    return torch.stack(out), strongest + targets


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("dominant", "contextual"), [(1, 1), (5, 3), (54, 10), (20, 79), (1, 98)])
def test_against_the_definition(seed, dominant, contextual):
    g = torch.Generator().manual_seed(seed)
    x, keys = torch.randn(100, 6, generator=g), torch.randn(100, 4, generator=g)
    attention = torch.rand(100, generator=g)
    k = dominant + contextual
    selection = vtc.select(vtc.VisionZip(keep=k, contextual=contextual / k), x, cls_attention=attention, keys=keys)
    out, where = define(x.double(), attention, keys.double(), dominant, contextual)
    assert selection.anchor.tolist() == where
    torch.testing.assert_close(selection.apply(x).double(), out, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("keep", "contextual"), [(64, 10), (128, 20), (192, 30)])
def test_the_papers_budgets(keep, contextual):
    x, attention = torch.randn(576, 4), torch.rand(576)
    selection = vtc.select(vtc.VisionZip(keep=keep), x, cls_attention=attention, keys=torch.randn(576, 4))
    assert selection.tokens_out == keep
    assert selection.anchor[: keep - contextual].tolist() == sorted(attention.topk(keep - contextual).indices.tolist())
    assert (selection.source >= 0).all()


def test_without_contextual_tokens_it_prunes():
    selection = vtc.select(vtc.VisionZip(keep=3, contextual=0), torch.randn(9, 2), cls_attention=torch.arange(9.0))
    assert not selection.merges
    assert selection.anchor.tolist() == [6, 7, 8]


def test_equal_keys_all_go_to_the_first_target():
    x, keys = torch.ones(10, 2), torch.ones(10, 3)
    method = vtc.VisionZip(keep=4, contextual=0.5)
    selection = vtc.select(method, x, cls_attention=torch.ones(10), keys=keys)
    assert selection.anchor.tolist() == [0, 1, 2, 6]
    assert selection.source.tolist() == [0, 1, 2, 2, 2, 2, 3, 2, 2, 2]


def test_separators_are_dropped_and_not_merged():
    span = VisualSpan(row=0, index=torch.arange(20), grid=(1, 4, 4), tiles=(Tile(0, 1, 4, 4, newline=True),))
    attention = torch.rand(1, 20).masked_fill(span.separators, 0.0)
    signals = {"cls_attention": attention, "keys": torch.randn(20, 3).masked_fill(span.separators[:, None], 0.0)}
    for keep in range(1, 17):
        tokens = VisualTokens(torch.randn(20, 3), span, torch.arange(20), signals.__getitem__)
        selection = vtc.VisionZip(keep=keep, contextual=0.5).select(tokens).check()
        assert selection.tokens_out == keep
        assert (selection.source[span.separators] == -1).all()
    for keep in range(17, 21):
        tokens = VisualTokens(torch.randn(20, 3), span, torch.arange(20), signals.__getitem__)
        assert vtc.VisionZip(keep=keep, contextual=0.5).select(tokens).check().tokens_out == keep


@pytest.mark.parametrize("keep", [1, 2, 7, 63, 0.1, 0.25, 0.5, 0.99])
def test_both_kinds_are_in_raster_order(keep):
    x, attention, keys = torch.randn(64, 4), torch.rand(64), torch.randn(64, 4)
    anchor = vtc.select(vtc.VisionZip(keep=keep), x, cls_attention=attention, keys=keys).anchor.tolist()
    dominant = len(anchor) - min(round(10 / 64 * len(anchor)), len(anchor) - 1)
    assert anchor[:dominant] == sorted(anchor[:dominant])
    assert anchor[dominant:] == sorted(anchor[dominant:])
