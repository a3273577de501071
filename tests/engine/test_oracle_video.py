"""The proof for videos: methods of every stage equal the full-length model that cannot see the dropped tokens."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import vtc
from tests.engine.test_oracle import GREEDY, equal_to_oracle
from tests.engine.test_oracle_inside import ALL, LAYERS
from tests.engine.test_oracle_inside import equal_to_oracle as inside_equal
from tests.families import FAMILIES, batch, model_of

pytestmark = pytest.mark.sampled(most=0.08)

VIDEOS = [name for name, family in FAMILIES.items() if family.videos is not None]
BATCHES: dict[str, tuple[list[list[int | str]], str]] = {
    "one video": ([["v0"]], "left"),
    "two videos": ([["v1", "v2"]], "left"),
    "image, then video": ([[0, "v0"]], "left"),
    "video, then image": ([["v0", 1]], "left"),
    "left padded, of each kind": ([["v0"], [2], ["v1", 1], []], "left"),
    "right padded, unequal": ([["v0", "v2"], ["v1"]], "right"),
}
METHODS = [
    "random",
    "pool",
    "vtc-cls",
    "divprune",
    "visionzip",
    "tome",
    "vqtoken",
    vtc.VQToken(mode="hash", cells=(2, 3, 3)),
]
TEMPORAL: dict[str, Any] = {
    "evs": lambda **o: vtc.EVS(keep=0.3, **o),
    "evs, first shared": lambda **o: vtc.EVS(keep=0.3, first=0.5, **o),
    "uniform-frames": lambda **o: vtc.UniformFrames(keep=0.3, **o),
    "dycoke": lambda **o: vtc.DyCoke(keep=0.5, p=None, **o),
    "dycoke, the paper's k": lambda **o: vtc.DyCoke(k=0.7, p=None, **o),
    "dycoke, below a quarter": lambda **o: vtc.DyCoke(keep=0.2, first=0.5, p=None, **o),
    "framefusion": lambda **o: vtc.FrameFusion(keep=0.3, similar=0.2, **o),
    "framefusion, all merges": lambda **o: vtc.FrameFusion(keep=0.3, similar=-1.0, **o),
    "framefusion, mean": lambda **o: vtc.FrameFusion(keep=0.6, similar=0.2, ratio=0.05, average=True, **o),
    "prunevid": lambda **o: vtc.PruneVid(keep=0.3, tau=0.1, **o),
    "prunevid, the paper's counts": lambda **o: vtc.PruneVid(ratio=0.5, tau=0.1, **o),
    "prunevid, part by part": lambda **o: vtc.PruneVid(keep=0.3, tau=0.1, per_part=True, **o),
    "holitom": lambda **o: vtc.HoliTom(keep=0.3, tau=0.1, context=0.4, **o),
    "holitom, merging inside": lambda **o: vtc.HoliTom(
        keep=0.5, tau=0.1, context=0.4, centre=0.6, inner=0.5, layer=1, **o
    ),
    "vidcom2": lambda **o: vtc.VidCom2(keep=0.3, **o),
    "vidcom2, frame by frame": lambda **o: vtc.VidCom2(keep=0.3, exact_count=False, **o),
    "fastvid": lambda **o: vtc.FastVID(keep=0.4, segments=1, tau=-1.0, step=2, **o),
    "flashvid": lambda **o: vtc.FlashVID(keep=0.3, alpha=0.5, tau=0.1, segments=1, scene=-1.0, **o),
    "flashvid, a cut inside": lambda **o: vtc.FlashVID(keep=0.5, inner=0.5, layer=1, **o),
    "quota": lambda **o: vtc.QuoTA(keep=0.3, **o),
    "quota, divprune": lambda **o: vtc.QuoTA(keep=0.3, within="divprune", least=0, power=8.0, **o),
    "quota, uniform": lambda **o: vtc.QuoTA(keep=0.3, within="uniform", **o),
}
INSIDE = [*LAYERS, "h2o", "input + layer + cache"]


@pytest.mark.core_cells(method=["random", "vtc-cls"])
@pytest.mark.parametrize("rows", BATCHES.values(), ids=BATCHES)
@pytest.mark.parametrize("positions", ["original", "compact"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", VIDEOS)
def test_matrix(family: str, method: str, positions: str, rows: Any) -> None:
    items, side = rows
    report = equal_to_oracle(family, "sdpa", items, side, method, keep=0.3, positions=positions)
    assert 0 < report.tokens_out < report.tokens_in
    kinds = ["video" if isinstance(item, str) else "image" for row in items for item in row]
    assert [span.modality for span in report.spans] == kinds


@pytest.mark.core_cells(method=["fastv", "h2o"])
@pytest.mark.parametrize("rows", [BATCHES["image, then video"], BATCHES["left padded, of each kind"]])
@pytest.mark.parametrize("method", INSIDE)
@pytest.mark.parametrize("family", VIDEOS)
def test_inside(family: str, method: str, rows: Any) -> None:
    inside_equal(family, ALL[method](), rows)


@pytest.mark.parametrize("method", ["random", "vtc-cls", "divprune", "visionzip", "tome"])
@pytest.mark.parametrize("scope", ["frame", "clip"])
@pytest.mark.parametrize("family", VIDEOS)
def test_scopes(family: str, scope: str, method: str) -> None:
    """Frame by frame every frame has its share, to within a token; over the clip none has any claim."""
    model, inputs = model_of(family), batch(family, [["v0"], ["v1", 0]])
    equal_to_oracle(family, "sdpa", [["v0"], ["v1", 0]], "left", method, keep=0.5, scope=scope)
    with vtc.wrapped(model, method, keep=0.5, scope=scope):
        model(**inputs)
        for span in vtc.report(model).spans:
            assert span.tokens_out == round(0.5 * span.tokens_in)
            t, h, w = span.grid
            if scope == "frame" and t > 1:
                shares = torch.bincount(span.kept // (h * w), minlength=t)[:t]
                assert int(shares.max() - shares.min()) <= 1


@pytest.mark.parametrize("family", VIDEOS)
def test_grids(family: str) -> None:
    model, inputs = model_of(family), batch(family, [["v0", 0]])
    with vtc.wrapped(model, "divprune", keep=5):
        model(**inputs)
        video, image = vtc.report(model).spans
    t, h, w = video.grid
    assert t > 1
    assert t * h * w <= video.tokens_in <= t * h * w + 1
    assert video.tiles[0].role == "frames"
    assert image.grid[0] == 1
    assert video.tokens_out == image.tokens_out == 5


@pytest.mark.core
@pytest.mark.parametrize("family", VIDEOS)
def test_beams(family: str) -> None:
    model, inputs = model_of(family), batch(family, [["v0"], ["v1", 0]])
    beams: dict[str, Any] = dict(GREEDY, num_beams=3, num_return_sequences=2)
    with vtc.wrapped(model, "divprune", keep=0.5):
        ids = model.generate(**inputs, **beams)
        assert all(span.tokens_out == max(1, round(0.5 * span.tokens_in)) for span in vtc.report(model).spans)
    assert ids.shape[0] == 4


def test_a_video_where_the_family_reads_none() -> None:
    model, inputs = model_of("llava"), batch("llava", [[0]])
    with vtc.wrapped(model, "divprune", keep=0.5), pytest.raises(ValueError, match="llava does not read videos"):
        model(**inputs, pixel_values_videos=inputs["pixel_values"])


@pytest.mark.parametrize("positions", ["original", "compact"])
@pytest.mark.parametrize("method", TEMPORAL)
@pytest.mark.parametrize("family", VIDEOS)
def test_temporal_methods_leave_images_alone(family: str, method: str, positions: str) -> None:
    rows = [["v0", 0], ["v2"], []]
    report = inside_equal(family, TEMPORAL[method](positions=positions), (rows, "left"), max_new_tokens=3)
    for span in report.spans:
        assert (span.tokens_out < span.tokens_in) == (span.modality == "video")


@pytest.mark.core
@pytest.mark.parametrize("method", ["framefusion", "prunevid", "quota"])
@pytest.mark.parametrize("family", VIDEOS)
def test_temporal_methods_with_beams(family: str, method: str) -> None:
    inside_equal(family, TEMPORAL[method](), ([["v0", 0], ["v2"]], "left"), num_beams=3, max_new_tokens=5)


@pytest.mark.core
@pytest.mark.parametrize("inside", ["framefusion", "fastv"])
@pytest.mark.parametrize("family", VIDEOS)
def test_after_an_earlier_stage(family: str, inside: str) -> None:
    """What is left of a clip has holes; layer methods go on with it, and eviction after them."""
    fused = vtc.FrameFusion(keep=0.2, similar=0.0).parts()[1] if inside == "framefusion" else vtc.FastV(keep=0.2)
    stages = [vtc.DyCoke(keep=0.6, p=None), vtc.Random(keep=0.4), fused, vtc.H2O(keep=0.1)]
    report = inside_equal(family, stages, ([["v0", 0], ["v2"]], "left"))
    videos = [span for span in report.spans if span.modality == "video"]
    assert [span.tokens_out for span in videos] == [max(1, round(0.2 * span.tokens_in)) for span in videos]


@pytest.mark.core
@pytest.mark.parametrize("family", VIDEOS)
def test_encoded_once_asked_twice(family: str) -> None:
    model, inputs = model_of(family), batch(family, [["v0"], ["v0"]])
    names = ("pixel_values_videos", "video_grid_thw", "second_per_grid_ts")
    vision = {name: inputs.pop(name) for name in names if name in inputs}
    one = batch(family, [["v0"]])
    encoded = vtc.encode(model, "vtc-cls", **{name: one[name] for name in vision})
    with vtc.wrapped(model, "vtc-cls", keep=0.3):
        expected = model(**inputs, **vision).logits
        kept = [span.kept.tolist() for span in vtc.report(model).spans]
        got = model(**inputs, **encoded.take([0, 0])).logits
        assert [span.kept.tolist() for span in vtc.report(model).spans] == kept
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)


def test_images_and_videos_are_encoded_one_after_the_other() -> None:
    inputs = batch("qwen2_vl", [["v0", 0]])
    with pytest.raises(ValueError, match="got both"):
        vtc.encode(model_of("qwen2_vl"), "divprune", **inputs)
