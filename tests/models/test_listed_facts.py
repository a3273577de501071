"""What single listed families have of their own: what they refuse, and what is filled in."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import vtc
from tests.families import batch, model_of
from tests.processors import processor_of
from vtc.engine.grid_positions import close_up, renumber
from vtc.engine.plan import Places
from vtc.models import adapter_for
from vtc.models.checkpoint import complete
from vtc.models.family import Known
from vtc.models.registry import adapter_of


def test_hunyuan_has_four_position_rows(monkeypatch: Any) -> None:
    adapter, model = adapter_of("hunyuan_vl"), model_of("hunyuan_vl")
    assert adapter.axes(model) == 4
    adapter.check(model)
    monkeypatch.setitem(adapter.language_model(model).config.rope_parameters, "mrope_section", [1, 1, 2])
    with pytest.raises(ValueError, match="this hunyuan_vl has other position rows than HunyuanOCR's four"):
        adapter.check(model)


def test_a_picture_of_hunyuan_has_a_token_more_in_each_row() -> None:
    adapter, model = adapter_of("hunyuan_vl"), model_of("hunyuan_vl")
    with pytest.raises(ValueError, match="image_grid_thw is missing: pass it as the processor returned it"):
        adapter.layout(model, torch.zeros(14, 1), Known())
    known = Known((1, 6, 6))
    assert adapter.layout(model, torch.zeros(14, 1), known).patch.tolist() == [
        *(-1, 0, 1, 2, -1), *(3, 4, 5, -1), *(6, 7, 8, -1), -1
    ]  # fmt: skip
    with pytest.raises(ValueError, match=r"a picture of grid \(1, 3, 3\) has 14 tokens, but 12 were found"):
        adapter.layout(model, torch.zeros(12, 1), known)


def test_gaps_are_closed_in_the_row_alone() -> None:
    """By hand: a word, three tokens of picture 0 of which the second goes, a word."""
    positions = torch.tensor([[0, 1, 2, 3, 4], [0, 0, 1, 2, 4], [0, 0, 0, 0, 4], [0, 0, 0, 0, 4]])[:, None]
    gone = torch.tensor([[False, False, True, False, False]])
    new, shift = close_up(positions, gone)
    assert new[:, 0, [0, 1, 3, 4]].tolist() == [[0, 1, 2, 3], [0, 0, 2, 3], [0, 0, 0, 3], [0, 0, 0, 3]]
    assert shift.tolist() == [1]


def test_time_may_have_fractions() -> None:
    """Qwen3-Omni's counts 25 a second; the gaps of lines and columns are closed all the same."""
    t, h, w = [0, 1, 1, 12.5, 12.5, 3.0], [0, 1, 1, 1, 1, 3], [0, 1, 2, 1, 2, 3]
    positions = torch.tensor([t, h, w])[:, None]
    places = Places((0,), (4,), torch.tensor([[0, 0, 0, 0], [1, 2, 3, 4]]))
    new, shift = renumber(positions, places, torch.tensor([0, 2]))  # the first of two columns
    assert new.dtype == positions.dtype
    assert new[:, 0, [1, 3, 5]].tolist() == [[1, 12.5, 2], [1, 1, 2], [1, 1, 2]]
    assert shift.tolist() == [1]


def test_a_video_of_which_tokens_were_left_out_lies_on_no_grid() -> None:
    adapter, model = adapter_of("video_llama_3"), model_of("video_llama_3")
    known = Known((2, 4, 4), modality="video")
    assert adapter.layout(model, torch.zeros(8, 1), known).grid == (2, 2, 2)
    assert adapter.layout(model, torch.zeros(7, 1), known).grid == (1, 1, 7)
    features, mask = [torch.arange(8.0)[:, None]], torch.tensor([True] * 5 + [False] * 3)
    (left,) = adapter.entering(model, features, {"video_compression_mask": mask}, "video")
    assert left[:, 0].tolist() == [0, 1, 2, 3, 4]
    assert adapter.entering(model, features, {}, "video") is features


def test_what_cosmos_3_edge_does_not_say_is_filled_in() -> None:
    processor, config = processor_of("cosmos3_edge"), model_of("cosmos3_edge").config
    processor.return_mm_token_type_ids = False
    said = "does not say everything; filled in: return_mm_token_type_ids=True, return_metadata=True."
    assert complete(processor, config) == [said]
    assert complete(processor, config) == []


@pytest.mark.parametrize("family", ["idefics3", "ovis2", "deepseek_vl_hybrid"])
def test_features_that_nobody_can_take_apart(family: str) -> None:
    model = model_of(family)
    assert not adapter_for(model).apart
    with pytest.raises(ValueError, match=f"how the features of {family} lie together: hand in pixels, not features"):
        vtc.encode(model, "divprune", **batch(family, [[0]]))
