"""Videos whose frames are handed to the tower one by one: which of them are one video, and how its tokens lie."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import vtc
from tests.engine.test_oracle import GREEDY, proved
from tests.families import batch, model_of
from tests.listed import LISTED
from tests.models.test_real_inputs import clip, processor, tensors
from tests.tiny_parts import BOS, END, START, VIDEO
from vtc.models.family import Known
from vtc.models.registry import adapter_of

FAMILIES = [name for name in ("gemma4", "minicpmv4_6", "nemotron_h_omni") if name in LISTED]
#: (t, h, w) of the tokens of video 0
GRIDS = {"gemma4": (3, 2, 3), "minicpmv4_6": (3, 2, 3), "nemotron_h_omni": (3, 2, 4)}
TEMPORAL: dict[str, Any] = {
    "evs": vtc.EVS(keep=0.4),
    "uniform-frames": vtc.UniformFrames(keep=0.4),
    "dycoke": vtc.DyCoke(keep=0.5, p=None),
    "frame by frame": vtc.DivPrune(keep=0.5, scope="frame"),
}


def spans(model: Any) -> list[Any]:
    return list(model._vtc_engine.trace.spans)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_video_is_one_span_of_frames(family: str) -> None:
    model, inputs = model_of(family), batch(family, [["v0"]])
    with torch.no_grad(), vtc.wrapped(model, "random", keep=0.5):
        model(**inputs)
        (span,) = spans(model)
        model.generate(**inputs, max_new_tokens=1)
        (again,) = spans(model)
    t, h, w = GRIDS[family]
    assert span.grid == again.grid == (t, h, w)
    assert (span.modality, span.tokens, span.unbroken) == ("video", t * h * w, False)
    assert span.crop.tolist() == [frame for frame in range(t) for _ in range(h * w)]
    assert span.tiles[0].role == "frames"


@pytest.mark.parametrize("name", TEMPORAL)
@pytest.mark.parametrize("family", FAMILIES)
def test_methods_of_videos(family: str, name: str) -> None:
    inputs = batch(family, [["v0"], ["v2"]])
    report = proved(model_of(family), inputs, 2, "left", TEMPORAL[name])
    assert 0 < report.tokens_out < report.tokens_in
    assert not any("changed nothing" in note for note in report.notes)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_count_is_per_video_also_in_beams(family: str) -> None:
    model, inputs = model_of(family), batch(family, [["v0"], ["v2"]])
    with torch.no_grad(), vtc.wrapped(model, "divprune", keep=5):
        assert model.generate(**inputs, **{**GREEDY, "num_beams": 2, "num_return_sequences": 2}).shape[0] == 4
        assert {span.tokens_out for span in vtc.report(model).spans} == {5}


@pytest.mark.parametrize("family", FAMILIES)
def test_encoded_videos(family: str) -> None:
    """One run of the tower, its videos asked for in another order."""
    model, inputs = model_of(family), batch(family, [["v0"], ["v2"]])
    other, words = batch(family, [["v2"], ["v0"]]), ("input_ids", "attention_mask", "mm_token_type_ids")
    asked = {name: x for name, x in other.items() if name in words}
    encoded = vtc.encode(model, "evs", **inputs)
    assert len(encoded) == 2
    with torch.no_grad(), vtc.wrapped(model, "evs", keep=0.4):
        expected = model(**other).logits
        assert torch.allclose(model(**asked, **encoded.take([1, 0])).logits, expected, atol=1e-5)
        (one, two) = spans(model)
    assert one.tokens != two.tokens or family == "nemotron_h_omni"


# -- MiniCPM-V 4.6: pictures close behind each other -----------------------------------------------------------------

SLICE, SLICED, LINE, WORD = 6, 7, 8, 20


def numbers(ids: list[int]) -> list[int]:
    row = torch.tensor([ids])
    found: Tensor = adapter_of("minicpmv4_6").frame_numbers(row, row == VIDEO)  # type: ignore[assignment]
    return found[0].tolist()


def test_what_follows_closely_is_one_video() -> None:
    """The example of `frame_numbers`, and words of a length between."""
    frame, part = [START, VIDEO, VIDEO, END], [SLICE, VIDEO, SLICED]
    ids = [BOS, *frame, *part, LINE, *part, *frame, *part, LINE, *part, WORD, *frame]
    assert numbers(ids) == [0, 0, 1, 1, 0, 0, -1, 0, 0, 0, -1, 0, 0, 2, 2, 0, 0, -2, 0, 0, 0, -2, 0, 0, 0, 1, 1, 0]
    assert numbers([*frame, WORD, *frame]) == [0, 1, 1, 0, 0, 0, 1, 1, 0]
    assert numbers([VIDEO, BOS, VIDEO]) == [1, 0, 1]
    two = torch.tensor([frame, frame])
    assert adapter_of("minicpmv4_6").frame_numbers(two, two == VIDEO).tolist() == [[0, 1, 1, 0]] * 2  # type: ignore[union-attr]


@pytest.mark.skipif("minicpmv4_6" not in LISTED, reason="transformers has no such model yet")
def test_slices_of_frames_lie_on_no_grid() -> None:
    model, inputs = model_of("minicpmv4_6"), batch("minicpmv4_6", [["v1"]])
    with torch.no_grad(), vtc.wrapped(model, "divprune", keep=6):
        model(**inputs)
        (span,) = vtc.report(model).spans
    assert (span.modality, span.grid, span.tokens_in, span.tokens_out) == (
        "video",
        (1, 1, 20),
        20,
        6,
    )  # 2 x (6 + 2 x 2)
    with torch.no_grad(), vtc.wrapped(model, "pool", keep=6), pytest.raises(ValueError, match="works on the grid"):
        model(**inputs)


def test_slices_as_large_as_their_frame_are_no_frames() -> None:
    adapter, model = adapter_of("minicpmv4_6"), model_of("minicpmv4_6")
    known, four = Known((4, 4, 4), modality="video"), torch.zeros(16, 1)
    assert adapter.layout(model, four, known).grid == (4, 2, 2)
    assert adapter.layout(model, four, known._replace(frames=4)).grid == (4, 2, 2)
    made = adapter.layout(model, four, known._replace(frames=2))
    assert (made.grid, made.crops) == ((1, 1, 16), 4)


@pytest.mark.skipif("minicpmv4_6" not in LISTED, reason="transformers has no such model yet")
@pytest.mark.parametrize("slices", [1, 4])
def test_videos_of_its_processor(slices: int) -> None:
    made = processor("minicpmv4_6")
    inputs = tensors(vtc.prepare(made, "what moves ?", clips=[clip()], max_slice_nums=slices))
    model = model_of("minicpmv4_6")
    report = proved(model, inputs, 1, "left", vtc.DivPrune(keep=0.25))
    (span,) = report.spans
    assert span.modality == "video"
    assert (span.grid[0] == 4) == (slices == 1)


# -- Nemotron 3 Omni -------------------------------------------------------------------------------------------------


@pytest.mark.skipif("nemotron_h_omni" not in LISTED, reason="transformers has no such model yet")
def test_a_model_that_leaves_tokens_out_itself(monkeypatch: Any) -> None:
    model, inputs = model_of("nemotron_h_omni"), batch("nemotron_h_omni", [["v0"]])
    monkeypatch.setattr(model, "video_pruning_rate", 0.7)
    with torch.no_grad(), vtc.wrapped(model, "evs", keep=0.3):
        with pytest.raises(
            ValueError, match=r"leaves out 70% of a video's tokens by itself.* set model.video_pruning_rate"
        ):
            model(**inputs)
        model(**batch("nemotron_h_omni", [[0]]))  # pictures are none of its business


@pytest.mark.parametrize("family", [name for name in LISTED if name not in ("deepseek_ocr2",)])
def test_generate_finds_the_same_pictures(family: str) -> None:
    """It runs the tower on its own, before the forward that asks where tokens lie."""
    model, inputs = model_of(family), batch(family, [[1]])
    with torch.no_grad(), vtc.wrapped(model, "random", keep=0.5):
        model(**inputs)
        before = [(span.grid, span.tokens, span.crop.tolist()) for span in spans(model)]
        model.generate(**inputs, max_new_tokens=1)
        assert [(span.grid, span.tokens, span.crop.tolist()) for span in spans(model)] == before


@pytest.mark.parametrize("seeds", [[[0], [1]], [["v0"], ["v1"]]], ids=["pictures", "videos"])
@pytest.mark.parametrize(
    "family", [name for name in ("glm4v", "glm46v", "glm_ocr", "glm4v_moe", "aria") if name in LISTED]
)
def test_encoded_pictures_and_videos(family: str, seeds: Any) -> None:
    """GLM's placeholders are of either: what was encoded says which."""
    if family == "aria" and seeds[0] == ["v0"]:
        return
    model, inputs, method = model_of(family), batch(family, seeds), "divprune" if family == "aria" else "visionzip"
    other, words = batch(family, seeds[::-1]), ("input_ids", "attention_mask", "mm_token_type_ids")
    asked = {name: x for name, x in other.items() if name in words}
    encoded = vtc.encode(model, method, **inputs)
    with torch.no_grad(), vtc.wrapped(model, method, keep=0.4):
        expected, ids = model(**other).logits, model.generate(**other, **GREEDY)
        given = encoded.take([1, 0])
        assert torch.allclose(model(**asked, **given).logits, expected, atol=1e-5)
        assert model.generate(**asked, **encoded.take([1, 0]), **GREEDY).equal(ids)
