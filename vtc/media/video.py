"""Reading video files: which frames, at which seconds, by decord or else by PyAV."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vtc.checks import check_number
from vtc.media.limits import ClipLimits, Guard
from vtc.media.video_readers import DecordReader, PyAVReader, Unreadable

READERS = {"decord": DecordReader, "av": PyAVReader}
_LIMITS = ClipLimits()
_INSTALL = "reading videos needs decord or PyAV: pip install 'vtc-vlm[video]'"


@dataclass(frozen=True, eq=False)
class Clip:
    """Frames sampled from a video file.

    Attributes:
        frames: uint8 [T, H, W, 3], upright.
        times: [T], seconds from the first frame of the file at which they are shown.
        indices: [T], their numbers in the file.
        total: frames in the file. fps: their average rate. duration: seconds.
        reader: "decord" or "av". notes: sentences about anything that was not as asked.
        steady: the frames are spread over the whole file, whose rate does not vary.
    """

    frames: np.ndarray
    times: list[float]
    indices: list[int]
    total: int
    fps: float
    duration: float
    reader: str
    notes: list[str] = field(default_factory=list)
    steady: bool = True

    def __len__(self) -> int:
        return len(self.frames)

    def metadata(self) -> dict[str, Any]:
        """What `processor(videos=..., video_metadata=...)` wants to know.

        Processors take a frame's time for its number over the rate, and the time between two frames for that of frames
        spread over the whole file. Where that is not so they are told of a file of 1,000 frames per second in which the
        sampled frames are where they are and as far apart as they are.
        """
        total, fps, indices = self.total, self.fps, self.indices
        if not self.steady and len(self) > 1:
            fps, indices = 1000.0, [round(1000 * time) for time in self.times]
            total = round(1000 * (self.times[-1] - self.times[0]) * len(self) / (len(self) - 1))
        return {
            "total_num_frames": total,
            "fps": fps,
            "duration": self.duration,
            "frames_indices": indices,
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
    limits: ClipLimits | None = _LIMITS,
) -> Clip:
    """Sample frames of a video file by their own times, so that variable frame rates come out right.

    Args:
        frames: so many, evenly spaced from `start` to `end` (both included); 8 if `fps` is not given either.
        fps: so many per second instead.
        start, end: seconds; None = to the end.
        reader: "decord" or "av"; None = decord where it is installed and can read the file, else PyAV. Either decodes
            the file from its beginning: by seeking, decord hits wrong frames in files of several kinds.
        limits: on the file's frames and their pixels; None = none. They are held against what the file says of itself
            (which takes PyAV) and against each frame. Only PyAV refuses a frame before it is decoded where a file says
            other than it has: read files of strangers with reader="av".

    Raises:
        FileNotFoundError, TypeError, ValueError: one sentence on what is wrong with the file or the arguments. A
            `vtc.media.limits.TooLarge` (a ValueError) if it is beyond the limits.
        ImportError: neither reader is installed.
    """
    file = Path(path)
    _check(file, frames, fps, start, end, reader)
    guard = Guard(file, limits)
    problem: Exception | None = None
    for name in READERS if reader is None else (reader,):
        try:
            clip = _sample(READERS[name](file, guard), guard, name, frames, fps, start, end)
        except ImportError as error:
            problem = problem or error
            continue
        except Unreadable as error:
            problem = error
            continue
        if isinstance(problem, Unreadable):
            clip.notes.append(f"decord could not read it ({problem}); PyAV did.")
        return clip
    if isinstance(problem, ImportError):
        raise ImportError(_INSTALL) from problem
    raise ValueError(f"{file} cannot be read as a video: {problem}") from problem


def _check(
    file: Path, frames: int | None, fps: float | None, start: float, end: float | None, reader: str | None
) -> None:
    if reader not in (None, *READERS):
        raise ValueError(f"reader={reader!r} is not one of {', '.join(READERS)}.")
    if frames is not None and fps is not None:
        raise ValueError("give frames= or fps=, not both.")
    if frames is not None:
        check_number(frames, "frames", 1, integer=True)
    if fps is not None:
        check_number(fps, "fps", above=0, below=1000)
    check_number(start, "start", 0, what="a time in seconds")
    if end is not None:
        check_number(end, "end", above=start, what="a time in seconds, after start")
    if not file.is_file():
        raise FileNotFoundError(f"there is no video at {file}: check the path")


def _sample(
    source: DecordReader | PyAVReader,
    guard: Guard,
    name: str,
    frames: int | None,
    fps: float | None,
    start: float,
    end: float | None,
) -> Clip:
    times = source.times
    if not len(times):
        raise Unreadable("it has no frames")
    duration = float(times[-1]) + 1 / source.fps
    if start >= duration:
        raise ValueError(f"start={start} lies behind the end of the video, which is {duration:.2f} s long.")
    notes = source.notes(duration)
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
    guard.promise(len(chosen))
    taken = source.read(chosen.tolist())
    missing = len(chosen) - len(taken)
    if not taken:
        raise Unreadable("none of its frames can be decoded")
    if missing:
        notes.append(f"{missing} of {len(chosen)} frames could not be decoded: the file is damaged or cut off.")
    kept = sorted(taken)
    sizes = {taken[i].shape[1::-1] for i in kept}
    if len(sizes) > 1:
        raise Unreadable(f"its frames have several sizes: {', '.join(f'{w}x{h}' for w, h in sorted(sizes))}")
    regular = bool((np.abs(times - np.arange(len(times)) / source.fps) < 0.5 / source.fps).all())
    return Clip(
        frames=np.stack([taken[i] for i in kept]),
        times=[round(float(times[i]), 4) for i in kept],
        indices=kept,
        total=len(times),
        fps=source.fps,
        duration=duration,
        reader=name,
        notes=notes,
        steady=regular and len(inside) == len(times),
    )
