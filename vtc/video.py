"""Reading video files: which frames, at which seconds, by decord or else by PyAV."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

READERS = ("decord", "av")
_INSTALL = "reading videos needs decord or PyAV: pip install 'vtc-vlm[video]'"


@dataclass(frozen=True, eq=False)
class Clip:
    """Frames sampled from a video file.

    Attributes:
        frames: uint8 [T, H, W, 3], upright.
        times: [T], seconds from the beginning of the file at which they are shown.
        indices: [T], their numbers in the file.
        total: frames in the file. fps: their average rate. duration: seconds.
        reader: "decord" or "av". notes: sentences about anything that was not as asked.
    """

    frames: np.ndarray
    times: list[float]
    indices: list[int]
    total: int
    fps: float
    duration: float
    reader: str
    notes: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.frames)

    def metadata(self) -> dict[str, Any]:
        """What `processor(videos=..., video_metadata=...)` wants to know."""
        return {
            "total_num_frames": self.total,
            "fps": self.fps,
            "duration": self.duration,
            "frames_indices": self.indices,
            "width": self.frames.shape[2],
            "height": self.frames.shape[1],
            "video_backend": "decord" if self.reader == "decord" else "pyav",
        }


def load_clip(
    path: str | Path,
    frames: int | None = None,
    fps: float | None = None,
    start: float = 0.0,
    end: float | None = None,
    reader: str | None = None,
) -> Clip:
    """Sample frames of a video file by their own times, so that variable frame rates come out right.

    Args:
        frames: so many, evenly spaced from `start` to `end` (both included); 8 if `fps` is not given either.
        fps: so many per second instead.
        start, end: seconds; None = to the end.
        reader: "decord" or "av"; None = decord where it is installed and can read the file, else PyAV.

    Raises:
        FileNotFoundError, ValueError: with one sentence that says what is wrong with the file or the arguments.
        ImportError: neither reader is installed.
    """
    file = Path(path)
    _check(file, frames, fps, start, end, reader)
    problem: Exception | None = None
    for name in READERS if reader is None else (reader,):
        try:
            source = _Decord(file) if name == "decord" else _PyAV(file)
            clip = _sample(source, name, frames, fps, start, end)
        except ImportError as error:
            problem = problem or error
            continue
        except _Unreadable as error:
            problem = error
            continue
        if isinstance(problem, _Unreadable):
            clip.notes.append(f"decord could not read it ({problem}); PyAV did.")
        return clip
    if isinstance(problem, ImportError):
        raise ImportError(_INSTALL) from problem
    raise ValueError(f"{file} cannot be read as a video: {problem}") from problem


class _Unreadable(Exception):
    """A reader gives up on a file, and says why."""


def _check(
    file: Path, frames: int | None, fps: float | None, start: float, end: float | None, reader: str | None
) -> None:
    if reader not in (None, *READERS):
        raise ValueError(f"reader={reader!r} is not one of {', '.join(READERS)}.")
    if frames is not None and fps is not None:
        raise ValueError("give frames= or fps=, not both.")
    if frames is not None and (isinstance(frames, bool) or not isinstance(frames, int) or frames < 1):
        raise ValueError(f"frames={frames!r} is not a whole number of 1 or more.")
    if fps is not None and not 0 < fps < 1000:
        raise ValueError(f"fps={fps!r} is outside (0, 1000).")
    if start < 0 or (end is not None and end <= start):
        raise ValueError(f"start={start}, end={end}: expected 0 <= start < end, in seconds.")
    if not file.is_file():
        raise FileNotFoundError(f"there is no video at {file}: check the path")


def _sample(
    source: _Decord | _PyAV, name: str, frames: int | None, fps: float | None, start: float, end: float | None
) -> Clip:
    times = source.times
    if not len(times):
        raise _Unreadable("it has no frames")
    duration = float(times[-1]) + 1 / source.fps
    if start >= duration:
        raise ValueError(f"start={start} lies behind the end of the video, which is {duration:.2f} s long.")
    notes: list[str] = []
    if end is not None and end > duration + 0.5 / source.fps:
        notes.append(f"the video ends after {duration:.2f} s, before end={end}.")
    inside = np.flatnonzero((times >= start - 1e-6) & (times <= (duration if end is None else end) + 1e-6))
    if not len(inside):
        inside = np.array([int(np.abs(times - start).argmin())])
    first, last = float(times[inside[0]]), float(times[inside[-1]])
    wanted = np.linspace(first, last, frames or 8) if fps is None else np.arange(first, last + 1e-6, 1 / fps)
    # of two frames equally near the earlier one, whatever the rounding of their times
    chosen = inside[np.abs(times[inside][None, :] - (wanted[:, None] - 1e-6)).argmin(axis=1)]
    chosen = np.unique(chosen)
    if fps is None and len(chosen) < (frames or 8):
        notes.append(f"{frames or 8} frames were asked for; {len(inside)} are there, {len(chosen)} of them different.")
    taken = source.read(chosen.tolist())
    missing = len(chosen) - len(taken)
    if not taken:
        raise _Unreadable("none of its frames can be decoded")
    if missing:
        notes.append(f"{missing} of {len(chosen)} frames could not be decoded: the file is damaged or cut off.")
    kept = sorted(taken)
    return Clip(
        frames=np.stack([taken[i] for i in kept]),
        times=[round(float(times[i]), 4) for i in kept],
        indices=kept,
        total=len(times),
        fps=source.fps,
        duration=duration,
        reader=name,
        notes=notes,
    )


class _Decord:
    """A file under decord, which turns frames upright itself."""

    def __init__(self, file: Path) -> None:
        import decord

        decord.logging.set_level(decord.logging.FATAL)
        try:
            self.video = decord.VideoReader(str(file), num_threads=1)
            count = len(self.video)
            stamps = self.video.get_frame_timestamp(range(count)) if count else np.zeros((0, 2))
            self.fps = float(self.video.get_avg_fps()) or 1.0
        except Exception as error:  # decord's own kinds differ from version to version
            raise _Unreadable(_first_line(error)) from error
        self.times = np.asarray(stamps, dtype=np.float64)[:, 0]
        if len(self.times):
            self.times = self.times - self.times[0]

    def read(self, indices: list[int]) -> dict[int, np.ndarray]:
        try:
            frames = self.video.get_batch(indices).asnumpy()
        except Exception as error:
            raise _Unreadable(_first_line(error)) from error
        return dict(zip(indices, frames, strict=True))


class _PyAV:
    """A file under PyAV: times from its packets, then one pass over its frames; damaged ones are left out."""

    def __init__(self, file: Path) -> None:
        import av
        from av.error import FFmpegError

        self.file, self.av, self.broken = file, av, FFmpegError
        try:
            with av.open(str(file)) as container:
                if not container.streams.video:
                    raise _Unreadable("it has no video stream")
                stream = container.streams.video[0]
                base = float(stream.time_base or 1)
                stamps = sorted(p.pts for p in container.demux(stream) if p.pts is not None)
                self.fps = float(stream.average_rate or 0) or 1.0
        except FFmpegError as error:
            raise _Unreadable(_first_line(error)) from error
        self.stamps = stamps
        self.times = np.array([(s - stamps[0]) * base for s in stamps], dtype=np.float64)

    def read(self, indices: list[int]) -> dict[int, np.ndarray]:
        number = {stamp: i for i, stamp in enumerate(self.stamps)}
        wanted, found = set(indices), {}
        with self.av.open(str(self.file)) as container:
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            try:
                for frame in container.decode(stream):
                    i = number.get(frame.pts, -1)
                    if i in wanted:
                        turns = round(getattr(frame, "rotation", 0) / 90) % 4
                        found[i] = np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), turns))
                        if len(found) == len(wanted):
                            break
            except self.broken:
                pass  # what was decoded before stays
        return found


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:200]
