"""InternVL writes a video as numbered images: with the processor's words known they are one span."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import vtc
from tests.engine.test_oracle import GREEDY, assert_rows_equal
from tests.families import BOS, END, IMAGE, PAD, START, model_of
from tests.oracle import decisions, oracle

FRAME, COLON = 50, 51


def encode(text: str, add_special_tokens: bool = True) -> list[int]:
    """ "Frame3: <img>" as a tokenizer would have it."""
    assert not add_special_tokens
    return [FRAME, 60 + int(text.removeprefix("Frame").split(":")[0]), COLON, START]


PROCESSOR: Any = SimpleNamespace(tokenizer=SimpleNamespace(encode=encode), start_image_token="<img>")


def row(*items: str) -> list[int]:
    """A prompt of images ("i", of three tiles), single tiles ("s") and videos ("v3", of three frames)."""
    ids = [BOS, 10]
    for item in items:
        if item[0] == "v":
            for frame in range(1, int(item[1:]) + 1):
                ids += [FRAME, 60 + frame, COLON, START, *[IMAGE] * 9, END, 52]
        else:
            ids += [START, *[IMAGE] * (9 * {"i": 3, "s": 1}[item]), END]
    return [*ids, 30, 31]


def batch(*rows: list[int]) -> dict[str, Tensor]:
    longest = max(map(len, rows))
    ids = torch.tensor([[PAD] * (longest - len(r)) + r for r in rows])
    tiles = int((ids == IMAGE).sum()) // 9
    pixels = torch.randn(tiles, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "attention_mask": (ids != PAD).long(), "pixel_values": pixels}


@pytest.mark.parametrize("method", ["divprune", "evs", "uniform-frames", "vtc-cls", "visionzip", "fastv", "h2o"])
def test_oracle(method: str) -> None:
    model, inputs = model_of("internvl"), batch(row("i", "v4"), row("v3", "s"), row("v2", "v2"))
    with vtc.wrapped(model, method, keep=0.4, processor=PROCESSOR):
        logits = model(**inputs).logits
        made = decisions(model)
        spans = vtc.report(model).spans
        ids = model.generate(**inputs, **GREEDY)
        compact = model._vtc_engine.compact
    with oracle(model, made, 3, compact):
        expected = model(**inputs).logits
        expected_ids = model.generate(**inputs, **GREEDY)
    assert_rows_equal(logits, expected, inputs["attention_mask"].bool(), made)
    assert ids.equal(expected_ids)
    assert [(span.row, span.modality, span.grid) for span in spans] == [
        (0, "image", (1, 3, 3)),
        (0, "video", (4, 3, 3)),
        (1, "video", (3, 3, 3)),
        (1, "image", (1, 3, 3)),
        (2, "video", (2, 3, 3)),
        (2, "video", (2, 3, 3)),
    ]


def test_a_count_is_per_video() -> None:
    model, inputs = model_of("internvl"), batch(row("v4"))
    with vtc.wrapped(model, "divprune", keep=6, processor=PROCESSOR):
        model(**inputs)
        assert [span.tokens_out for span in vtc.report(model).spans] == [6]
    with vtc.wrapped(model, "divprune", keep=6):  # without the words every frame is an image
        model(**inputs)
        assert [span.tokens_out for span in vtc.report(model).spans] == [6] * 4


def test_beams_of_a_video() -> None:
    model, inputs = model_of("internvl"), batch(row("v3"), row("s"))
    beams: dict[str, Any] = dict(GREEDY, num_beams=2, num_return_sequences=2)
    with vtc.wrapped(model, "divprune", keep=0.5, processor=PROCESSOR):
        assert model.generate(**inputs, **beams).shape[0] == 4


def test_numbers_out_of_turn_are_images() -> None:
    model = model_of("internvl")
    ids = row("v3")
    ids[ids.index(62)] = 65  # frame 5 after frame 1
    inputs = batch(ids)
    with vtc.wrapped(model, "divprune", keep=3, processor=PROCESSOR):
        model(**inputs)
        assert [span.modality for span in vtc.report(model).spans] == ["video", "image", "image"]
