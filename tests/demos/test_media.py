"""What visitors hand in: read and made smaller, or refused in one sentence that names no folder."""

from __future__ import annotations

import threading
import time
from typing import Any

import numpy as np
import pytest
from PIL import Image

import vtc
from vtc.demos import media
from vtc.demos.examples import shipped_clips, shipped_pictures
from vtc.demos.media import load_media
from vtc.demos.sentences import presentable


def test_a_picture(tmp_path):
    Image.new("RGB", (300, 200), "red").save(tmp_path / "red.png")
    found = load_media(tmp_path / "red.png")
    assert (found.kind, found.name, found.still.size, found.notes) == ("image", "red.png", (300, 200), ())
    Image.new("RGB", (300, 200), "red").save(tmp_path / "again.PNG")
    assert load_media(tmp_path / "again.PNG").key == found.key  # the same bytes


def test_a_large_picture_is_made_smaller(tmp_path):
    Image.new("RGB", (3200, 1000)).save(tmp_path / "wide.png")
    found = load_media(tmp_path / "wide.png")
    assert found.still.size == (1600, 500)
    assert "made smaller, from 3200 × 1000 to 1600 × 500" in found.notes[0]


def test_a_clip(tmp_path):
    pytest.importorskip("av")
    from tests.media.test_video import write

    found = load_media(write(tmp_path / "a.mp4", 20, (1280, 720)))
    assert found.kind == "video"
    assert found.frames.shape == (16, 360, 640, 3)
    assert found.still.size == (640, 360)
    assert found.clip is not None
    assert found.clip.metadata()["width"] == 640


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("eps.png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "eps.png is not a picture that is read here"),
        ("a.mp4", b"#EXTM3U\n/etc/passwd\n", "a.mp4 cannot be read as a video: it is none of MP4, MOV"),
        ("a.webm", b"ffconcat version 1.0\nfile /etc/passwd\n", "a.webm cannot be read as a video: it is none of"),
        ("a.mkv", b"\x1a\x45\xdf\xa3nonsense", "a.mkv cannot be read as a video"),
        ("a.png", b"\x89PNG\r\n\x1a\nnonsense", "a.png is truncated or damaged"),
        ("a.jpg", b"", "a.jpg is empty"),
        ("a.webp", b"<html>", "a.webp is not a picture"),
        ("a.mp4", b"no film", "a.mp4 cannot be read as a video"),
        ("a.svg", b"<svg/>", "a.svg is neither a picture nor a clip"),
        ("a", b"x", "a is neither a picture nor a clip"),
    ],
)
def test_what_cannot_be_read_is_refused_in_one_sentence(tmp_path, name, content, says):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=says) as caught:
        load_media(tmp_path / name)
    assert str(tmp_path) not in str(caught.value)


def test_a_file_that_is_too_large_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(media, "MAX_BYTES", 2**20)
    (tmp_path / "a.png").write_bytes(b"x" * (2**20 + 1))
    with pytest.raises(ValueError, match=r"a\.png has 1 MB, and 1 MB is the limit"):
        load_media(tmp_path / "a.png")
    Image.new("1", (8000, 6000)).save(tmp_path / "many.png")
    with pytest.raises(ValueError, match=r"many\.png has 8000 × 6000 pixels, and 40 million are the limit"):
        load_media(tmp_path / "many.png")
    with pytest.raises(FileNotFoundError, match=r"gone\.png is gone"):
        load_media(tmp_path / "gone.png")


def test_hostile_clips_are_refused_before_they_are_decoded(tmp_path, monkeypatch):
    pytest.importorskip("av")
    from tests.media.hostile import equal_samples, movie
    from tests.media.test_video import write

    movie(tmp_path / "many.mp4", equal_samples(20_001))
    with pytest.raises(ValueError, match=r"^many\.mp4 has more than 20,000 frames, which is the limit: make it"):
        load_media(tmp_path / "many.mp4")
    clip = write(tmp_path / "a.mp4", 12, (640, 480))
    limits: list[tuple[dict[str, Any], str]] = [
        ({"frame_pixels": 300_000}, r"^a\.mp4 has frames of 640 × 480 pixels, and 300,000 are the limit: make it"),
        ({"decoded_pixels": 10**6}, r"^a\.mp4 has 12 frames of 640 × 480 pixels, and 1 million pixels in all are the"),
        ({"seconds": 1e-6}, r"^a\.mp4 takes more than 1e-06 s to read: make it shorter or smaller\.$"),
    ]
    for limit, says in limits:
        monkeypatch.setattr(media, "CLIP_LIMITS", vtc.ClipLimits(**limit))
        with pytest.raises(ValueError, match=says):
            load_media(clip)


def test_hostile_pictures_are_refused_before_they_are_decoded(tmp_path, monkeypatch):
    picture = Image.new("RGB", (64, 64))
    picture.save(tmp_path / "a.jpg", progressive=True)
    whole = (tmp_path / "a.jpg").read_bytes()
    scan = whole[whole.rindex(b"\xff\xda") : -2]
    (tmp_path / "a.jpg").write_bytes(whole[:-2] + scan * 100 + whole[-2:])
    with pytest.raises(ValueError, match=r"a\.jpg is a JPEG of more than 100 scans: save it anew"):
        load_media(tmp_path / "a.jpg")
    monkeypatch.setattr(media, "MAX_PIXELS", 1000)
    for name in ("a.png", "a.webp", "a.gif", "a.bmp"):
        frames = [Image.new("RGB", (50, 50), color) for color in ("red", "blue")]
        more = {} if name == "a.bmp" else {"save_all": True, "append_images": frames[1:]}
        frames[0].save(tmp_path / name, **more)
        with pytest.raises(ValueError, match=f"{name} has 50 × 50 pixels, and 0 million are the limit"):
            load_media(tmp_path / name)
    with monkeypatch.context() as patch:
        patch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
        with pytest.raises(ValueError, match=r"a\.png has too many pixels"):
            load_media(tmp_path / "a.png")


@pytest.mark.parametrize("ending", ["png", "gif", "webp", "jpg", "bmp", "mp4", "mkv", "webm"])
def test_cut_files_are_read_or_refused_in_a_sentence(tmp_path, ending):
    pytest.importorskip("av")
    from tests.media.test_video import write

    whole = tmp_path / f"whole.{ending}"
    if f".{ending}" in media.CLIPS:
        write(whole, 4, codec="libvpx-vp9" if ending == "webm" else "libx264")
    else:
        Image.effect_noise((40, 30), 90).convert("RGB").save(whole)
    content = whole.read_bytes()
    for end in range(0, len(content), len(content) // 9):
        (tmp_path / f"cut.{ending}").write_bytes(content[:end])
        try:
            found = load_media(tmp_path / f"cut.{ending}").still.size
        except ValueError as error:
            found = str(error)
        assert found in {(40, 30), (64, 48)} or str(found).startswith(f"cut.{ending} ")
        assert str(tmp_path) not in str(found)


def test_two_files_are_decoded_at_a_time(tmp_path, monkeypatch):
    Image.new("RGB", (30, 20), "red").save(tmp_path / "red.png")
    at_work, most, lock = 0, 0, threading.Lock()

    def slowly(file):
        nonlocal at_work, most
        with lock:
            at_work += 1
            most = max(most, at_work)
        time.sleep(0.02)
        with lock:
            at_work -= 1
        return Image.new("RGB", (30, 20))

    monkeypatch.setattr(vtc, "load_picture", slowly)
    visitors = [threading.Thread(target=load_media, args=[tmp_path / "red.png"]) for _ in range(6)]
    for visitor in visitors:
        visitor.start()
    for visitor in visitors:
        visitor.join()
    assert most == 2


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("/tmp/vtc-demo-x/ab/cat.png is empty", "cat.png is empty"),
        ("cannot open '/home/me/models/llava/': no", "cannot open 'a folder': no"),
        (r"C:\Users\me\a.mp4: broken", "a.mp4: broken"),
        ("see https://a.org/b/c and/or 16 / 9, 3/4", "see https://a.org/b/c and/or 16 / 9, 3/4"),
        ("<Reader at 0x7f00ab> fell\n  down", "<Reader > fell down"),
        ("x" * 400, "x" * 299 + "…"),
    ],
)
def test_sentences_name_no_folders(said, shown):
    assert presentable(said) == shown


def test_examples_come_with_questions():
    pictures = shipped_pictures()
    assert len(pictures) >= 5
    assert all(np.asarray(found.still).std() > 0 and question.endswith(("?", ".")) for found, question in pictures)


def test_examples_of_clips_come_from_sets_of_videos(tmp_path):
    pytest.importorskip("av")
    from tests.media.test_video import write

    folder = tmp_path / "films"
    folder.mkdir()
    write(folder / "a.mp4")
    write(folder / "b.mp4", 12)
    rows = ['{"video": "a.mp4", "question": "What moves?"}', '{"video": "a.mp4", "question": "Where?"}']
    (folder / "questions.jsonl").write_text("\n".join([*rows, '{"video": "b.mp4", "question": "Who?"}']))
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "questions.jsonl").write_text('{"image": "a.png", "question": "What?"}')
    assert [(found.name, question) for found, question in shipped_clips(tmp_path)] == [
        ("a.mp4", "What moves?"),
        ("b.mp4", "Who?"),
    ]
