"""Draw what a method did on a video: one panel per time step, as a strip or as an animation."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw

from vtc.draw.overlays import BAR, GAP, PAPER, caption, kept_in, panel, write
from vtc.layout import Tile

if TYPE_CHECKING:
    from vtc.media.video import Clip
    from vtc.reports import ReportSpan

_SIDE = 320  # px, the long side of a panel
_COLUMNS = 6
_ANIMATED = (".gif", ".webp", ".apng")


def frame_overlay(clip: Clip, span: ReportSpan, step: int, side: int = _SIDE, captions: bool = True) -> Image.Image:
    """One time step of a video's tokens: kept patches bright, dropped ones dim, merged ones outlined.

    Args:
        clip: what the model saw; where its tower joins neighbouring frames, the first of them is drawn on.
        span: the video's entry of `vtc.report(model).spans`, or of `vtc.report(model).at(layer)`.
        step: 0 to `span.grid[0] - 1`. side: long side in px. captions: whether to write time and count under it.

    Raises:
        ValueError: the span is no video. IndexError: it has no such step.
    """
    tile = _frames(span)
    if not 0 <= step < tile.t:
        raise IndexError(f"step {step} is outside the video's {tile.t} time steps.")
    number = frame_of(clip, span, step)
    own = Tile(tile.start + step * tile.h * tile.w, 1, tile.h, tile.w, box=tile.box)
    picture = panel(Image.fromarray(clip.frames[number]), span, [own], side)
    if not captions:
        return picture
    sheet = Image.new("RGB", (picture.width, picture.height + BAR), PAPER)
    sheet.paste(picture, (0, 0))
    text = f"{clip.times[number]:.1f} s: {kept_in(span, [own])}"
    write(ImageDraw.Draw(sheet), (4, picture.height + BAR // 2), text, picture.width - 8)
    return sheet


def frame_overlays(clip: Clip, span: ReportSpan) -> list[Image.Image]:
    """`frame_overlay` of every time step."""
    return [frame_overlay(clip, span, step) for step in range(_frames(span).t)]


def frame_of(clip: Clip, span: ReportSpan, step: int) -> int:
    """Which of the clip's frames a time step shows."""
    return min(len(clip) - 1, step * len(clip) // _frames(span).t)


def _frames(span: ReportSpan) -> Tile:
    frames = [tile for tile in span.tiles if tile.role == "frames" and tile.box is not None]
    if span.modality != "video" or len(frames) != 1:
        raise ValueError("a film strip is drawn of a video, and this span is none")
    return frames[0]


def save_film(clip: Clip, span: ReportSpan, file: Path) -> None:
    """Save the overlays of a video: animated for .gif, .webp and .apng, else one picture with all of them."""
    drawn = frame_overlays(clip, span)
    if file.suffix.lower() in _ANIMATED:
        pause = max(80, round(1000 * clip.duration / len(drawn)))
        drawn[0].save(file, save_all=True, append_images=drawn[1:], duration=pause, loop=0)
        return
    columns = min(_COLUMNS, len(drawn))
    rows = -(-len(drawn) // columns)
    width, height = drawn[0].size
    sheet = Image.new("RGB", (columns * (width + GAP) + GAP, rows * (height + GAP) + GAP + BAR), PAPER)
    for number, picture in enumerate(drawn):
        row, column = divmod(number, columns)
        sheet.paste(picture, (GAP + column * (width + GAP), GAP + row * (height + GAP)))
    write(ImageDraw.Draw(sheet), (GAP, sheet.height - BAR // 2), caption(span), sheet.width - 2 * GAP)
    sheet.save(file)
