"""Video files under decord and under PyAV: when their frames are shown, and the frames."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vtc.media.limits import CONTAINER, Guard, TooLarge, smaller

_STREAMS = (".ts", ".mts", ".m2ts", ".mpg", ".mpeg", ".vob")  # without an index; decord loses their first frames
_LONGEST = 1e6  # seconds; what is longer has broken times
_THREADS = 4  # each holds frames of its own
_OFTEN = 256  # packets between two looks at the clock


class Unreadable(Exception):
    """A reader gives up on a file, and says why."""


class DecordReader:
    """A file under decord, which turns frames upright itself.

    Attributes:
        times: [N], seconds of all frames from the first one on. fps: their average rate.
    """

    def __init__(self, file: Path, guard: Guard) -> None:
        if guard.hidden:
            raise Unreadable("the size of its frames cannot be told")
        # torch first: decord loads NVIDIA's libnvblas for all to see where there is one, and a torch that is loaded
        # after it multiplies matrices through that, which crashes without a GPU.
        import torch  # noqa: F401  # isort: skip
        import decord

        if file.suffix.lower() in _STREAMS:
            raise Unreadable("files without an index are not for it")
        decord.logging.set_level(decord.logging.FATAL)
        try:
            self.video = decord.VideoReader(str(file), num_threads=1)
            count = len(self.video)
            guard.count(count)
            stamps = self.video.get_frame_timestamp(range(count)) if count else np.zeros((0, 2))
            self.fps = float(self.video.get_avg_fps()) or 1.0
        except TooLarge:
            raise
        except Exception as error:  # decord's own kinds differ from version to version
            raise Unreadable(_reason(error)) from error
        self.file, self.guard = file, guard
        self.times = np.asarray(stamps, dtype=np.float64)[:, 0]
        if len(self.times):
            self.times = self.times - self.times[0]
            if not (np.diff(self.times) > 0).all() or self.times[-1] > _LONGEST:
                raise Unreadable("some of its frames have no time")

    def read(self, indices: list[int]) -> dict[int, np.ndarray]:
        """Frames by their numbers. One after the other: by seeking and by skipping decord miscounts frames where groups
        of pictures are open and where times are missing."""
        wanted, found = set(indices), {}
        try:
            for i in range(max(indices) + 1):
                frame = self.video.next()
                self.guard.frame(frame.shape[1], frame.shape[0])
                self.guard.on_time()
                if i in wanted:
                    self.guard.keep(frame.shape[1], frame.shape[0])
                    found[i] = _shrunk(frame.asnumpy(), self.guard.side)
        except TooLarge:
            raise
        except Exception as error:
            raise Unreadable(_reason(error)) from error
        return found

    def notes(self, seconds: float) -> list[str]:
        """Sentences about what the file says of itself and is not so; decord itself does not tell, so PyAV is asked."""
        try:
            import av
            from av.error import FFmpegError
        except ImportError:
            return []
        try:
            with av.open(str(self.file), options=self.guard.codec, container_options=CONTAINER) as container:
                return _cut_off(_promised(container, container.streams.video[0]), self.fps, seconds)
        except (FFmpegError, IndexError, ValueError):
            return []


class PyAVReader:
    """A file under PyAV: times from its packets, then one pass over its frames; damaged ones are left out.

    Attributes:
        times: [N], seconds of all frames from the first one on. fps: their average rate.
    """

    def __init__(self, file: Path, guard: Guard) -> None:
        import av
        from av.error import FFmpegError

        self.file, self.guard, self.av, self.broken = file, guard, av, FFmpegError
        try:
            with self._open() as container:
                if not container.streams.video:
                    raise Unreadable("it has no video stream")
                stream = container.streams.video[0]
                base = float(stream.time_base or 1)
                packets = self._stamps(container, stream)
                self.fps = float(stream.average_rate or 0) or 1.0
                self.ordered = container.format.name == "avi"  # its times are those of decoding
                self.promised = _promised(container, stream)
        except FFmpegError as error:
            raise Unreadable(_reason(error)) from error
        stamps = sorted(stamp for stamp in packets if stamp is not None)
        if packets and not stamps:
            raise Unreadable("its frames have no times")
        self.stamps = stamps
        self.times = np.array([(s - stamps[0]) * base for s in stamps], dtype=np.float64)

    def _open(self) -> Any:
        return self.av.open(str(self.file), options=self.guard.codec, container_options=CONTAINER)

    def _stamps(self, container: Any, stream: Any) -> list[int | None]:
        """Times of all packets that hold something; many may lie at one place of the file, so bytes are counted."""
        stamps, read, most = [], 0, 2 * self.file.stat().st_size + 2**20
        for packet in container.demux(stream):
            if packet.size:
                stamps.append(packet.pts)
                read += packet.size
            if len(stamps) % _OFTEN == 0:
                self.guard.count(len(stamps))
                self.guard.on_time()
            if read > most:
                raise Unreadable("its packets overlap")
        self.guard.count(len(stamps))
        return stamps

    def read(self, indices: list[int]) -> dict[int, np.ndarray]:
        """Frames by their numbers, those that can be decoded."""
        number = {stamp: i for i, stamp in enumerate(self.stamps)}
        wanted, found, count = set(indices), {}, 0
        with self._open() as container:
            stream = container.streams.video[0]
            stream.codec_context.options = self.guard.codec
            stream.thread_type = "AUTO"
            stream.codec_context.thread_count = min(_THREADS, os.cpu_count() or 1)
            for packet in container.demux(stream):
                self.guard.on_time()
                try:
                    frames = packet.decode()
                except self.broken:
                    continue
                for frame in frames:
                    i = count if self.ordered else number.get(frame.pts, -1)
                    count += 1
                    self.guard.frame(frame.width, frame.height)
                    if i in wanted and i not in found:
                        self.guard.keep(frame.width, frame.height)
                        turns = round(getattr(frame, "rotation", 0) / 90) % 4
                        upright = np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), turns))
                        found[i] = _shrunk(upright, self.guard.side)
                if len(found) == len(wanted):
                    break
        return found

    def notes(self, seconds: float) -> list[str]:
        """Sentences about what the file says of itself and is not so; `seconds` are there."""
        return _cut_off(self.promised, self.fps, seconds)


def _shrunk(frame: np.ndarray, side: int | None) -> np.ndarray:
    """A frame [H, W, 3] within `side` pixels."""
    old = frame.shape[1], frame.shape[0]
    if (new := smaller(old, side)) == old:
        return frame
    return np.asarray(Image.fromarray(frame).resize(new, Image.Resampling.BOX))


def _cut_off(promised: float, fps: float, seconds: float) -> list[str]:
    if promised > seconds + max(0.1, 1.5 / fps):
        return [f"the file says that it lasts {promised:.1f} s and has {seconds:.1f} s: it is cut off."]
    return []


def _promised(container: Any, stream: Any) -> float:
    """Seconds that a file says its frames last; 0.0 if it does not."""
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    alone = len(container.streams) == 1  # else another stream may be what lasts
    microseconds = (container.duration or 0) - max(0, container.start_time or 0)
    return microseconds / 1_000_000 if alone else 0.0


def _reason(error: Exception) -> str:
    """The last line of a message, without the places in C++ that decord puts before it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = re.sub(r"^(\[[\d:]+\] \S+:\d+: )+", "", lines[-1]) if lines else type(error).__name__
    return text[:200]
