"""HoliTom: where it cuts the clip, and what it keeps of the parts."""

from itertools import combinations, pairwise

import pytest
import torch

import vtc
from tests.families import batch, model_of
from tests.methods.clips import clip_tokens, random_clip, still_clip
from vtc.methods.holitom import best_runs

HEARD = torch.rand(1, 98, generator=torch.Generator().manual_seed(5))


def saved(alike, runs):
    return sum((b - a - 1) * int(alike[a : b - 1].all(dim=0).sum()) for a, b in runs if b - a > 1)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("longest", [None, 1, 3])
def test_no_other_cut_saves_more(seed, longest):
    alike = torch.rand(6, 9, generator=torch.Generator().manual_seed(seed)) < 0.75
    runs = best_runs(alike, longest)
    assert [a for a, _ in runs] == [0, *(b for _, b in runs[:-1])]
    assert runs[-1][1] == 7
    best = 0
    for few in range(7):
        for edges in combinations(range(1, 7), few):
            cut = list(pairwise([0, *edges, 7]))
            if longest is None or all(b - a <= longest for a, b in cut):
                best = max(best, saved(alike, cut))
    assert saved(alike, runs) == best
    assert longest is None or max(b - a for a, b in runs) <= longest


def test_scenes_are_segments():
    alike = torch.ones(7, 9, dtype=torch.bool)
    assert best_runs(alike) == [(0, 8)]
    alike[2] = False
    assert best_runs(alike) == [(0, 3), (3, 8)]
    assert best_runs(torch.zeros(0, 9, dtype=torch.bool)) == [(0, 1)]


@pytest.mark.parametrize("context", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("keep", [1, 8, 24, 40, 90, 95, 96, 0.2, 1.0])
@pytest.mark.parametrize("x", [still_clip(8), random_clip(96), torch.ones(96, 8)])
def test_budgets_are_exact(x, keep, context):
    method = vtc.HoliTom(keep=keep, context=context)
    selection = vtc.select(method, x, grid=(8, 3, 4), received_attention=HEARD[:, :96])
    assert selection.tokens_out == (round(keep * 96) if isinstance(keep, float) else keep)
    if selection.tokens_out == 96:
        assert selection.is_identity


def test_moving_tokens_stay_by_attention():
    """Nothing stands still: each frame keeps an even share, the tokens that the tower looks at most."""
    selection = vtc.select(
        vtc.HoliTom(keep=32, tau=1.0), random_clip(96), grid=(8, 3, 4), received_attention=HEARD[:, :96]
    )
    expected = [f * 12 + int(i) for f in range(8) for i in HEARD[0, f * 12 : f * 12 + 12].topk(4).indices.sort().values]
    assert selection.anchor.tolist() == expected
    assert not selection.merges


def test_a_still_scene_is_one_average():
    x = still_clip(8)
    selection = vtc.select(vtc.HoliTom(keep=12), x, grid=(8, 3, 4), received_attention=HEARD[:, :96])
    assert selection.anchor.tolist() == list(range(12))
    torch.testing.assert_close(selection.apply(x), x.view(8, 12, 8).mean(dim=0))


def test_after_an_earlier_stage():
    left = sorted({*range(0, 96, 2), *range(30, 60), 97})
    for keep in (1, 20, len(left)):
        tokens = clip_tokens(random_clip(98), (8, 3, 4), left, separators=2, signals={"received_attention": HEARD})
        assert vtc.HoliTom(keep=keep, tau=0.0, context=0.3).select(tokens).check().tokens_out == keep


@pytest.mark.parametrize(
    "options",
    [
        {"tau": 2.0},
        {"context": -0.5},
        {"longest": 0},
        {"neighbours": 0},
        {"centre": 1.5},
        {"inner": 1.0},
        {"inner": 0},
        {"layer": 0},
    ],
)
def test_bad_options(options):
    (name,) = options
    with pytest.raises(ValueError, match=rf"^{name}=[^\n]*\.$"):
        vtc.HoliTom(**options)


def test_parts():
    """What merges inside the language model comes off what `keep` lets in."""
    assert vtc.HoliTom().parts() == (vtc.HoliTom(),)
    for keep, left in ((0.2, 0.1), (30, 15), (1, 1)):
        one, two = vtc.HoliTom(keep=keep, inner=0.5, layer=3).parts()
        assert (one.stage, one.keep, two.stage, two.keep) == ("input", keep, "layer", left)
        assert two.steps(28) == (3,)  # type: ignore[attr-defined]
    assert vtc.HoliTom(inner=0.5).parts()[1].steps(28) == (18,)  # type: ignore[attr-defined]


@pytest.mark.parametrize("family", ["llava_onevision", "qwen2_5_vl"])
def test_in_a_model_half_of_what_is_left_merges(family):
    model, inputs = model_of(family), batch(family, [["v0", 0], ["v2"]])
    with vtc.wrapped(model, vtc.HoliTom(keep=13, inner=0.4, layer=1)):
        model(**inputs)
        spans = vtc.report(model).spans
    for span in spans:
        assert (span.tokens_out == 8) == (span.modality == "video")
        if span.modality == "video":
            assert len(span.steps[0][1]) == 13
            assert (span.source >= 0).sum() == (span.steps[0][2] >= 0).sum()  # none is dropped
