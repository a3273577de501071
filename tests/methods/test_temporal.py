"""evs and uniform-frames: which tokens of a clip stay; and what holds for every temporal method."""

import copy

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import vtc
from tests.families import batch, model_of
from vtc.layout import Tile, VisualSpan
from vtc.methods.shared.clips import cosines, frame_rows
from vtc.signals import VisualTokens


def clip(t=6, h=3, w=4, seed=0):
    """Tokens of a still scene, [t * h * w, 8]: every frame the same but for a little noise."""
    g = torch.Generator().manual_seed(seed)
    still = torch.randn(1, h * w, 8, generator=g).expand(t, -1, -1)
    return (still + 0.01 * torch.randn(t, h * w, 8, generator=g)).flatten(0, 1)


def test_evs_finds_what_moves():
    x = clip()
    moved = [3 * 12 + 5, 4 * 12 + 6, 5 * 12 + 7]
    x[moved] = -x[moved]
    selection = vtc.select("evs", x, grid=(6, 3, 4), keep=12 + 5)
    # what appears is new; what it uncovers one frame later is, too
    assert set(moved) <= set(selection.anchor.tolist())


def test_evs_on_short_clips():
    """vLLM's rule keeps nothing but the first frame; with `first` the budget is exact and shared."""
    x = torch.randn(24, 8, generator=torch.Generator().manual_seed(0))
    assert vtc.select("evs", x, grid=(2, 3, 4), keep=6).anchor.tolist() == list(range(12))
    shared = vtc.select(vtc.EVS(keep=6, first=0.5), x, grid=(2, 3, 4))
    assert shared.tokens_out == 6
    assert int((shared.anchor < 12).sum()) == 3


@pytest.mark.parametrize("first", [0.0, 1.5, True])
def test_evs_refuses(first):
    with pytest.raises((ValueError, TypeError), match=rf"^first={first} is not a number in "):
        vtc.EVS(first=first)


@pytest.mark.parametrize(
    ("keep", "frames"), [(12, [3]), (1, [3]), (30, [1, 4]), (36, [1, 3, 5]), (72, [0, 1, 2, 3, 4, 5])]
)
def test_uniform_frames(keep, frames):
    selection = vtc.select("uniform-frames", clip(), grid=(6, 3, 4), keep=keep)
    assert selection.anchor.tolist() == [12 * f + i for f in frames for i in range(12)]


@pytest.mark.parametrize(("grid", "first"), [((1, 4, 6), 0.5), ((2, 3, 4), 0.1), ((8, 3, 7), 0.25), ((3, 1, 1), 1 / 3)])
def test_evs_with_a_shared_budget_keeps_to_it(grid, first):
    n = grid[0] * grid[1] * grid[2]
    for keep in range(1, n + 1):
        found = vtc.select(vtc.EVS(keep=keep, first=first), torch.randn(n, 8), grid=grid)
        assert found.tokens_out == keep


@pytest.mark.parametrize("name", ["evs", "uniform-frames"])
def test_separators_go_first_and_what_is_gone_is_no_trouble(name):
    """A clip of 4 frames of 2 x 2 and one newline, of which an earlier stage has left every third token."""
    span = VisualSpan(0, torch.arange(17), (4, 2, 2), (Tile(0, 4, 2, 2, role="frames"),), modality="video")
    x = torch.randn(17, 8, generator=torch.Generator().manual_seed(0))

    def read(signal):
        raise AssertionError(signal)

    whole = vtc.EVS(keep=10) if name == "evs" else vtc.UniformFrames(keep=10)
    assert 16 not in whole.select(VisualTokens(x, span, torch.arange(17), read)).anchor.tolist()
    index = torch.arange(0, 17, 3)
    selection = whole.select(VisualTokens(x[index], span, index, read)).check()
    assert 0 < selection.tokens_out <= len(index)


def test_frame_by_frame_is_each_frame_for_itself():
    x = torch.randn(60, 8, generator=torch.Generator().manual_seed(0))
    attention = torch.rand(60, generator=torch.Generator().manual_seed(1))
    selection = vtc.select(vtc.VTCCLS(keep=12, scope="frame"), x, grid=(5, 3, 4), cls_attention=attention)
    expected = []
    for frame, few in enumerate([3, 3, 2, 2, 2]):  # 12 in 5 frames
        own = vtc.select("vtc-cls", x[:12], keep=few, cls_attention=attention[12 * frame : 12 * frame + 12])
        expected += [12 * frame + i for i in own.anchor.tolist()]
    assert selection.anchor.tolist() == expected


def test_merging_stays_within_a_frame():
    x = torch.randn(60, 8, generator=torch.Generator().manual_seed(0))
    selection = vtc.select(vtc.ToMe(keep=15, scope="frame"), x, grid=(5, 3, 4))
    assert (selection.anchor[selection.source] // 12).tolist() == [i // 12 for i in range(60)]


@pytest.mark.parametrize(("method", "scope"), [(vtc.DivPrune, "image"), (vtc.FastV, "frame"), (vtc.H2O, "clip")])
def test_scopes_that_are_none(method, scope):
    with pytest.raises(ValueError, match=f"scope='{scope}' is not one of"):
        method(scope=scope)


TEMPORAL = [
    "dycoke",
    "evs",
    "fastvid",
    "flashvid",
    "framededupe",
    "framefusion",
    "holitom",
    "prunevid",
    "quota",
    "uniform-frames",
    "vidcom2",
]


def test_temporal_methods_say_so():
    infos = {info.name: info for info in vtc.list_methods()}
    assert sorted(name for name, info in infos.items() if info.modality == ("video",)) == TEMPORAL
    assert infos["dycoke"].stage == "input+cache"
    assert infos["framefusion"].stage == "input+layer"
    assert infos["prunevid"].stage == "input+layer+cache"


@pytest.mark.parametrize("name", TEMPORAL)
def test_on_a_picture_they_say_that_nothing_happened(name):
    model = model_of("qwen2_5_vl")
    with vtc.wrapped(model, [name, "fastv(layers=(1,))"] if name == "evs" else name):
        model(**batch("qwen2_5_vl", [[0]]), use_cache=True)
        said = f"{name} is for videos, and there are only pictures here: it changed nothing."
        assert vtc.report(model).notes[:1] == [said]
        assert said in str(vtc.report(model)).replace("\n", " ")
        model(**batch("qwen2_5_vl", [[0], ["v0"]]), use_cache=True)
        assert not any("changed nothing" in note for note in vtc.report(model).notes)


@pytest.mark.parametrize("family", ["llava", "llava_next", "paddleocr_vl", "mistral3"])
@pytest.mark.parametrize("name", ["evs", "dycoke", "framefusion"])
def test_on_a_family_without_videos_they_are_refused(family, name):
    with pytest.raises(ValueError, match=rf"^{name} is for videos, and {family} reads none: .*divprune\.$"):
        vtc.wrap(model_of(family), name)


@pytest.mark.parametrize(
    ("family", "name"),
    [
        (family, name)
        for family in ("llava_onevision", "qwen3_vl")
        for name in TEMPORAL
        if family.startswith("qwen") or name != "framededupe"  # whose frames are pictures of their own to the tower
    ],
)
def test_half_precision_keeps_as_many(family, name):
    model, inputs = model_of(family), batch(family, [["v0", 0], ["v2"]])
    half = copy.deepcopy(model).bfloat16()
    how = dict(max_new_tokens=4, do_sample=False)
    with vtc.wrapped(model, name, keep=0.4):
        model.generate(**inputs, **how)
        expected = [span.tokens_out for span in vtc.report(model).spans]
    with vtc.wrapped(half, name, keep=0.4):
        ids = half.generate(**inputs, **how)
        assert [span.tokens_out for span in vtc.report(half).spans] == expected
    assert ids.shape[1] == inputs["input_ids"].shape[1] + 4


@pytest.mark.parametrize("name", TEMPORAL)
def test_a_clip_of_one_frame(name):
    """Nothing to compare it with: the budget is kept, or the whole frame where the method keeps first frames whole."""
    x = torch.randn(24, 8, generator=torch.Generator().manual_seed(0))
    heard = torch.rand(24, generator=torch.Generator().manual_seed(1))
    text = torch.randn(3, 8, generator=torch.Generator().manual_seed(2))
    selection = vtc.select(name, x, grid=(1, 4, 6), keep=8, received_attention=heard, text=text)
    whole = name in ("evs", "uniform-frames", "framededupe", "framefusion")  # the last prunes inside the LLM
    assert selection.tokens_out == (24 if whole else 20 if name == "prunevid" else 8)


@pytest.mark.parametrize("back", [None, (1,), (0, 1, 2, 1), (0, 1), (0, 3, 0, 1, 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("left", ["all", "every third", "newlines"])
def test_cosines_between_frames(monkeypatch, back, dtype, left):
    """Two by two, whether the clip is whole or not, in blocks of any size; -2 without a counterpart."""
    tile = Tile(2, 7, 3, 4, newline=left == "newlines", role="frames")
    span = VisualSpan(0, torch.arange(2 + tile.length + 1), (7, 3, 4), (tile,), modality="video")
    index = torch.arange(0, span.tokens, 3) if left == "every third" else torch.arange(span.tokens)
    x = torch.randn(span.tokens, 8, generator=torch.Generator().manual_seed(0)).to(dtype)[index]
    tokens = VisualTokens(x, span, index, lambda signal: torch.empty(0))
    here = {int(i): x[n].double() for n, i in enumerate(index)}
    places = tile.indices().flatten(1).tolist()  # [T, P]
    expected = torch.full((7, 12), -2.0)
    for f in range(7):
        for p in range(12):
            ago = range(1, f + 1) if back is None else [back[f % len(back)]]
            seen = [places[f - a][p] for a in ago if 0 < a <= f and places[f - a][p] in here]
            if seen and places[f][p] in here:
                a, b = here[places[f][p]], here[seen[0]]
                expected[f, p] = float(a @ b) / (float(a @ a) * float(b @ b)) ** 0.5
    for size in (1, 8 * 12 * 3, 2**20):
        monkeypatch.setattr("vtc.methods.shared.clips.IN_CACHE", size)
        torch.testing.assert_close(cosines(tokens, frame_rows(tokens), back), expected, atol=1e-6, rtol=0)


def test_cosines_copy_no_clip():
    """The largest thing made of a half-precision clip of 16 frames is a block of it."""

    class Largest(TorchDispatchMode):
        largest = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor) and out.dtype == torch.float32:
                self.largest = max(self.largest, out.numel())
            return out

    x = torch.zeros(16 * 4 * 4, 2**17, dtype=torch.bfloat16)
    for method in (vtc.EVS(), vtc.DyCoke(p=None)):
        with Largest() as seen:
            vtc.select(method, x, grid=(16, 4, 4))
        assert seen.largest <= 4 * 16 * 2**17
