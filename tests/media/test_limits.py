"""Videos that ask for too much are refused before they get it, in one sentence and without much memory."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from PIL import Image

import vtc
from tests.media.hostile import box, equal_samples, fragments, full, movie, words
from vtc.media import boxes
from vtc.media.limits import ClipLimits, TooLarge, smaller

av = pytest.importorskip("av")
pytest.importorskip("decord")
from tests.media.test_video import write  # noqa: E402

READERS = ["decord", "av"]
MANY = 50_000_000
ONE = full("stsc", words(1, 1, 1, 1)) + full("stsz", words(1, 1)) + full("stco", words(1, 600))
HOSTILE: dict[str, Any] = {
    "samples": lambda file: movie(file, equal_samples(MANY)),
    "times": lambda file: movie(file, full("stts", words(2, MANY, 1, 7, 1)) + ONE),
    "offsets": lambda file: movie(file, full("stts", words(1, 1, 1)) + full("ctts", words(1, MANY, 1)) + ONE),
    "fragments": lambda file: movie(file, equal_samples(0), more=fragments(MANY // 50, 50)),
    "zipped": lambda file: movie(file, box("cmov", bytes(100)) + equal_samples(1)),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_tables_of_millions_in_a_small_file_are_not_opened(tmp_path, kind, monkeypatch):
    monkeypatch.setattr(av, "open", None)  # which would make room for them
    file = HOSTILE[kind](tmp_path / "a.mp4")
    assert file.stat().st_size < 10_000
    with pytest.raises(TooLarge, match=r"a\.mp4 has more than 3,000,000 frames, which is the limit: make it"):
        vtc.load_clip(file)


def test_the_samples_of_a_file_are_counted(tmp_path):
    assert boxes.samples(write(tmp_path / "a.mp4", 20), 1000) == 20
    assert boxes.samples(write(tmp_path / "a.mov", 7), 1000) == 7
    options = {"movflags": "frag_keyframe+empty_moov"}
    with av.open(str(tmp_path / "f.mp4"), "w", options=options) as container:
        stream = container.add_stream("libx264", rate=10, options={"g": "4", "bf": "0"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for i in range(12):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), i, dtype=np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    assert boxes.samples(tmp_path / "f.mp4", 1000) == 12  # of three fragments
    assert boxes.samples(write(tmp_path / "a.mkv", 5), 1000) == 0  # no MP4
    (tmp_path / "large.mp4").write_bytes(box("ftyp") + words(1) + b"mdat" + words(0, 24) + bytes(8) + box("stsz"))
    assert boxes.samples(tmp_path / "large.mp4", 10) == 0  # a size of 64 bits, and a table that is cut off
    (tmp_path / "many.mp4").write_bytes(box("ftyp") + box("free") * 2000)
    assert boxes.samples(tmp_path / "many.mp4", 10) == 11
    assert boxes.samples(tmp_path / "many.mp4", 1000) == 0


@pytest.mark.parametrize("end", range(0, 700, 13))
def test_a_cut_table_ends_the_count(tmp_path, end):
    whole = movie(tmp_path / "a.mp4", equal_samples(9)).read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[:end])
    assert boxes.samples(tmp_path / "cut.mp4", 1000) in (0, 9)


@pytest.mark.parametrize("reader", [None, *READERS])
def test_limits_on_what_a_file_says_of_itself(tmp_path, reader, monkeypatch):
    file = write(tmp_path / "a.mp4", 20)
    for limits, says in [
        ({"frames": 19}, "has more than 19 frames, which is the limit: make it smaller, or allow more with"),
        ({"frame_pixels": 64 * 48 - 1}, "has frames of 64 × 48 pixels, and 3,071 are the limit"),
        ({"decoded_pixels": 20 * 64 * 48 - 1}, "has 20 frames of 64 × 48 pixels, and 61,439 pixels in all are the"),
        ({"kept_pixels": 8 * 64 * 48 - 1}, "the 8 frames that are asked for of .* have 24,576 pixels or more, and"),
        ({"seconds": 1e-9}, "takes more than 1e-09 s to read"),
    ]:
        with pytest.raises(TooLarge, match=says) as caught:
            vtc.load_clip(file, reader=reader, limits=ClipLimits(**limits))
        assert caught.value.limit == next(iter(limits))
        assert f"limits=ClipLimits({caught.value.limit}=...)" in str(caught.value)
    exact = ClipLimits(20, 64 * 48, 8 * 64 * 48, 20 * 64 * 48, 60)
    assert len(vtc.load_clip(file, reader=reader, limits=exact)) == 8
    assert len(vtc.load_clip(file, reader=reader, limits=None)) == 8


@pytest.mark.parametrize("reader", READERS)
def test_a_file_that_does_not_say_is_held_to_its_limits_frame_by_frame(tmp_path, reader, monkeypatch):
    file = write(tmp_path / "a.mkv", 20)
    monkeypatch.setattr("vtc.media.limits.Guard._look", lambda guard, limits: None)
    for limits in ({"frames": 19}, {"frame_pixels": 64 * 48 - 1}, {"kept_pixels": 8 * 64 * 48 - 1}):
        with pytest.raises(TooLarge if reader == "decord" or "frame_pixels" not in limits else ValueError):
            vtc.load_clip(file, reader=reader, limits=ClipLimits(**limits))


def test_frames_that_are_larger_than_the_file_says_are_not_decoded(tmp_path):
    parts = [write(tmp_path / "a.ts", 5, (160, 120)), write(tmp_path / "b.ts", 5, (320, 240), times=range(5, 10))]
    (tmp_path / "both.ts").write_bytes(b"".join(part.read_bytes() for part in parts))
    with pytest.raises(ValueError, match="none of its frames can be decoded"):
        vtc.load_clip(tmp_path / "both.ts", frames=10, reader="av", limits=ClipLimits(frame_pixels=160 * 120))
    with pytest.raises(ValueError, match="several sizes: 160x120, 320x240"):
        vtc.load_clip(tmp_path / "both.ts", frames=10, reader="av", limits=ClipLimits(frame_pixels=320 * 240))


def test_packets_that_lie_at_one_place_are_refused(tmp_path):
    """A thousand samples of 3,000 bytes each that all begin at the same byte: 3 MB in a file of 8 KB."""
    table = full("stts", words(1, 1000, 1)) + full("stsc", words(1, 1, 1, 1)) + full("stsz", words(3000, 1000))
    file = movie(tmp_path / "a.mp4", table + full("stco", words(1000, *[600] * 1000)))
    with pytest.raises(ValueError, match="its packets overlap"):
        vtc.load_clip(file, reader="av")


@pytest.mark.parametrize("reader", [None, *READERS])
@pytest.mark.parametrize(
    "text", ["#EXTM3U\n#EXTINF:1,\n/etc/passwd\n", "ffconcat version 1.0\nfile a.mp4\n", "\ufeff<?xml?><MPD/>"]
)
def test_lists_of_other_files_are_refused(tmp_path, text, reader):
    (tmp_path / "a.mp4").write_text(text)
    for limits in (ClipLimits(), None):
        with pytest.raises(ValueError, match="it is a playlist; give a video that it names"):
            vtc.load_clip(tmp_path / "a.mp4", reader=reader, limits=limits)


@pytest.mark.parametrize("reader", READERS)
def test_frames_are_made_smaller_as_they_are_read(tmp_path, reader):
    file = write(tmp_path / "a.mp4", 6, (128, 64))
    limits = ClipLimits(side=32, kept_pixels=3 * 32 * 16)
    small, whole = (vtc.load_clip(file, 3, reader=reader, limits=given) for given in (limits, None))
    assert small.frames.shape == (3, 16, 32, 3)
    expected = Image.fromarray(whole.frames[1]).resize((32, 16), Image.Resampling.BOX)
    np.testing.assert_array_equal(small.frames[1], np.asarray(expected))
    assert small.metadata()["width"] == 32
    assert vtc.load_clip(file, 3, reader=reader, limits=ClipLimits(side=128)).frames.shape == (3, 64, 128, 3)


@pytest.mark.parametrize(
    ("size", "side", "expected"), [((640, 480), 320, (320, 240)), ((5000, 3), 100, (100, 1)), ((9, 5), None, (9, 5))]
)
def test_sizes(size, side, expected):
    assert smaller(size, side) == expected


def test_refusals():
    for field in ("frames", "frame_pixels", "kept_pixels", "decoded_pixels", "seconds", "side"):
        with pytest.raises(ValueError, match=f"{field}=0 is not"):
            ClipLimits(**{field: 0})
    with pytest.raises(TypeError, match="frames=None is not a whole number"):
        ClipLimits(frames=None)  # type: ignore[arg-type]


def peak(code: str) -> tuple[int, str]:
    """MB that a fresh Python takes at most beyond what it takes after its imports, and what it prints."""
    measured = f"""
import resource
import vtc, vtc.media.video, vtc.demos.media, av, PIL.Image
def mb(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
PIL.Image.init()
before = mb()
{code}
print(mb() - before)
"""
    done = subprocess.run([sys.executable, "-c", measured], capture_output=True, text=True, check=True)
    said, _, number = done.stdout.rstrip().rpartition("\n")
    return int(number), said


def test_a_hostile_clip_takes_no_memory(tmp_path):
    """Opened by FFmpeg, the first would take 1.8 GB."""
    movie(tmp_path / "many.mp4", equal_samples(MANY))
    movie(tmp_path / "large.mp4", equal_samples(5), (16000, 16000))
    taken, said = peak(f"""
for name in ("many", "large"):
    try:
        vtc.load_clip(f"{tmp_path}/{{name}}.mp4", reader="av")
    except ValueError as error:
        print(error)
""")
    assert "many.mp4 has more than" in said
    assert "large.mp4 cannot be read as a video: none of its frames can be decoded" in said
    assert taken < 60


@pytest.mark.full
def test_a_clip_of_huge_frames_takes_no_memory(tmp_path):
    """They are of one colour: 16 of them, which would take 3.2 GB, have a few hundred kilobytes."""
    file = write(tmp_path / "a.mp4", 2, (8192, 8192), preset="ultrafast")
    assert file.stat().st_size < 10 * 2**20
    calls = f"vtc.load_clip({str(file)!r}, 16)", f"vtc.demos.media.load_media({str(file)!r})"
    for call in calls:
        taken, said = peak(f"try:\n    {call}\nexcept ValueError as error:\n    print(error)")
        assert "frames of 8192 × 8192 pixels" in said
        assert taken < 200
