"""`vtc ask --video`: a file, a real processor, answers with all tokens and with fewer, a film of what was kept."""

from __future__ import annotations

from functools import partial

import pytest
from PIL import Image

import vtc
from tests.small_qwen import save
from vtc.cli.main import main

pytest.importorskip("av")
from tests.media.test_video import write


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("qwen")
    write(folder / "clip.mp4", 16, (112, 84))
    Image.new("RGB", (112, 112), "red").save(folder / "red.png")
    return save(folder)


def run(folder, capsys, *more: str) -> str:
    command = ["ask", "--model", str(folder), "--question", "what moves ?", "--max-new-tokens", "3", *more]
    assert main(command) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("method", ["divprune", "evs", "vtc-cls", "transprune"])
def test_a_video(folder, capsys, method):
    out = run(folder, capsys, "--video", str(folder / "clip.mp4"), "--frames", "8", "--method", method, "--keep", "0.5")
    assert "8 frames of clip.mp4, 0.0 to 1.5 s, read by decord" in out
    assert "all visual tokens" in out
    assert method in out


@pytest.mark.parametrize("name", ["strip.png", "film.gif", "film.webp"])
def test_a_film_of_what_was_kept(folder, capsys, tmp_path, name):
    file = tmp_path / name
    video = ["--video", str(folder / "clip.mp4"), "--frames", "8"]
    out = run(folder, capsys, *video, "--method", "evs", "--keep", "0.5", "--save", str(file))
    assert f"overlay: {file}" in out
    with Image.open(file) as film:
        if name == "strip.png":
            assert film.width > 4 * 320
        else:
            assert getattr(film, "n_frames", 1) == 4  # two frames make one step


def test_a_picture_and_a_video(folder, capsys):
    out = run(
        folder, capsys, "--image", str(folder / "red.png"), "--video", str(folder / "clip.mp4"), "--fps", "4",
        "--method", "divprune", "--keep", "5",
    )  # fmt: skip
    assert " 10 (" in out  # five of each


def test_mistakes(folder, capsys, tmp_path):
    ask = ["ask", "--model", str(folder), "--question", "what moves ?"]
    for more, reason in [
        ([], "give --image or --video"),
        (["--video", str(tmp_path / "none.mp4")], "no video at"),
        (["--video", str(folder / "red.png"), "--fps", "2", "--frames", "3"], "not both"),
        (["--image", str(folder / "red.png"), "--frames", "3"], "--frames is about videos"),
    ]:
        assert main([*ask, *more]) == 2
        assert reason in capsys.readouterr().err
    clip = ["--question", "what ?", "--video", str(folder / "clip.mp4")]
    assert main(["ask", "--model", "tiny-llava", *clip]) == 2
    assert "tiny-llava does not read videos: leave --model out for tiny-qwen" in capsys.readouterr().err


def test_a_video_beyond_the_limits_is_refused_unless_it_is_wanted(folder, capsys, monkeypatch):
    monkeypatch.setattr("vtc.media.limits.ClipLimits", partial(vtc.ClipLimits, frames=3))
    ask = ["ask", "--model", str(folder), "--question", "what moves ?", "--video", str(folder / "clip.mp4")]
    assert main(ask) == 2
    said = capsys.readouterr().err
    assert said.endswith("clip.mp4 has more than 3 frames, which is the limit: make it smaller, or give --any-size\n")
    assert main([*ask, "--any-size", "--max-new-tokens", "1"]) == 0


def test_the_shipped_model_that_reads_videos_is_the_default(folder, capsys):
    clip = ["--video", str(folder / "clip.mp4"), "--frames", "4", "--max-new-tokens", "1"]
    assert main(["ask", "--question", "what moves ?", *clip]) == 0
    assert "all visual tokens" in capsys.readouterr().out


def test_a_film_needs_a_video(folder):
    from vtc.draw.filmstrip import frame_overlays

    model, processor = vtc.load(folder, device="cpu")
    picture = Image.open(folder / "red.png")
    inputs = processor(text=[vtc.prompt(processor, "what is there ?")], images=[picture], return_tensors="pt")
    with vtc.wrapped(model, "divprune", keep=4):
        model(**inputs)
        with pytest.raises(ValueError, match="drawn of a video"):
            frame_overlays(vtc.load_clip(folder / "clip.mp4"), vtc.report(model).spans[0])
