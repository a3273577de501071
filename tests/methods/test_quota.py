"""QuoTA: how the budget is shared over frames, and how frames are compressed to their shares."""

import pytest
import torch

import vtc
from tests.families import batch, model_of
from tests.methods.clips import clip_tokens, cosine, random_clip
from vtc.methods.quota import relative
from vtc.methods.shared.clips import share_out

TEXT = torch.randn(5, 8, generator=torch.Generator().manual_seed(9))


def frames_of(selection, t, hw):
    return torch.bincount(selection.anchor // hw, minlength=t).tolist()


@pytest.mark.parametrize(
    ("total", "weights", "sizes", "least", "shares"),
    [
        (10, [1, 1, 2], [9, 9, 9], 0, [3, 2, 5]),  # 2.5, 2.5, 5: the first of equal remainders
        (10, [0, 1, 3], [9, 9, 9], 1, [1, 3, 6]),  # 1 each, then 1.75 and 5.25
        (10, [0, 1, 3], [9, 9, 4], 0, [0, 6, 4]),  # what does not fit goes to the others
        (10, [0, 0, 1], [9, 9, 4], 0, [3, 3, 4]),
        (2, [1, 2, 3], [9, 9, 9], 1, [0, 1, 1]),  # too few for everyone's least
        (99, [1, 2, 3], [4, 0, 9], 1, [4, 0, 9]),
        (0, [1.0], [4], 1, [0]),
        (7, [0.0, 0.0], [4, 4], 0, [4, 3]),
    ],
)
def test_shares(total, weights, sizes, least, shares):
    assert share_out(total, weights, sizes, least) == shares


def test_shares_are_exact_and_within_a_token_of_their_weight():
    g = torch.Generator().manual_seed(0)
    for _ in range(200):
        sizes = torch.randint(0, 30, (7,), generator=g).tolist()
        weights = torch.rand(7, generator=g).tolist()
        total = int(torch.randint(0, sum(sizes) + 1, (), generator=g))
        shares = share_out(total, weights, sizes)
        assert sum(shares) == total
        assert all(0 <= share <= size for share, size in zip(shares, sizes, strict=True))
        room = [i for i in range(7) if shares[i] < sizes[i]]  # in proportion among those that are not full
        rate = sum(shares[i] for i in room) / max(sum(weights[i] for i in room), 1e-9)
        assert all(abs(shares[i] - rate * weights[i]) < 1 for i in room)


@pytest.mark.parametrize("within", ["pool", "divprune", "uniform"])
@pytest.mark.parametrize("keep", [1, 4, 5, 17, 0.4, 95, 96])
def test_frames_get_by_relevance(within, keep):
    """A scorer's weights squared, one token each at least."""
    scores = torch.tensor([0.1, 0.9, 0.0, 0.5, 0.2, 0.2, 0.7, 0.3])
    method = vtc.QuoTA(keep=keep, within=within, scorer=lambda tokens: scores)
    selection = vtc.select(method, random_clip(96), grid=(8, 3, 4))
    count = round(keep * 96) if isinstance(keep, float) else keep
    assert frames_of(selection, 8, 12) == share_out(count, scores.double().square().tolist(), [12] * 8, 1)
    if count == 96:
        assert selection.is_identity


def test_the_models_own_judgement():
    """For each word the most similar token of a frame, averaged over words; then compared between frames."""
    x = random_clip(96)
    best = [
        sum(max(cosine(x[i], word) for i in range(12 * f, 12 * f + 12)) for word in TEXT) / len(TEXT) for f in range(8)
    ]
    weights = relative(torch.tensor(best)) ** 2
    selection = vtc.select(vtc.QuoTA(keep=30), x, grid=(8, 3, 4), text=TEXT)
    assert frames_of(selection, 8, 12) == share_out(30, weights.tolist(), [12] * 8, 1)
    x[5 * 12 + 3] = 3 * TEXT[0]
    x[5 * 12 + 7] = 3 * TEXT[1]
    favoured = vtc.select(vtc.QuoTA(keep=30, power=6.0), x, grid=(8, 3, 4), text=TEXT)
    assert max(frames_of(favoured, 8, 12)) == frames_of(favoured, 8, 12)[5]


def test_relative():
    assert relative(torch.full((4,), 0.3)).tolist() == [0.5] * 4
    scores = relative(torch.tensor([1.0, 3.0]))
    torch.testing.assert_close(scores, torch.tensor([-1.0, 1.0]).double().sigmoid())


def test_pooling_is_that_of_pool():
    x = random_clip(96)
    scores = torch.arange(1.0, 9.0)
    selection = vtc.select(vtc.QuoTA(keep=40, scorer=lambda tokens: scores), x, grid=(8, 3, 4))
    out = selection.apply(x)
    start = 0
    for f, share in enumerate(frames_of(selection, 8, 12)):
        own = vtc.select(vtc.Pool(keep=share), x[12 * f : 12 * f + 12], grid=(1, 3, 4))
        torch.testing.assert_close(out[start : start + share], own.apply(x[12 * f : 12 * f + 12]))
        assert (selection.anchor[start : start + share] - 12 * f).tolist() == own.anchor.tolist()
        start += share


def test_scores_of_more_frames_than_the_grid_has():
    """Qwen's towers look at two frames at once."""
    scores = torch.tensor([0.2, 0.4, 1.0, 0.0])
    half = vtc.select(vtc.QuoTA(keep=20, scorer=lambda tokens: scores), random_clip(48), grid=(2, 4, 6))
    assert frames_of(half, 2, 24) == share_out(20, [0.3**2, 0.5**2], [24, 24], 1)


@pytest.mark.parametrize("within", ["pool", "divprune", "uniform"])
def test_after_an_earlier_stage(within):
    left = sorted({*range(0, 60, 3), *range(72, 96), 96})  # nothing of frame 5
    method = vtc.QuoTA(keep=20, within=within)
    tokens = clip_tokens(random_clip(97), (8, 3, 4), left, separators=1, signals={"text": TEXT})
    selection = method.select(tokens).check()
    assert selection.tokens_out == 20
    assert selection.source[-1] == -1


@pytest.mark.parametrize("family", ["llava_onevision", "qwen2_5_vl"])
def test_two_questions_about_one_video(family):
    """Rows of a batch that show the same video may keep different tokens of it: the question decides."""
    model, one = model_of(family), batch(family, [["v0"]])
    inputs = batch(family, [["v0"], ["v0"]])
    names = ("pixel_values_videos", "video_grid_thw", "second_per_grid_ts")
    vision = {name: one[name] for name in names if name in one}
    encoded = vtc.encode(model, "quota", **vision)
    inputs = {name: value for name, value in inputs.items() if name not in names}
    inputs["input_ids"][1, -5:] = torch.tensor([60, 61, 62, 63, 64])
    with vtc.wrapped(model, vtc.QuoTA(keep=0.4, power=30.0, least=0)):
        model(**inputs, **encoded.take([0, 0]))
        first, second = vtc.report(model).spans
    assert first.tokens_out == second.tokens_out == round(0.4 * first.tokens_in)
    assert first.kept.tolist() != second.kept.tolist()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"within": "bilinear"}, "within='bilinear' is not one of"),
        ({"scorer": [1.0]}, "is not a function"),
        ({"least": -1}, "least=-1 is not a whole number of 0 or more: it is a number of tokens"),
        ({"power": -1.0}, "power=-1.0 is not a number in"),
    ],
)
def test_bad_options(options, says):
    with pytest.raises((ValueError, TypeError), match=says):
        vtc.QuoTA(**options)


@pytest.mark.parametrize("scores", [[-1.0, 1.0], [float("nan")], [[1.0]], []])
def test_bad_scores(scores):
    method = vtc.QuoTA(scorer=lambda tokens: torch.tensor(scores))
    with pytest.raises(ValueError, match=r"^scorer= returned [^\n]*expected one number >= 0 per frame"):
        vtc.select(method, random_clip(24), grid=(2, 3, 4))
