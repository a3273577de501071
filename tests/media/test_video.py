"""Reading videos: the right frames at the right times, from files as bad as they come."""

from __future__ import annotations

import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vtc

av = pytest.importorskip("av")
pytest.importorskip("decord")
READERS = ["decord", "av"]


def shade(i: int) -> int:
    """Grey of frame i, far enough apart to survive compression."""
    return 8 + 12 * i


def write(
    file: Path,
    frames: int = 20,
    size: tuple[int, int] = (64, 48),
    times: Any = None,
    codec: str = "libx264",
    **options: str,
) -> Path:
    """A clip at 10 frames per second whose frame i is grey of `shade(i)`, brighter on the left; `times` in 1/10 s."""
    width, height = size
    with av.open(str(file), "w", options={"movflags": "faststart"} if file.suffix == ".mp4" else {}) as container:
        stream = container.add_stream(codec, rate=10, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.time_base = stream.codec_context.time_base = Fraction(1, 10)
        for i in range(frames):
            picture = np.full((height, width, 3), shade(i), dtype=np.uint8)
            picture[:, : width // 4] = 255
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = (times[i] if times else i), Fraction(1, 10)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return file


def shades(clip: vtc.Clip) -> list[int]:
    """Which frame of `write` each frame of the clip is."""
    return [round((float(frame[:, -8:].mean()) - 8) / 12) for frame in clip.frames]


@pytest.mark.parametrize("reader", READERS)
def test_evenly_spaced_frames(tmp_path, reader):
    clip = vtc.load_clip(write(tmp_path / "a.mp4"), frames=5, reader=reader)
    assert clip.reader == reader
    assert clip.frames.shape == (5, 48, 64, 3)
    assert clip.indices == shades(clip) == [0, 5, 9, 14, 19]
    assert clip.times == pytest.approx([0, 0.5, 0.9, 1.4, 1.9])
    assert (clip.total, clip.fps, clip.duration) == (20, 10.0, pytest.approx(2.0))
    assert not clip.notes
    assert clip.metadata()["frames_indices"] == clip.indices


@pytest.mark.parametrize("reader", READERS)
def test_frames_per_second_between_two_times(tmp_path, reader):
    clip = vtc.load_clip(write(tmp_path / "a.mp4"), fps=5, start=0.5, end=1.3, reader=reader)
    assert shades(clip) == [5, 7, 9, 11, 13]


@pytest.mark.parametrize("reader", READERS)
def test_variable_frame_rate_is_sampled_by_time(tmp_path, reader):
    """Ten frames in the first second, then one per second: half of the time has a tenth of the frames."""
    times = [*range(10), 10, 20, 30, 40]
    clip = vtc.load_clip(write(tmp_path / "a.mp4", 14, times=times), frames=5, reader=reader)
    assert shades(clip) == [0, 10, 11, 12, 13]
    assert clip.times == pytest.approx([0, 1, 2, 3, 4])


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("frames", [1, 3])
def test_fewer_frames_than_asked_for(tmp_path, reader, frames):
    clip = vtc.load_clip(write(tmp_path / "a.mp4", frames), frames=8, reader=reader)
    assert shades(clip) == list(range(frames))
    assert "8 frames were asked for" in clip.notes[0]


@pytest.mark.parametrize("reader", READERS)
def test_odd_sizes_and_other_codecs(tmp_path, reader):
    clip = vtc.load_clip(write(tmp_path / "a.webm", 6, (66, 38), codec="libvpx-vp9"), frames=6, reader=reader)
    assert clip.frames.shape[1:] == (38, 66, 3)
    assert shades(clip) == list(range(6))


@pytest.mark.parametrize("reader", READERS)
def test_av1(tmp_path, reader):
    if "libsvtav1" not in av.codecs_available and "libaom-av1" not in av.codecs_available:
        pytest.skip("this PyAV cannot write AV1")
    codec = "libsvtav1" if "libsvtav1" in av.codecs_available else "libaom-av1"
    clip = vtc.load_clip(write(tmp_path / "a.mp4", 6, (128, 96), codec=codec), frames=3, reader=reader)
    assert len(clip) == 3


def test_a_cut_off_file_gives_what_is_there(tmp_path):
    whole = write(tmp_path / "a.mkv", 20, (320, 240), codec="mpeg4").read_bytes()
    cut = tmp_path / "cut.mkv"
    cut.write_bytes(whole[: len(whole) * 6 // 10])
    clip = vtc.load_clip(cut, frames=8)
    assert len(clip) > 0
    assert shades(clip) == clip.indices
    assert max(clip.indices) < 19
    assert clip.notes[0] == "the file says that it lasts 2.0 s and has 1.1 s: it is cut off."


KINDS = [
    ("a.mp4", "libx264", {"g": "6", "bf": "3", "x264-params": "open-gop=1"}),
    ("a.mkv", "mpeg4", {"g": "6", "bf": "2", "b": "8000000"}),
    ("a.flv", "libx264", {"g": "6", "bf": "2"}),
    ("a.ts", "libx264", {"g": "6", "bf": "2"}),
    ("a.mpg", "mpeg2video", {"g": "6", "b": "8000000"}),
    ("a.avi", "mpeg4", {"g": "6", "bf": "2", "b": "8000000"}),
    ("b.avi", "libx264", {"g": "6", "bf": "2"}),
]


@pytest.mark.parametrize("reader", [None, "av"])
@pytest.mark.parametrize(("name", "codec", "options"), KINDS, ids=lambda value: value if isinstance(value, str) else "")
def test_the_right_frames_of_files_in_which_decord_seeks_wrongly(tmp_path, name, codec, options, reader):
    clip = vtc.load_clip(write(tmp_path / name, 20, (320, 240), codec=codec, **options), frames=7, reader=reader)
    assert shades(clip) == clip.indices == [0, 3, 6, 9, 13, 16, 19]
    assert clip.duration == pytest.approx(2.0, abs=0.11)


@pytest.mark.parametrize("reader", [None, "av"])
def test_one_damaged_place_does_not_take_the_rest_along(tmp_path, reader):
    data = bytearray(write(tmp_path / "a.mp4", 20, (320, 240), g="5", bf="0").read_bytes())
    middle = len(data) * 7 // 10
    data[middle : middle + 60] = b"\xff" * 60
    (tmp_path / "damaged.mp4").write_bytes(data)
    clip = vtc.load_clip(tmp_path / "damaged.mp4", frames=20, reader=reader)
    assert {0, 1, 2, 3, 4, 19} <= set(clip.indices)
    assert "could not be decoded: the file is damaged or cut off" in " ".join(clip.notes)


def test_a_late_start_is_no_missing_end(tmp_path):
    clip = vtc.load_clip(write(tmp_path / "a.mkv", 10, times=range(50, 60)), frames=10)
    assert (clip.times[0], clip.notes) == (0.0, [])


def told(clip: vtc.Clip) -> tuple[list[float], float]:
    """Seconds that a processor takes frames to be at, and to be apart."""
    data = clip.metadata()
    apart = data["total_num_frames"] / len(data["frames_indices"]) / data["fps"]
    return [i / data["fps"] for i in data["frames_indices"]], apart


def test_processors_are_told_the_right_times(tmp_path):
    varying = vtc.load_clip(write(tmp_path / "a.mp4", 14, times=[*range(10), 10, 20, 30, 40]), frames=5)
    assert told(varying) == (pytest.approx([0, 1, 2, 3, 4]), pytest.approx(1.0))
    part = vtc.load_clip(write(tmp_path / "b.mp4"), frames=4, start=1.0, end=1.9)
    assert told(part) == (pytest.approx([1.0, 1.3, 1.6, 1.9]), pytest.approx(0.3))
    whole = vtc.load_clip(tmp_path / "b.mp4", frames=4)
    assert (whole.metadata()["frames_indices"], whole.metadata()["fps"]) == (whole.indices, 10.0)


def test_frames_of_several_sizes_are_refused(tmp_path):
    parts = [write(tmp_path / "a.ts", 5, (160, 120)), write(tmp_path / "b.ts", 5, (320, 240), times=range(5, 10))]
    (tmp_path / "both.ts").write_bytes(b"".join(part.read_bytes() for part in parts))
    with pytest.raises(ValueError, match=r"cannot be read as a video: its frames have several sizes: 160x120, 320x240"):
        vtc.load_clip(tmp_path / "both.ts", frames=10)


def test_decord_is_tried_first(tmp_path):
    assert vtc.load_clip(write(tmp_path / "a.mp4"), frames=2).reader == "decord"


def sound(file: Path) -> Path:
    with av.open(str(file), "w") as container:
        stream = container.add_stream("aac", rate=44100, layout="mono")
        for i in range(5):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), dtype=np.float32), format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 44100, 1024 * i
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return file


@pytest.mark.parametrize("reader", [None, *READERS])
def test_files_that_are_no_videos(tmp_path, reader):
    text = tmp_path / "a.mp4"
    text.write_text("not a video")
    empty = tmp_path / "b.mp4"
    empty.write_bytes(b"")
    for file in (text, empty, sound(tmp_path / "c.mp4")):
        with pytest.raises(ValueError, match=r"[abc]\.mp4 cannot be read as a video: \S+"):
            vtc.load_clip(file, reader=reader)


def test_refusals(tmp_path):
    file = write(tmp_path / "a.mp4", 5)
    for options, reason in [
        ({"frames": 0}, "whole number"),
        ({"frames": 2, "fps": 1}, "not both"),
        ({"fps": 0}, "not a number in"),
        ({"fps": True}, "not a number in"),
        ({"start": float("nan")}, "start=nan is not a number of 0 or more"),
        ({"end": "2"}, "end='2' is not a number above 0"),
        ({"start": 3.0, "end": 2.0}, r"end=2\.0 is not a number above 3: it is a time in seconds, after start"),
        ({"start": 9.0}, "behind the end of the video, which is 0.50 s long"),
        ({"reader": "ffmpeg"}, "not one of decord, av"),
    ]:
        with pytest.raises((ValueError, TypeError), match=reason):
            vtc.load_clip(file, **options)
    whole: Any = np.int64(2)
    assert len(vtc.load_clip(file, frames=whole)) == 2
    with pytest.raises(FileNotFoundError, match="check the path"):
        vtc.load_clip(tmp_path / "none.mp4")


@pytest.mark.parametrize("reader", [None, *READERS])
def test_a_clip_that_is_read_before_torch_is_imported_leaves_its_arithmetic_alone(tmp_path, reader):
    file = write(tmp_path / "a.mp4")
    code = f"""
import sys, vtc
assert "torch" not in sys.modules
vtc.load_clip({str(file)!r}, frames=2, reader={reader!r})
import torch
ones = torch.ones(300, 300)
assert torch.equal(ones @ ones, 300 * ones)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
