"""Every family's own processor takes the plug-in's batches: pictures, videos and text side by side answer as alone."""

from __future__ import annotations

from typing import Any

import pytest
from PIL import Image

import vtc
from tests.families import model_of
from tests.processors import processor_of
from vtc.eval.lmms import rows

pytest.importorskip("av")
from tests.media.test_video import write


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    file = tmp_path_factory.mktemp("film") / "clip.mp4"
    write(file, 12, (64, 48))
    return str(file)


@pytest.mark.parametrize(
    ("family", "videos"),
    [
        ("llava", 0),
        ("llava_next", 0),
        ("llava_next_video", 1),
        ("llava_onevision", 1),
        ("internvl", 4),  # a frame is a picture of its own to it
        ("qwen2_vl", 1),
        ("qwen2_5_vl", 1),
        ("qwen3_vl", 1),
    ],
)
def test_a_mixed_batch(family, videos, film):
    model, processor = model_of(family), processor_of(family)
    red, blue = Image.new("RGB", (40, 30), "red"), Image.new("RGB", (24, 60), "blue")
    asked: list[list[Any]] = [[red, blue], [blue], [], *([[film], [red, film]] if videos else [])]
    read = [
        rows.read(
            rows.user_turn(f"what is {'abcde'[i]} ?", visuals),
            processor,
            lambda path, start, end: rows.sample_clip(path, start, end, 4, None),
        )
        for i, visuals in enumerate(asked)
    ]

    def answer(batch: list[rows.Row]) -> list[list[int]]:
        inputs = rows.batch(batch, processor)
        return model.generate(**inputs, max_new_tokens=3, do_sample=False)[:, inputs["input_ids"].shape[1] :].tolist()

    with vtc.wrapped(model, "divprune", keep=4):
        batches = [read[:3], read[3:]] if videos else [read]
        together, spans = [], []
        for batch in batches:
            together += answer(batch)
            spans += vtc.report(model).spans
        assert len(spans) == 3 + (1 + 2 * videos if videos else 0)
        assert {span.tokens_out for span in spans} == {4}
        for row, said in zip(read, together, strict=True):
            assert answer([row]) == [said]
