"""Pictures of answers, as data URIs: nothing that a visitor uploads is ever served as a file."""

from __future__ import annotations

import base64
from io import BytesIO
from typing import Any

from PIL import Image

import vtc
from vtc.demos.media import Media
from vtc.demos.studio import Run

SIDE = 480  # px


def drawn(media: Media, processor: Any, run: Run, layer: int, step: int) -> Image.Image:
    """What decoder layer `layer` holds of a picture, or of one time step of a clip.

    Args:
        layer: 0 = what the vision tower hands over; 1 to `run.depth` = what that decoder layer holds.
        step: time step of a clip's tokens.
    """
    assert run.report is not None
    media = run.shown or media
    if run.method is None or layer == 0:
        return plain(media, processor, step, run.report.spans[0].grid[0])
    span = run.report.at(layer - 1)[0]
    if media.clip is not None:
        return vtc.frame_overlay(media.clip, span, min(step, span.grid[0] - 1), SIDE, captions=False)
    return vtc.overlay(vtc.seen(media.still, processor), span, SIDE, captions=False)


def plain(media: Media, processor: Any, step: int = 0, steps: int = 1) -> Image.Image:
    """The picture as the model sees it, or the frame that one of `steps` time steps shows."""
    if media.clip is not None:
        picture = Image.fromarray(media.frames[frame_number(media, step, steps)])
    else:
        picture = vtc.seen(media.still, processor)
    scale = SIDE / max(picture.size)
    size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    return picture.resize(size, Image.Resampling.LANCZOS if scale > 1 else Image.Resampling.BOX)


def second(media: Media, run: Run, step: int) -> str:
    """When a clip's time step is, for a caption; nothing for a picture."""
    if media.clip is None or run.report is None:
        return ""
    return f"{media.clip.times[frame_number(media, step, run.report.spans[0].grid[0])]:.1f} s, "


def frame_number(media: Media, step: int, steps: int) -> int:
    """Which frame of a clip stands for one of `steps` time steps."""
    return min(len(media.frames) - 1, step * len(media.frames) // steps)


def uri(picture: Image.Image) -> str:
    """A picture as the `src` of an <img>."""
    file = BytesIO()
    picture.save(file, "webp", quality=82, method=0)
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()


def thumbnail(picture: Image.Image, side: int) -> str:
    """A small copy of it, as a data URI."""
    small = picture.copy()
    small.thumbnail((side, side))
    return uri(small)
