"""What a visitor asks about: one picture or one clip, checked, made small enough to share a machine."""

from __future__ import annotations

import hashlib
import logging
import threading
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

import vtc
from vtc.demos.sentences import presentable
from vtc.media.limits import ClipLimits, TooLarge

MAX_BYTES = 20 * 2**20
MAX_PIXELS = 40_000_000
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif")
CLIPS = (".mp4", ".webm", ".mov", ".mkv", ".avi", ".m4v")
MAX_SIDE = 1600  # px; larger pictures would fill the memory of models that take any resolution
FRAMES = 16
#: 4K; 20,000 frames are 11 minutes at 30 per second; 10 billion pixels are 2.7 minutes of Full HD.
CLIP_LIMITS = ClipLimits(
    frames=20_000,
    frame_pixels=4096 * 2304,
    kept_pixels=FRAMES * 640 * 640,
    decoded_pixels=10_000_000_000,
    seconds=60,
    side=640,
)
MOST_SCANS = 100  # of a progressive JPEG, each of which goes over the whole picture; cameras and tools make 10
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF")  # whatever the name says: Pillow reads fifty others
_BMFF = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide")  # how MP4 and QuickTime begin, after a length
_AT_ONCE = threading.BoundedSemaphore(2)  # files that are decoded at the same time, so that memory is bounded

_log = logging.getLogger("vtc")


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

    def __deepcopy__(self, memo: object) -> Media:
        """Itself, as it never changes: every page that opens would hold a copy of the first example."""
        return self

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
    try:
        with _AT_ONCE:
            content = file.read_bytes()
            key = hashlib.sha256(content).hexdigest()
            if kind in PICTURES:
                _check_picture(file, content)
                return _picture(file, key)
            _check_clip(file, content)
            return _clip(file, key)
    except TooLarge as error:
        raise ValueError(f"{_named(error.said, file)}: make it shorter or smaller.") from error
    except (ValueError, OSError) as error:
        raise ValueError(_named(str(error), file)) from error
    except ImportError:
        raise
    except Exception as error:  # a reader that a broken file has brought to fall
        _log.exception("a file could not be read")
        raise ValueError(f"{file.name} cannot be read: it is damaged; fetch or export it again.") from error


def _named(sentence: str, file: Path) -> str:
    return presentable(sentence.replace(str(file), file.name))


def _check_picture(file: Path, content: bytes) -> None:
    """Small files may hold pictures that fill all memory: look before decoding."""
    if not content:
        return  # reading it says what is wrong
    if content.startswith(b"\xff\xd8") and content.count(b"\xff\xda") > MOST_SCANS:
        raise ValueError(f"{file.name} is a JPEG of more than {MOST_SCANS} scans: save it anew.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(file, formats=_FORMATS) as picture:
                width, height = picture.size
    except Image.DecompressionBombError:
        raise ValueError(f"{file.name} has too many pixels: {MAX_PIXELS // 10**6} million are the limit.") from None
    except Image.UnidentifiedImageError:
        raise ValueError(f"{file.name} is not a picture that is read here: use PNG, JPEG, WebP, GIF or BMP.") from None
    except (OSError, SyntaxError, EOFError, ValueError):
        return  # reading it says what is wrong
    if width * height > MAX_PIXELS:
        raise ValueError(
            f"{file.name} has {width} × {height} pixels, and {MAX_PIXELS // 10**6} million are the limit: make it "
            "smaller."
        )


def _check_clip(file: Path, content: bytes) -> None:
    """FFmpeg reads hundreds of kinds, whatever the name says: three are let through."""
    known = content[4:8] in _BMFF or content[:4] == b"\x1a\x45\xdf\xa3" or content[:4] + content[8:12] == b"RIFFAVI "
    if not known:
        raise ValueError(f"{file.name} cannot be read as a video: it is none of MP4, MOV, WebM, MKV and AVI.")


def _picture(file: Path, key: str) -> Media:
    picture = vtc.load_picture(file)
    if max(picture.size) <= MAX_SIDE:
        return Media(key, file.name, picture)
    before = picture.size
    picture.thumbnail((MAX_SIDE, MAX_SIDE))
    note = f"{file.name} was made smaller, from {before[0]} × {before[1]} to {picture.width} × {picture.height} pixels."
    return Media(key, file.name, picture, notes=(note,))


def _clip(file: Path, key: str) -> Media:
    # PyAV, as it refuses what a file hides before it decodes it
    clip = vtc.load_clip(file, frames=FRAMES, reader="av", limits=CLIP_LIMITS)
    return Media(key, file.name, clip=clip, notes=tuple(presentable(note) for note in clip.notes))
