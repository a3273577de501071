"""Pictures of answers, as data URIs: nothing that a visitor uploads is ever served as a file."""

from __future__ import annotations

import base64
from io import BytesIO
from typing import Any

import torch
from PIL import Image

import vtc
from vtc.demos.media import Media
from vtc.demos.studio import Run

SIDE = 480  # px
FILM_SIDE = 320  # px, of each time step of a clip


def drawn(media: Media, processor: Any, run: Run, layer: int) -> Image.Image:
    """What decoder layer `layer` holds: a picture, or a clip's time steps from left to right.

    Args:
        layer: 0 = what the vision tower hands over; 1 to `run.depth` = what that decoder layer holds.
    """
    assert run.report is not None
    media = run.shown or media
    steps = run.report.spans[0].grid[0]
    if run.method is None or layer == 0:
        return plain(media, processor, steps)
    span = run.report.at(layer - 1)[0]
    if media.clip is None:
        return vtc.overlay(vtc.seen(media.still, processor), span, SIDE, captions=False)
    return _strip([vtc.frame_overlay(media.clip, span, step, FILM_SIDE, captions=False) for step in range(steps)])


def plain(media: Media, processor: Any, steps: int = 1) -> Image.Image:
    """The picture as the model sees it, or a frame for each of a clip's `steps` time steps, from left to right."""
    if media.clip is None:
        return _resized(vtc.seen(media.still, processor), SIDE)
    frames = [media.frames[frame_number(media, step, steps)] for step in range(steps)]
    return _strip([_resized(Image.fromarray(frame), FILM_SIDE) for frame in frames])


def _resized(picture: Image.Image, side: int) -> Image.Image:
    scale = side / max(picture.size)
    size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    return picture.resize(size, Image.Resampling.LANCZOS if scale > 1 else Image.Resampling.BOX)


def _strip(pictures: list[Image.Image]) -> Image.Image:
    width, height = pictures[0].size
    strip = Image.new("RGB", (width * len(pictures), height))
    for number, picture in enumerate(pictures):
        strip.paste(picture, (number * width, 0))
    return strip


def seconds(media: Media, run: Run) -> list[float]:
    """When each of a clip's time steps is; nothing for a picture."""
    if media.clip is None or run.report is None:
        return []
    steps = run.report.spans[0].grid[0]
    return [media.clip.times[frame_number(media, step, steps)] for step in range(steps)]


def held_by_step(run: Run, layer: int) -> list[int]:
    """Tokens of each time step of a clip that decoder layer `layer` holds, as for `drawn`."""
    assert run.report is not None
    span = run.report.at(max(0, layer - 1))[0]
    (tile,) = [tile for tile in span.tiles if tile.role == "frames"]
    held = torch.zeros(span.source.numel(), dtype=torch.long)
    held[span.kept.cpu()] = 1
    if layer == 0:
        held[:] = 1
    return [int(held[torch.as_tensor(step).flatten()].sum()) for step in tile.indices()]


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
