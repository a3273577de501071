"""Requests become prompts: pictures where the text wants them, clips within bounds, refusals in one sentence."""

from __future__ import annotations

import pytest
from PIL import Image

import vtc
from tests.small_qwen import save
from vtc.eval.lmms import rows

pytest.importorskip("av")
from tests.media.test_video import write


@pytest.fixture(scope="module")
def llava():
    return vtc.load("tiny-llava", device="cpu")[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = save(tmp_path_factory.mktemp("qwen"))
    write(folder / "clip.mp4", 16, (112, 84))
    return folder


@pytest.fixture(scope="module")
def qwen(folder):
    return vtc.load(folder, device="cpu")[1]


def clip(path, start, end):
    return rows.sample_clip(path, start, end, 4, None)


def picture(color: str = "red") -> Image.Image:
    return Image.new("RGB", (40, 40), color)


def test_a_simple_request_is_the_prompt_of_vtc(llava):
    row = rows.read(rows.user_turn("What is it?", [picture()]), llava, clip)
    assert row.text == vtc.prompt(llava, "What is it?")
    assert len(row.pictures) == 1
    assert rows.read(rows.user_turn("Why?", None), llava, clip).text == vtc.prompt(llava, "Why?", 0)


@pytest.mark.parametrize("processor", ["llava", "qwen"])
def test_placeholders_are_where_pictures_go(processor, request):
    processor = request.getfixturevalue(processor)
    row = rows.read(rows.user_turn("is <image> a or <image> b ?", [picture(), picture("blue")]), processor, clip)
    first, between, _ = row.text.split(processor.image_token)
    if "Qwen" in type(processor).__name__:  # LLaVA's chat format has pictures before words
        assert "is" in first
        assert "a or" in between
    assert [p.getpixel((0, 0)) for p in row.pictures] == [(255, 0, 0), (0, 0, 255)]
    one = rows.read(rows.user_turn("is <image> a or <image> b ?", [picture()]), processor, clip)
    assert one.text.count(processor.image_token) == 1  # they do not match: pictures first, the text without them
    assert "<image> b" not in one.text


def test_interleaved_parts_and_turns(qwen):
    messages = [
        {"role": "system", "content": "be there"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image", "url": picture()}]},
        {"role": "assistant", "content": [{"type": "text", "text": "b"}]},
        {"role": "user", "content": [{"type": "image", "url": picture()}, {"type": "text", "text": "c"}]},
    ]
    text = rows.read(messages, qwen, clip).text
    assert [text.index(word) for word in ("be there", "user :  a<", "assistant :  b", "c assistant :")] == sorted(
        text.index(word) for word in ("be there", "user :  a<", "assistant :  b", "c assistant :")
    )
    assert text.count("<|image_pad|>") == 2


def test_a_processor_without_a_chat_template(llava, monkeypatch):
    monkeypatch.setattr(llava, "chat_template", None)
    row = rows.read(rows.user_turn("Why?", [picture()]), llava, clip)
    assert row.text == vtc.prompt(llava, "Why?") == "USER: <image>\nWhy? ASSISTANT:"


def test_a_chat_format_without_room(llava, monkeypatch):
    monkeypatch.setattr(llava, "chat_template", "{{ messages[0]['content'][-1]['text'] }}")
    with pytest.raises(RuntimeError, match="the prompt has room for 0 pictures and 1 were given"):
        rows.read(rows.user_turn("Why?", [picture()]), llava, clip)


def test_clips(qwen, folder):
    path = str(folder / "clip.mp4")  # 16 frames at 10 per second
    whole = rows.read(rows.user_turn("what moves ?", [path]), qwen, clip)
    assert [len(c) for c in whole.clips] == [4]
    assert whole.text.count("<|video_pad|>") == 1
    part = {"type": "video", "path": path, "video_start": 0.5, "video_end": 1.0}
    cut = rows.read(rows.user_turn("what moves ?", [part]), qwen, clip).clips[0]
    assert (cut.times[0], cut.times[-1]) == (0.5, 1.0)
    timed = [{"role": "user", "content": [{"type": "video", "url": path, "start_time": 0.5, "end_time": 1.0}]}]
    assert rows.read(timed, qwen, clip).clips[0].times == cut.times


def test_frames_per_second_up_to_a_number(folder):
    path = folder / "clip.mp4"
    length = vtc.load_clip(path).duration
    assert rows.sample_clip(path, 0.0, None, 8, 2.0).times == vtc.load_clip(path, fps=2.0).times
    assert len(rows.sample_clip(path, 0.0, None, 8, 2.0)) < 8
    many = rows.sample_clip(path, 0.0, None, 8, 1000 / length - 1)
    assert many.times == vtc.load_clip(path, 8).times


@pytest.mark.parametrize(
    ("visual", "error", "sentence"),
    [
        ("clip.mp4", NotImplementedError, r"does not read videos \(LlavaProcessor\)"),
        ({"type": "audio", "path": "a.wav"}, NotImplementedError, "requests with audio are not supported"),
        ("gone.png", FileNotFoundError, "no picture at gone.png"),
        ({"type": "image", "bytes": b""}, NotImplementedError, "a picture comes as NoneType"),
    ],
)
def test_refusals(llava, visual, error, sentence):
    with pytest.raises(error, match=sentence):
        rows.read(rows.user_turn("What?", [visual]), llava, clip)


def test_batches_are_padded_on_the_left(qwen, folder):
    asked = [[picture(), picture()], [], [str(folder / "clip.mp4")]]
    batch = rows.batch([rows.read(rows.user_turn("what ?", visuals), qwen, clip) for visuals in asked], qwen)
    assert batch["image_grid_thw"].shape == (2, 3)
    assert batch["video_grid_thw"].shape == (1, 3)
    assert batch["attention_mask"][1].tolist() == sorted(batch["attention_mask"][1].tolist())
    assert batch["attention_mask"][:, -1].all()
