"""How much a video file may ask of this machine: looked at before anything is decoded, and again at every frame."""

from __future__ import annotations

import time
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from vtc.checks import check_number
from vtc.media import boxes

_PLAYLISTS = (b"#EXTM3U", b"ffconcat", b"<?xml", b"<MPD", b"[playlist]")
#: Of FFmpeg: what a file refers to is read only if it is a file, too.
CONTAINER = {"protocol_whitelist": "file"}


class TooLarge(ValueError):
    """A video is beyond a limit. `said` is the sentence without its end, which names `limit`, the field to raise."""

    def __init__(self, said: str, limit: str) -> None:
        self.said, self.limit = said, limit
        super().__init__(f"{said}: make it smaller, or allow more with limits=ClipLimits({limit}=...)")


@dataclass(frozen=True)
class ClipLimits:
    """What a video may have; files of a few kilobytes can ask for gigabytes of memory and for hours.

    Attributes:
        frames: in the file, whatever is sampled of it; a day at 25 per second has 2.2 million.
        frame_pixels: of one frame. The default is 8K.
        kept_pixels: of all the frames that are sampled, which take 3 bytes each.
        decoded_pixels: of all the frames of the file: what decoding it takes time for. None = any.
        seconds: that reading may take. None = any.
        side: frames whose longer side is longer are made smaller as they are read, in their proportions. None = none.

    Raises:
        TypeError, ValueError: a value is no number above 0.
    """

    frames: int = 3_000_000
    frame_pixels: int = 8192 * 4320
    kept_pixels: int = 1_000_000_000
    decoded_pixels: int | None = None
    seconds: float | None = None
    side: int | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name == "seconds" and value is not None:
                check_number(value, "seconds", above=0)
            elif value is not None or field.default is not None:
                check_number(value, field.name, 1, integer=True)


class Guard:
    """Holds one file to its limits; None = none.

    Attributes:
        size: (width, height) of its frames, as the file says; None if it cannot be told.
        hidden: it says none that FFmpeg takes within the limits: no file for a reader that cannot be limited.
    """

    def __init__(self, file: Path, limits: ClipLimits | None) -> None:
        self.file, self.limits = file, limits
        self.size: tuple[int, int] | None = None
        self.hidden = False
        self.kept = self.wanted = 0
        self.end = time.monotonic() + limits.seconds if limits and limits.seconds else None
        self._refuse_playlists()
        if limits is not None:
            self.count(boxes.samples(file, limits.frames))
            self._look(limits)

    @property
    def codec(self) -> dict[str, str]:
        """Options of FFmpeg's decoders, which refuse larger frames by themselves."""
        return {} if self.limits is None else {"max_pixels": str(self.limits.frame_pixels)}

    @property
    def side(self) -> int | None:
        return self.limits.side if self.limits else None

    def count(self, frames: int) -> None:
        """Refuse so many frames."""
        limits = self.limits
        if limits is None:
            return
        if frames > limits.frames:
            raise TooLarge(f"{self.file} has more than {limits.frames:,} frames, which is the limit", "frames")
        width, height = self.size or (0, 0)
        if limits.decoded_pixels is not None and frames * width * height > limits.decoded_pixels:
            said = f"{self.file} has {frames:,} frames of {width} × {height} pixels"
            raise TooLarge(f"{said}, and {_large(limits.decoded_pixels)} pixels in all are the limit", "decoded_pixels")

    def frame(self, width: int, height: int) -> None:
        """Refuse a frame of this size."""
        if self.limits is not None and width * height > self.limits.frame_pixels:
            said = f"{self.file} has frames of {width} × {height} pixels"
            raise TooLarge(f"{said}, and {_large(self.limits.frame_pixels)} are the limit", "frame_pixels")

    def promise(self, frames: int) -> None:
        """Refuse to sample so many frames, before the first of them is decoded."""
        self.kept, self.wanted = 0, frames
        if self.size is not None:
            self._hold(frames * _pixels(self.size, self.side))

    def keep(self, width: int, height: int) -> None:
        """Refuse to hold one more frame of this size."""
        self.kept += _pixels((width, height), self.side)
        self._hold(self.kept)

    def _hold(self, pixels: int) -> None:
        if self.limits is not None and pixels > self.limits.kept_pixels:
            said = f"the {self.wanted} frames that are asked for of {self.file} have {_large(pixels)} pixels or more"
            raise TooLarge(f"{said}, and {_large(self.limits.kept_pixels)} are the limit", "kept_pixels")

    def on_time(self) -> None:
        """Refuse a file that takes too long."""
        if self.end is not None and time.monotonic() > self.end:
            assert self.limits is not None
            raise TooLarge(f"{self.file} takes more than {self.limits.seconds:g} s to read", "seconds")

    def _refuse_playlists(self) -> None:
        """They name other files and addresses, which FFmpeg would fetch."""
        with self.file.open("rb") as stream:
            start = stream.read(64).lstrip(b"\xef\xbb\xbf \t\r\n")
        if start.startswith(_PLAYLISTS):
            raise ValueError(f"{self.file} cannot be read as a video: it is a playlist; give a video that it names")

    def _look(self, limits: ClipLimits) -> None:
        """What the container says; nothing if PyAV is not here or cannot open it."""
        try:
            import av
            from av.error import FFmpegError
        except ImportError:
            return
        try:
            with av.open(str(self.file), options=self.codec, container_options=CONTAINER) as container:
                if not container.streams.video:
                    return
                stream: Any = container.streams.video[0]
                width, height, frames = stream.codec_context.width, stream.codec_context.height, stream.frames
        except (FFmpegError, ValueError):
            return
        self.hidden = not width * height
        self.size = None if self.hidden else (width, height)
        self.frame(width, height)
        self.count(frames)


def smaller(size: tuple[int, int], side: int | None) -> tuple[int, int]:
    """(width, height) in the same proportions whose longer side is `side` at most."""
    scale = side / max(size) if side else 1.0
    return size if scale >= 1 else (max(1, round(size[0] * scale)), max(1, round(size[1] * scale)))


def _pixels(size: tuple[int, int], side: int | None) -> int:
    width, height = smaller(size, side)
    return width * height


def _large(number: int) -> str:
    return f"{number / 10**6:,.0f} million" if number >= 10**6 else f"{number:,}"
