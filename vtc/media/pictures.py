"""Reading picture files: whatever a file holds comes back as an upright 8-bit RGB picture, or one clear sentence."""

import logging
import warnings
from os import PathLike
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

_log = logging.getLogger("vtc")

# Beyond this, image processors that resize the short side either refuse or ask for gigabytes of memory.
MAX_ASPECT_RATIO = 200
# More than any processor passes on to its model (Qwen's: 12.8 million); larger pictures are shrunk while they are read.
MAX_PIXELS = 4096 * 4096


def load_picture(source: str | PathLike[str] | Image.Image) -> Image.Image:
    """Read a picture as a model wants it: RGB, 8 bits, upright, transparency on white, first frame, of sane size.

    Args:
        source: a file, or a PIL picture, which is converted the same way (the original is left alone).
    Returns:
        A new PIL picture in mode RGB. For an animated file the first frame; a warning is logged. One of more than
        `MAX_PIXELS` comes back with about that many, in its proportions; smaller ones as they are.
    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is empty, truncated, not a picture, of a pixel format without a defined range, or
            more than 200 times longer than wide.
    """
    if isinstance(source, Image.Image):
        return _upright_rgb(source, "the picture")
    path = Path(source)
    if not path.exists():
        raise FileNotFoundError(f"there is no picture at {path}: check the path")
    if not path.is_file():
        raise ValueError(f"{path} is not a file: give the path of one picture")
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is empty (0 bytes): fetch or export the picture again")
    try:
        with open_large(path) as picture:
            moving = getattr(picture, "is_animated", False)  # counting the frames of a GIF reads all of them
            picture.load()
            rgb = _upright_rgb(picture, str(path))
    except UnidentifiedImageError:
        raise ValueError(f"{path} is not a picture that Pillow can read: use PNG, JPEG or WebP") from None
    except Image.DecompressionBombError:
        raise ValueError(f"{path} has more pixels than Pillow's safety limit: make it smaller") from None
    except (OSError, SyntaxError, EOFError) as error:  # what Pillow's decoders raise on cut or damaged files
        raise ValueError(f"{path} is truncated or damaged ({error}): fetch or export the picture again") from None
    if moving:
        _log.warning("%s has several frames: only the first is used", path)
    return rgb


def open_large(source: str | PathLike[str] | IO[bytes]) -> Image.Image:
    """`Image.open`, silent about size; a JPEG beyond `MAX_PIXELS` will be decoded at a half, a quarter or an eighth."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # what is too large for it is still refused
        picture = Image.open(source)
    if (size := _bounded(picture.size)) != picture.size:
        picture.draft(None, size)  # of other kinds nothing comes of it
    return picture


def _bounded(size: tuple[int, int]) -> tuple[int, int]:
    """A size of the same proportions and of `MAX_PIXELS` at most."""
    scale = (MAX_PIXELS / (size[0] * size[1])) ** 0.5 if size[0] * size[1] else 1.0
    return size if scale >= 1 else (max(1, int(size[0] * scale)), max(1, int(size[1] * scale)))


def _upright_rgb(picture: Image.Image, name: str) -> Image.Image:
    picture = _shrunk(picture, ("L", "LA", "RGB", "RGBA", "CMYK", "YCbCr"))
    return _shrunk(_converted(picture, name), ("RGB",))


def _shrunk(picture: Image.Image, modes: tuple[str, ...]) -> Image.Image:
    """The picture within `MAX_PIXELS`, if its mode is one of `modes`; what is not to be mixed is converted first."""
    size = _bounded(picture.size)
    if size == picture.size or picture.mode not in modes or "transparency" in picture.info:
        return picture
    smaller = picture.resize(size, Image.Resampling.BICUBIC, reducing_gap=2.0)
    smaller.info = dict(picture.info)
    smaller.getexif().update(picture.getexif())  # which way is up
    return smaller


def _converted(picture: Image.Image, name: str) -> Image.Image:
    check_proportions(picture.size, name)
    picture = ImageOps.exif_transpose(picture)
    if picture.mode == "I" or picture.mode.startswith("I;16"):
        return _from_sixteen_bits(picture, name)
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
    if picture.mode == "F":
        raise ValueError(f"{name} holds floating-point pixels, whose range is not defined: convert it to 8 or 16 bits")
    return picture.convert("RGB")


def check_proportions(size: tuple[int, int], name: str) -> None:
    """Raise ValueError with one sentence if a picture or frame (width, height) is longer than processors take."""
    width, height = size
    if min(size) < 1 or max(size) > MAX_ASPECT_RATIO * min(size):
        raise ValueError(f"{name} is {width} x {height} pixels, beyond {MAX_ASPECT_RATIO} : 1: crop it first")


def _from_sixteen_bits(picture: Image.Image, name: str) -> Image.Image:
    """Grey levels 0..65535 become 0..255; Pillow's own conversion would clip everything above 255 to white."""
    values = np.asarray(picture.convert("I"))  # [H, W]
    if values.min() < 0 or values.max() > 65535:
        raise ValueError(f"{name} holds 32-bit pixels, whose range is not defined: convert it to 8 or 16 bits")
    grey = np.round(values / 257).astype(np.uint8)
    return Image.fromarray(grey).convert("RGB")
