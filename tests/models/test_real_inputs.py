"""What real processors make of pictures, videos and chats: everything kept is the plain model, a quarter the oracle."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import vtc
from tests.engine.test_oracle import proved
from tests.families import EVERY, FAMILIES, model_of
from tests.listed import LISTED
from tests.listed_processors import LISTED_PROCESSORS
from tests.processors import processor_of
from vtc.eval.lmms import rows
from vtc.media.prompts import visual_ids
from vtc.models import adapter_for
from vtc.models.checkpoint import complete

ODD, WIDE, TALL = (53, 37), (71, 30), (24, 61)
FAMILY = [name for name in FAMILIES if name != "llava_siglip"] + [*LISTED]
#: those whose checkpoints have no chat template; whose processors want a picture in every prompt; or all alike
WITHOUT_CHAT = {"got_ocr2", "paligemma"}
ALWAYS = {"got_ocr2", "pp_chart2table", "paligemma", "mllama"}
ALIKE = {"perception_lm"}


@cache
def processor(family: str) -> Any:
    made = processor_of(family)
    complete(made, model_of(family).config)  # as vtc.load does
    return made


def picture(size: tuple[int, int], seed: int = 0) -> Image.Image:
    """Waves and noise of its own: no two patches are alike."""
    made = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(made)


def clip(frames: int = 4, size: tuple[int, int] = (40, 30)) -> vtc.Clip:
    """A video of noise, of which the lower half stands still."""
    made = np.random.default_rng(1).integers(0, 256, (frames, size[1], size[0], 3), dtype=np.uint8)
    made[:, size[1] // 2 :] = made[:1, size[1] // 2 :]
    times = [0.5 * i for i in range(frames)]
    return vtc.Clip(made, times, list(range(frames)), frames, 2.0, 0.5 * frames, "av")


def tensors(made: Any) -> dict[str, Any]:
    return {name: x for name, x in made.items() if isinstance(x, torch.Tensor)}


def odd(family: str) -> dict[str, Any]:
    return tensors(vtc.prepare(processor(family), "what is a ?", [picture(ODD)]))


def batch(family: str) -> dict[str, Any]:
    """Two pictures in a row, one, and none; padded."""
    sizes = [ODD] * 3 if family in ALIKE else [ODD, TALL, WIDE]
    first, second, third = (picture(size, seed) for seed, size in enumerate(sizes))
    asked = [("a and b ?", [first, second]), ("c", [third])]
    if family not in ALWAYS:
        asked.append(("d", []))
    read = [rows.read(rows.user_turn(text, seen), processor(family), clip) for text, seen in asked]
    return tensors(rows.batch(read, processor(family)))


def chat(family: str) -> dict[str, Any]:
    """Two turns, a picture in each."""
    content = [
        [{"type": "image", "image": picture(size)}, {"type": "text", "text": "a ?"}]
        for size in (ODD if family in ALIKE else TALL, ODD)
    ]
    turns = [
        {"role": "user", "content": content[0]},
        {"role": "assistant", "content": [{"type": "text", "text": "b c ."}]},
        {"role": "user", "content": content[1]},
    ]
    how: Any = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"}
    return tensors(processor(family).apply_chat_template(turns, **how))


def video(family: str) -> dict[str, Any]:
    return tensors(vtc.prepare(processor(family), "what moves ?", clips=[clip()]))


def right(family: str, inputs: dict[str, Any], spans: int | None, modality: str = "image") -> None:
    model, real = model_of(family), len(inputs["input_ids"])
    plain = model(**inputs).logits
    with vtc.wrapped(model, "divprune", keep=1.0, processor=processor(family)):
        assert model(**inputs).logits.equal(plain)
    report = proved(model, inputs, real, "left", "divprune", keep=0.25, processor=processor(family))
    assert report.tokens_out < report.tokens_in / 2
    assert {span.modality for span in report.spans} == {modality}
    if spans is not None:
        assert len(report.spans) == spans


#: whose crops or tiles stand apart, each a picture of its own
APART = {"ovis2", "idefics3", "smolvlm", "granite_docling"}
APART |= {"aya_vision", "cohere2_vision", "minicpmv4_6", "lfm2_vl"}
#: whose pictures are one, where they follow each other without a word between them
JOINED = {"got_ocr2", "perception_lm"}


@pytest.mark.parametrize("family", FAMILY)
def test_pictures_in_a_padded_batch(family: str) -> None:
    """And what is not compressed is counted as well: the processor tells what its visual tokens are."""
    inputs = batch(family)
    right(family, inputs, None if family in APART else 2 if family in JOINED else 3)
    ids, model = inputs["input_ids"], model_of(family)
    counted = np.isin(ids.numpy(), visual_ids(processor(family))).sum()
    assert counted == (ids == adapter_for(model).token_id(model, "image")).sum() > 0


ALONE: dict[str, Callable[[str], dict[str, Any]]] = {"odd": odd, "chat": chat}


@pytest.mark.sampled(most=0.08)
@pytest.mark.parametrize("asked", ALONE)
@pytest.mark.parametrize("family", FAMILY)
def test_one_prompt(family: str, asked: str) -> None:
    if asked == "chat" and family in WITHOUT_CHAT:
        return
    right(family, ALONE[asked](family), None if family in APART else 1 + (asked == "chat"))


READ = [name for name in FAMILY if name != "smolvlm" and EVERY[name].videos is not None]


@pytest.mark.parametrize("family", READ)
def test_a_video(family: str) -> None:
    assert adapter_for(model_of(family)).reads_videos(model_of(family))
    right(family, video(family), 1, "video")


def test_every_listed_family_has_a_processor() -> None:
    assert {*LISTED} <= {*LISTED_PROCESSORS}
