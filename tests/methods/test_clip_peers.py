"""vidcom2, fastvid, flashvid: budgets, holes, and what no number should upset."""

import pytest
import torch

import vtc
from tests.families import batch, model_of
from tests.methods.clips import clip_tokens, random_clip, still_clip

HEARD = torch.rand(1, 98, generator=torch.Generator().manual_seed(5))
METHODS = {
    "vidcom2": vtc.VidCom2,
    "fastvid": vtc.FastVID,
    "flashvid": vtc.FlashVID,
    "fastvid, one segment": lambda keep: vtc.FastVID(keep=keep, segments=1, tau=-1.0),
    "flashvid, one segment": lambda keep: vtc.FlashVID(keep=keep, segments=1, scene=-1.0, tau=-1.0, alpha=0.3),
}
CLIPS = {"still": still_clip(8), "random": random_clip(96), "equal": torch.ones(96, 8), "zero": torch.zeros(96, 8)}


def chosen(method, x, grid=(8, 3, 4)):
    return vtc.select(method, x, grid=grid, received_attention=HEARD[:, : len(x)]).check()


@pytest.mark.parametrize("keep", [1, 7, 8, 24, 40, 90, 95, 96, 0.2, 1.0])
@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize("name", METHODS)
def test_budgets_are_exact(name, clip, keep):
    selection = chosen(METHODS[name](keep=keep), CLIPS[clip])
    assert selection.tokens_out == (round(keep * 96) if isinstance(keep, float) else keep)
    if selection.tokens_out == 96:
        assert selection.is_identity


@pytest.mark.parametrize("name", METHODS)
def test_after_an_earlier_stage(name):
    """Frames with holes, one without tokens; separators stay only where the budget is not used up."""
    left = [i for i in (*range(0, 96, 2), *range(31, 60, 2), 96, 97) if not 60 <= i < 72]
    for keep in (1, 20, len(left) - 1, len(left)):
        tokens = clip_tokens(random_clip(98), (8, 3, 4), left, separators=2, signals={"received_attention": HEARD})
        selection = METHODS[name](keep=keep).select(tokens).check()
        assert selection.tokens_out == keep
        assert int((selection.anchor >= len(left) - 2).sum()) == max(0, keep - len(left) + 2)


@pytest.mark.parametrize("grid", [(1, 1, 1), (1, 2, 3), (3, 1, 1)])
@pytest.mark.parametrize("name", METHODS)
def test_small_clips(name, grid):
    n = grid[0] * grid[1] * grid[2]
    for keep in range(1, n + 1):
        assert chosen(METHODS[name](keep=keep), random_clip(n), grid).tokens_out == keep


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", METHODS)
def test_a_row_that_is_no_number_changes_no_count(name, bad):
    x = random_clip(96, seed=2)
    x[13], x[40, 3] = bad, bad
    selection = chosen(METHODS[name](keep=20), x)
    assert selection.tokens_out == 20
    assert selection.anchor.tolist() == chosen(METHODS[name](keep=20), x).anchor.tolist()
    heard = HEARD[:, :96].clone()
    heard[0, 20:30] = bad
    assert vtc.select(METHODS[name](keep=20), x, grid=(8, 3, 4), received_attention=heard).check().tokens_out == 20


def test_vidcom2_gives_most_to_the_frame_unlike_the_clip():
    x = still_clip(8, noise=0.1)
    x[60:72] = random_clip(12, seed=9)  # frame 5
    kept = torch.bincount(chosen(vtc.VidCom2(keep=24), x).anchor // 12, minlength=8).tolist()
    assert max(kept) == kept[5] == 5  # 1 + 1 - 1 / 8 of an even share of 3
    rounded = chosen(vtc.VidCom2(keep=24, exact_count=False), x)
    assert torch.bincount(rounded.anchor // 12, minlength=8)[5] > 3
    assert not vtc.VidCom2(exact_count=False).exact_count


def test_fastvid_cuts_between_scenes():
    """Of two scenes each is a segment; what is not salient joins a peak of its own scene, in one of its frames."""
    x = torch.cat([still_clip(4, noise=0.3, seed=1), still_clip(4, noise=0.3, seed=2)])
    selection = chosen(vtc.FastVID(keep=24, segments=1, tau=0.5), x)
    for output, anchor in enumerate(selection.anchor.tolist()):
        members = (selection.source == output).nonzero()[:, 0]
        assert len(members) == 1 or anchor // 12 in (3, 7)
        assert set((members // 48).tolist()) == {anchor // 48}
    assert (selection.source >= 0).all()  # nothing is lost


def test_flashvid_merges_along_what_moves():
    """Frames of the same scene, moved by a place: a tree follows each token to where it went."""
    still = random_clip(12, seed=4)
    x = torch.cat([still.roll(f, dims=0) for f in range(4)])
    method = vtc.FlashVID(keep=12, alpha=0.0, segments=1, scene=-1.0)
    selection = vtc.select(method, x, grid=(4, 3, 4), received_attention=torch.ones(1, 48)).check()
    assert selection.anchor.tolist() == list(range(12))
    torch.testing.assert_close(selection.apply(x), still)


@pytest.mark.parametrize(
    ("method", "option", "value"),
    [
        ("vidcom2", "channels", 0),
        ("vidcom2", "temperature", 0.0),
        ("vidcom2", "exact_count", 1),
        ("fastvid", "segments", 0),
        ("fastvid", "tau", 1.5),
        ("fastvid", "context", -0.1),
        ("fastvid", "step", 0),
        ("fastvid", "beta", 2),
        ("fastvid", "neighbours", 0.5),
        ("flashvid", "alpha", 1.1),
        ("flashvid", "tau", -2),
        ("flashvid", "scene", 2),
        ("flashvid", "segments", 0),
        ("flashvid", "events", "yes"),
        ("flashvid", "neighbours", 0),
        ("flashvid", "inner", 1.0),
        ("flashvid", "layer", 0),
    ],
)
def test_bad_options(method, option, value):
    with pytest.raises((ValueError, TypeError), match=rf"^{option}=?[^\n]*\.$"):
        vtc.resolve(method, **{option: value})


def test_parts_of_flashvid():
    assert vtc.FlashVID().parts() == (vtc.FlashVID(),)
    for keep, left in ((0.2, 0.06), (30, 9), (1, 1)):
        one, two = vtc.FlashVID(keep=keep, inner=0.3, layer=3).parts()
        assert (one.stage, one.keep, two.stage, two.title) == ("input", keep, "layer", "flashvid")
        assert two.keep == pytest.approx(left)


@pytest.mark.parametrize("method", [vtc.FlashVID, vtc.HoliTom])
def test_what_an_instance_is_that_may_act_inside_the_language_model(method):
    assert (method().query_aware, method().exact_count, method().keeps_all()) == (False, True, True)
    inner = method(inner=0.3)
    assert (inner.query_aware, inner.exact_count, inner.keeps_all()) == (True, False, False)
    first, second = inner.parts()
    assert (first.query_aware, second.query_aware) == (False, True)


def test_flashvid_chooses_none_twice_where_weights_are_negative():
    """Half of the tokens point away from the rest, so that their product with the frames' mean is below 0."""
    x = random_clip(96, seed=7).abs()
    x[::2] *= -0.4
    method = vtc.FlashVID(keep=48, alpha=1.0, segments=1, scene=-1.0)
    selection = chosen(method, x)
    assert len(set(selection.anchor.tolist())) == selection.tokens_out == 48
    assert not selection.merges


@pytest.mark.parametrize("name", ["vidcom2", "fastvid", "flashvid"])
def test_a_batch_is_compressed_like_each_row_alone(name):
    model = model_of("qwen2_5_vl")

    def kept(*rows):
        with vtc.wrapped(model, METHODS[name](keep=0.4)):
            model(**batch("qwen2_5_vl", [*rows]))
            return [span.at(0).kept.tolist() for span in vtc.report(model).spans]

    together = kept(["v0"], ["v2"])
    assert together == kept(["v0"]) + kept(["v2"])
    assert all(len(one) < 100 for one in together)


def test_in_a_model_what_is_left_is_cut_again():
    model, inputs = model_of("qwen2_5_vl"), batch("qwen2_5_vl", [["v0", 0], ["v2"]])
    with vtc.wrapped(model, vtc.FlashVID(keep=12, inner=0.5, layer=1)):
        model(**inputs)
        spans = vtc.report(model).spans
    for span in spans:
        assert (span.tokens_out == 6) == (span.modality == "video")
