"""What visitors hand in: read and made smaller, or refused in one sentence that names no folder."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from vtc.demos import media
from vtc.demos.examples import shipped_clips, shipped_pictures
from vtc.demos.media import load_media


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
