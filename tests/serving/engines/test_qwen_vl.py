"""Qwen2.5-VL in vLLM: the same token ids as vtc on transformers with original positions. Run by `make test-vllm`."""

# pyright: reportMissingImports=false
from __future__ import annotations

from collections.abc import Iterator

import pytest
from PIL import Image

import vtc
from tests.serving.engines.methods import alike, qualifying, reads
from tests.serving.engines.served import Asked, Served
from vtc.eval import datasets
from vtc.media.video import load_clip

pytestmark = pytest.mark.vllm
KEEP = 0.2
PICTURES = [name for name in qualifying("qwen2_5_vl") if "image" in vtc.resolve(name).modality]
CLIPS = [name for name in qualifying("qwen2_5_vl") if name not in PICTURES]


@pytest.fixture(scope="module")
def qwen() -> Iterator[Served]:
    served = Served("tiny-qwen", KEEP, options={"limit_mm_per_prompt": {"image": 2, "video": 1}})
    yield served
    served.close()


@pytest.fixture(scope="module")
def clips() -> list[Asked]:
    questions = datasets.load("tiny-video").questions
    return [Asked(one.question, clips=(load_clip(str(one.media.file), frames=16),)) for one in questions[:80:4]]


@pytest.fixture(scope="module")
def pictures(clips) -> list[Asked]:
    """The last frames of the clips, of three shapes: 20 questions about 144, 108 and 80 visual tokens."""
    shapes = [(192, 192), (192, 144), (128, 160)]
    frames = [Image.fromarray(asked.clips[0].frames[-1]) for asked in clips]
    return [
        Asked(asked.question, (frame.resize(shapes[number % 3]),))
        for number, (asked, frame) in enumerate(zip(clips, frames, strict=True))
    ]


@pytest.fixture(scope="module")
def mixed(pictures, clips) -> list[Asked]:
    """A picture, two of them, none, picture and clip, by turns."""
    first, second, third = (one.pictures[0] for one in pictures[:3])
    return [
        pictures[0],
        Asked("Do the pictures show the same?", (first, second)),
        Asked("What is a circle?"),
        Asked(clips[2].question, (third,), clips[2].clips),
        clips[1],
        Asked("Do the pictures show the same?", (third, first)),
    ]


@pytest.mark.parametrize("method", PICTURES)
def test_every_method_answers_as_on_transformers(qwen, pictures, method):
    qwen.swap(method)
    answers = qwen.ask(pictures)
    assert alike(method, [answer.ids for answer in answers], qwen.expected(pictures, method))
    assert [answer.prompt - words for answer, words in zip(answers, text(qwen, pictures), strict=True)] == [
        (29, 22, 16)[number % 3] for number in range(20)
    ]


def text(qwen: Served, many: list[Asked]) -> list[int]:
    """Tokens of each prompt beside the pictures'."""
    tokenizer = qwen.reference[1].tokenizer
    return [len(tokenizer(qwen.prompt(one)["prompt"]).input_ids) - len(one.pictures) - len(one.clips) for one in many]


@pytest.mark.parametrize("method", [name for name in PICTURES if reads(name, "qwen2_5_vl")])
def test_signals_are_those_of_transformers(qwen, pictures, method, monkeypatch):
    qwen.check_signals(pictures[1], method, monkeypatch)


@pytest.mark.parametrize("method", ["fastvid", "vtc-cls", "vispruner"])
def test_signals_of_clips_are_those_of_transformers(qwen, clips, method, monkeypatch):
    qwen.check_signals(clips[0], method, monkeypatch)


@pytest.mark.parametrize("method", [*CLIPS, "divprune", "vtc-cls"])
def test_clips_are_pruned_as_on_transformers(qwen, clips, method):
    qwen.swap(method)
    few = clips[:8]
    assert [answer.ids for answer in qwen.ask(few)] == qwen.expected(few, method)


@pytest.mark.parametrize("method", ["divprune", "vtc-cls"])
def test_pictures_and_clips_in_one_batch(qwen, mixed, method):
    qwen.swap(method)
    together = qwen.ask(mixed)
    assert [answer.ids for answer in together] == qwen.expected(mixed, method)
    qwen.forget()
    assert [answer.ids for answer in qwen.ask(mixed, together=False)] == [answer.ids for answer in together]


def test_a_method_of_clips_leaves_pictures_whole(qwen, pictures):
    qwen.swap("vidcom2")
    assert [answer.ids for answer in qwen.ask(pictures[:4])] == qwen.plain(pictures[:4])


def test_a_picture_is_cut_by_chunked_prefill(qwen, pictures, mixed, monkeypatch):
    qwen.swap("vtc-cls")
    many = [*pictures, *mixed]
    expected = qwen.expected(many, "vtc-cls")
    monkeypatch.setattr(qwen.core.scheduler, "max_num_scheduled_tokens", 17)
    assert [answer.ids for answer in qwen.ask(many)] == expected


def test_a_prefix_is_found_again_with_its_positions(qwen, mixed):
    qwen.swap("divprune")
    first = qwen.ask(mixed, together=False)
    again = qwen.ask(mixed, together=False)
    assert [answer.ids for answer in again] == [answer.ids for answer in first]
    assert [answer.cached for answer in again] == [(answer.prompt - 1) // 32 * 32 for answer in first]
    assert sum(answer.cached for answer in again) > 0
    qwen.swap("divprune", 0.1, forget=False)
    assert {answer.cached for answer in qwen.ask(mixed[3:4])} == {0}


def test_whole_pictures_and_clips_have_vllms_own_positions(qwen, mixed, monkeypatch):
    """With nothing pruned, what a prompt is given and what is added make the positions of vLLM's own class."""
    import torch
    from vllm.model_executor.models.qwen2_5_vl import Qwen2_5_VLForConditionalGeneration as Stock

    qwen.swap("divprune", 1.0)
    model, seen, found = qwen.served, [], []
    ours, decoder = model.get_mrope_input_positions, model.language_model.model
    forward = decoder.forward

    def noted(tokens, features):
        seen.append(Stock.get_mrope_input_positions(model, tokens, features))
        return ours(tokens, features)

    def run(**kwargs):
        found.append(kwargs["positions"].clone())
        return forward(**kwargs)

    monkeypatch.setattr(model, "get_mrope_input_positions", noted)
    monkeypatch.setattr(decoder, "forward", run)
    for one in mixed:
        qwen.forget()
        qwen.ask([one], tokens=2)
        (whole, delta), (prefill, decode) = seen[-1], found[-2:]
        assert torch.equal(prefill[:, : whole.shape[1]], whole)
        assert decode[:, 0].tolist() == [whole.shape[1] + delta] * 3
