"""The proof for videos: methods of every stage equal the full-length model that cannot see the dropped tokens."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import vtc
from tests.families import FAMILIES, batch, model_of
from tests.test_oracle import GREEDY, equal_to_oracle
from tests.test_oracle_inside import ALL, LAYERS
from tests.test_oracle_inside import equal_to_oracle as inside_equal

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
INSIDE = [*LAYERS, "h2o", "input + layer + cache"]


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


@pytest.mark.parametrize("method", ["evs", vtc.EVS(keep=0.3, first=0.5), "uniform-frames"], ids=str)
@pytest.mark.parametrize("family", VIDEOS)
def test_temporal_methods_leave_images_alone(family: str, method: Any) -> None:
    report = equal_to_oracle(family, "sdpa", [["v0", 0], ["v2"]], "left", method, keep=0.3)
    video, image, other = report.spans
    assert image.tokens_out == image.tokens_in
    assert video.tokens_out < video.tokens_in
    assert other.tokens_out < other.tokens_in


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
