"""Real processors of families with recurrent layers: pictures of odd sizes, padding, a second turn, a video."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import vtc
from tests.engine.test_oracle import proved
from tests.families import model_of
from tests.listed import LISTED
from tests.models.test_decoders import on
from tests.oracle import decisions, oracle, round_off
from tests.processors import processor_of

FAMILIES = [name for name in ("qwen3_5", "lfm2_vl") if name in LISTED]


def picture(height: int, width: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8))


def chat(*turns: Any) -> list[dict[str, Any]]:
    """Messages: of the user a list of pictures and words, of the assistant words."""
    found = []
    for number, turn in enumerate(turns):
        parts = [
            {"type": "text", "text": x} if isinstance(x, str) else {"type": "image", "image": x}
            for x in ([turn] if isinstance(turn, str) else turn)
        ]
        found.append({"role": "assistant" if number % 2 else "user", "content": parts})
    return found


def asked(family: str, *chats: list[dict[str, Any]]) -> dict[str, Any]:
    """Inputs of one or several conversations, as the processor makes them."""
    given = processor_of(family).apply_chat_template(
        list(chats),
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        add_generation_prompt=True,
        processor_kwargs={"padding": True, "padding_side": "left"},
    )
    return {name: x for name, x in given.items() if name != "token_type_ids"}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "rows",
    [[[picture(17, 31), "a b"]], [[picture(30, 12), "a", picture(20, 20, 1), "b"]], [[picture(9, 40), "a"], ["b c d"]]],
    ids=["odd size", "two sizes", "padded batch"],
)
def test_pictures(family: str, rows: list[list[Any]]) -> None:
    model, given = model_of(family), asked(family, *[chat(row) for row in rows])
    plain = model(**given).logits
    with vtc.wrapped(model, "divprune", keep=1.0):
        assert model(**given).logits.equal(plain)
    report = proved(model, given, len(rows), "left", vtc.DivPrune(keep=0.25))
    assert 0 < report.tokens_out < report.tokens_in
    proved(model, given, len(rows), "left", vtc.H2O(keep=0.25))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_chat_of_two_turns(family: str) -> None:
    """The second turn is asked on the cache of the first, which never held what was dropped."""
    model, first = model_of(family), chat([picture(26, 18), "a b"])
    given = asked(family, first)
    length = given["input_ids"].shape[1]

    def talk() -> tuple[Tensor, Tensor]:
        one = model.generate(**given, max_new_tokens=3, do_sample=False, return_dict_in_generate=True)
        more = torch.tensor([[8, 9, 20, 21]])
        ids = torch.cat([one.sequences, more], dim=1)
        typed = {"mm_token_type_ids": torch.zeros_like(ids)} if "mm_token_type_ids" in given else {}
        cache: Any = one.past_key_values
        two = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=3, do_sample=False, **on(cache), **typed
        )
        return one.sequences[:, length:], two

    with vtc.wrapped(model, vtc.DivPrune(keep=0.25)):
        answers = talk()
        made, compact = decisions(model), model._vtc_engine.compact
    with oracle(model, made, 1, compact):
        expected = talk()
    assert all(one.equal(two) for one, two in zip(answers, expected, strict=True))


@pytest.mark.skipif("qwen3_5" not in LISTED, reason="transformers has no such model yet")
def test_a_video() -> None:
    model, processor = model_of("qwen3_5"), processor_of("qwen3_5")
    frames = np.stack([np.asarray(picture(16, 24, seed)) for seed in range(4)])
    given = dict(
        processor(
            text=["user : <start><video><end> a b"],
            videos=[frames],
            video_metadata=[{"fps": 2.0, "total_num_frames": 4, "frames_indices": [0, 1, 2, 3]}],
            do_sample_frames=False,
            return_tensors="pt",
        )
    )
    given.pop("token_type_ids", None)
    plain = model(**given).logits
    with vtc.wrapped(model, "evs", keep=1.0):
        assert (model(**given).logits - plain).abs().max() / plain.abs().max() < round_off(model)
    report = proved(model, given, 1, "left", vtc.DivPrune(keep=0.25))
    assert {span.modality for span in report.spans} == {"video"}
    assert report.tokens_out < report.tokens_in
