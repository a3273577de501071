"""What a visitor asks about: one picture or one clip, checked, made small enough to share a machine."""

from __future__ import annotations

import hashlib
import warnings
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

import vtc

MAX_BYTES = 20 * 2**20
MAX_PIXELS = 40_000_000
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif")
CLIPS = (".mp4", ".webm", ".mov", ".mkv", ".avi", ".m4v")
MAX_SIDE = 1600  # px; larger pictures would fill the memory of models that take any resolution
MAX_FRAME_SIDE = 640  # px
FRAMES = 16


@dataclass(frozen=True, eq=False)
class Media:
    """One picture, or one clip.

    Attributes:
        key: equal for equal content.
        name: the file's name, without its folder.
        notes: sentences about what was done to it.
    """

    key: str
    name: str
    picture: Image.Image | None = None
    clip: vtc.Clip | None = None
    notes: tuple[str, ...] = ()

    @property
    def kind(self) -> str:
        """ "image" or "video", as `vtc.list_methods()` calls what a method is for."""
        return "image" if self.clip is None else "video"

    @property
    def still(self) -> Image.Image:
        """The picture, or the clip's first frame."""
        return self.picture or Image.fromarray(self.frames[0])

    @property
    def frames(self) -> np.ndarray:
        assert self.clip is not None
        return self.clip.frames


def load_media(path: str | Path) -> Media:
    """Read a picture or a clip, by the ending of its name.

    Raises:
        ValueError, FileNotFoundError, ImportError: one sentence that names the file but not its folder.
    """
    file = Path(path)
    kind = file.suffix.lower()
    if kind not in PICTURES + CLIPS:
        endings = ", ".join(ending[1:] for ending in PICTURES + CLIPS)
        raise ValueError(f"{file.name} is neither a picture nor a clip that is read here: use one of {endings}.")
    if not file.is_file():
        raise FileNotFoundError(f"{file.name} is gone: upload it again.")
    if file.stat().st_size > MAX_BYTES:
        size, limit = file.stat().st_size / 2**20, MAX_BYTES // 2**20
        raise ValueError(f"{file.name} has {size:.0f} MB, and {limit} MB is the limit: make it smaller.")
    if kind in PICTURES:
        _check_pixels(file)
    try:
        key = hashlib.sha256(file.read_bytes()).hexdigest()
        return _picture(file, key) if kind in PICTURES else _clip(file, key)
    except (ValueError, OSError) as error:
        raise ValueError(str(error).replace(str(file), file.name)) from error


def _check_pixels(file: Path) -> None:
    """Small files may hold pictures that fill all memory: look before decoding."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(file) as picture:
                width, height = picture.size
    except Image.DecompressionBombError:
        raise ValueError(f"{file.name} has too many pixels: {MAX_PIXELS // 10**6} million are the limit.") from None
    except Exception:
        return  # reading it says what is wrong
    if width * height > MAX_PIXELS:
        raise ValueError(
            f"{file.name} has {width} × {height} pixels, and {MAX_PIXELS // 10**6} million are the limit: make it "
            "smaller."
        )


def _picture(file: Path, key: str) -> Media:
    picture = vtc.load_picture(file)
    if max(picture.size) <= MAX_SIDE:
        return Media(key, file.name, picture)
    before = picture.size
    picture.thumbnail((MAX_SIDE, MAX_SIDE))
    note = f"{file.name} was made smaller, from {before[0]} × {before[1]} to {picture.width} × {picture.height} pixels."
    return Media(key, file.name, picture, notes=(note,))


def _clip(file: Path, key: str) -> Media:
    clip = vtc.load_clip(file, frames=FRAMES)
    height, width = clip.frames.shape[1:3]
    scale = MAX_FRAME_SIDE / max(width, height)
    if scale < 1:
        size = max(1, round(width * scale)), max(1, round(height * scale))
        small = [np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BOX)) for frame in clip.frames]
        clip = replace(clip, frames=np.stack(small))
    return Media(key, file.name, clip=clip, notes=tuple(clip.notes))
