"""Draw what a method did on the picture: kept patches bright, dropped ones dim, merged ones outlined by group."""

from __future__ import annotations

import colorsys
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFont

if TYPE_CHECKING:
    from vtc.layout import Tile
    from vtc.reports import ReportSpan

LONG_SIDE = 768  # px; small pictures are enlarged so that a patch stays visible
GAP, BAR = 16, 40  # px between panels; height of the caption
PAPER, _INK, _FRAME = (18, 20, 26), (235, 238, 245), (255, 255, 255)
_SMALLEST = 9  # points of a label
_EDGE, _LABEL = (90, 200, 250, 255), (10, 12, 18, 225)  # around crops; behind what is written on them
_TINT = np.array([30.0, 34.0, 44.0])  # lifts dropped patches off black, so that kept black ones differ from them


def overlay(picture: Image.Image, span: ReportSpan, side: int = LONG_SIDE, captions: bool = True) -> Image.Image:
    """Picture of which visual tokens survived.

    Args:
        picture: what the model saw (after any centre crop; see `vtc.seen`), mode RGB, any size.
        span: one image's entry of `vtc.report(model).spans`, or of `vtc.report(model).at(layer)`.
        side: long side of a panel in px.
        captions: whether to count the tokens under the picture and to leave a margin around it.
    Returns:
        A new picture with one panel for the image, and one more for its thumbnail if the model makes one.
        Patches whose token was kept are bright, dropped ones dark and grey. Patches that share an output are half
        bright and outlined in that output's colour. A caption counts the tokens, and a label in each crop of an
        any-resolution picture says how many it keeps, and which share that is of those of all crops.
    Raises:
        ValueError: the span is a video, or the model does not say where its tokens lie in the picture.
    """
    if span.modality != "image" or any(tile.t > 1 for tile in span.tiles):
        raise ValueError("an overlay is drawn on one picture, and this span is a video")
    placed = [tile for tile in span.tiles if tile.box is not None]
    if not placed:
        raise ValueError("this model does not say where its visual tokens lie in the picture, so nothing can be drawn")
    thumbnail = [tile for tile in placed if tile.role == "thumbnail"]
    image = [tile for tile in placed if tile.role != "thumbnail"]
    panels = [(name, tiles) for name, tiles in (("thumbnail", thumbnail), ("crops", image)) if tiles]
    drawn = [panel(picture, span, tiles, side) for _, tiles in panels]
    if captions:
        for part, (name, _) in zip(drawn, panels, strict=True):
            label_crops(part, span, name == "thumbnail")

    margin, bar = (GAP, GAP + BAR) if captions else (0, 0)
    width = sum(part.width for part in drawn) + GAP * (len(drawn) - 1) + 2 * margin
    sheet = Image.new("RGB", (width, drawn[0].height + bar), PAPER)
    draw, x = ImageDraw.Draw(sheet), margin
    middle = drawn[0].height + GAP + BAR // 2
    for part, (name, tiles) in zip(drawn, panels, strict=True):
        sheet.paste(part, (x, margin))
        if captions:
            text = caption(span) if len(panels) == 1 else f"{name}: {kept_in(span, tiles)}"
            write(draw, (x, middle), text, part.width)
        x += part.width + GAP
    return sheet


def label_crops(drawn: Image.Image, span: ReportSpan, thumbnail: bool) -> None:
    """Write into a panel what each crop keeps, and outline it: the thumbnail if `thumbnail`, else the others."""
    total = max(1, sum(crop.tokens_out for crop in span.crops))
    draw = ImageDraw.Draw(drawn, "RGBA")
    for crop in span.crops:
        if (crop.role == "thumbnail") is not thumbnail or crop.box is None:
            continue
        x0, y0, x1, y1 = (round(v * side) for v, side in zip(crop.box, drawn.size * 2, strict=True))
        if not thumbnail:
            draw.rectangle((x0, y0, x1 - 1, y1 - 1), outline=_EDGE, width=2)
        share = f"{crop.tokens_out}"
        fonts = [font for font in _fonts() if font.size <= max(_SMALLEST, (y1 - y0) / 6)]
        for text in (f"{share} · {100 * crop.tokens_out / total:.0f} %", share):
            font = next((font for font in fonts if draw.textlength(text, font=font) <= x1 - x0 - 24), None)
            if font is not None and font.size + 16 <= y1 - y0:
                wide = draw.textlength(text, font=font)
                draw.rounded_rectangle((x0 + 6, y0 + 6, x0 + 18 + wide, y0 + 14 + font.size), 5, fill=_LABEL)
                draw.text((x0 + 12, y0 + 10 + font.size / 2), text, fill=_INK, font=font, anchor="lm")
                break


@cache
def _fonts() -> tuple[ImageFont.FreeTypeFont, ...]:
    """From the largest to the smallest that is written with."""
    fonts = (ImageFont.load_default(points) for points in range(22, _SMALLEST - 1, -1))
    return tuple(font for font in fonts if isinstance(font, ImageFont.FreeTypeFont))


def caption(span: ReportSpan) -> str:
    """How many tokens stayed and how many were merged."""
    source = np.asarray(span.source.cpu())
    sizes = np.bincount(source[source >= 0], minlength=1)
    text = f"{span.tokens_out} of {span.tokens_in} visual tokens"
    merged = sizes[sizes > 1]
    return f"{text}, {merged.size} of them merged from {merged.sum()}" if merged.size else text


def kept_in(span: ReportSpan, tiles: list[Tile]) -> str:
    """How many tokens stayed in some tiles, and of all."""
    kept = _kept(span)
    return (
        f"{sum(int(kept[_indices(tile)].sum()) for tile in tiles)} of {sum(tile.h * tile.w for tile in tiles)}"
        f" (all: {span.tokens_out} of {span.tokens_in})"
    )


def _kept(span: ReportSpan) -> np.ndarray:
    kept = np.zeros(span.source.numel(), dtype=bool)
    kept[np.asarray(span.kept.cpu())] = True
    return kept


def _indices(tile: Tile) -> np.ndarray:
    """Span indices of a tile's patches, [h, w]."""
    return np.asarray(tile.indices())[0]


def panel(picture: Image.Image, span: ReportSpan, tiles: list[Tile], side: int = LONG_SIDE) -> Image.Image:
    """The picture with the patches of `tiles` marked, its long side `side` px."""
    scale = side / max(picture.size)
    size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    bright = picture.convert("RGB").resize(size, Image.Resampling.LANCZOS if scale > 1 else Image.Resampling.BOX)
    grey = np.asarray(ImageEnhance.Color(bright).enhance(0.25), dtype=np.float32)
    pixels = np.asarray(bright, dtype=np.float32)
    level = np.zeros(pixels.shape[:2], dtype=np.float32)  # 0 dim .. 1 bright, [H, W]
    kept, source = _kept(span), np.asarray(span.source.cpu())
    sizes = np.bincount(source[source >= 0], minlength=span.tokens_out)
    group = np.where((source >= 0) & (sizes[source.clip(0)] > 1), source, -1)  # [N], -1: stands alone or dropped
    rank = np.append(np.cumsum(sizes > 1) - 1, -1)  # groups by number, for colours far apart; the last is "none"
    for tile in tiles:
        index = _indices(tile)
        xs, ys = _edges(tile, *size)
        shade = np.where(kept[index], 1.0, np.where(group[index] >= 0, 0.5, 0.0))
        level[ys[0] : ys[-1], xs[0] : xs[-1]] = shade.repeat(np.diff(ys), 0).repeat(np.diff(xs), 1)
    mixed = level[..., None] * pixels + (1 - level[..., None]) * (0.3 * grey + _TINT)
    drawn = Image.fromarray(mixed.clip(0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(drawn)
    for tile in tiles:
        index, edges = _indices(tile), _edges(tile, *size)
        alone = np.where(kept[index] & (group[index] < 0), 0, -1)
        _outline(draw, alone, edges, lambda _: _FRAME, width=1)
        _outline(draw, rank[group[index]], edges, _color, width=2)
    return drawn


def _edges(tile: Tile, width: int, height: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixel borders of a tile's columns [w + 1] and rows [h + 1]."""
    assert tile.box is not None
    x0, y0, x1, y1 = tile.box
    xs = np.linspace(x0 * width, x1 * width, tile.w + 1).round().astype(int)
    ys = np.linspace(y0 * height, y1 * height, tile.h + 1).round().astype(int)
    return xs, ys


def _outline(draw: ImageDraw.ImageDraw, label: np.ndarray, edges, color, width: int) -> None:
    """Draw the border between patches of different labels [h, w], on the inner side; -1 has no outline."""
    xs, ys = edges
    framed = np.pad(label, 1, constant_values=-1)
    for row, column in np.argwhere(label >= 0):
        own, (left, right), (top, bottom) = label[row, column], xs[column : column + 2], ys[row : row + 2]
        right, bottom = right - 1, bottom - 1
        sides = {
            (left, top, right, top + width - 1): framed[row, column + 1],
            (left, bottom - width + 1, right, bottom): framed[row + 2, column + 1],
            (left, top, left + width - 1, bottom): framed[row + 1, column],
            (right - width + 1, top, right, bottom): framed[row + 1, column + 2],
        }
        for (x0, y0, x1, y1), other in sides.items():
            if other != own and x0 <= x1 and y0 <= y1:
                draw.rectangle((int(x0), int(y0), int(x1), int(y1)), fill=color(int(own)))


def _color(rank: int) -> tuple[int, int, int]:
    """A vivid colour; neighbours in the numbering are far apart on the wheel (golden angle)."""
    red, green, blue = colorsys.hsv_to_rgb(rank * 0.6180339887 % 1.0, 0.75, 1.0)
    return round(red * 255), round(green * 255), round(blue * 255)


def write(draw: ImageDraw.ImageDraw, at: tuple[int, int], text: str, room: int) -> None:
    """Text from its left middle, as large as fits into `room` px."""
    for points in range(20, 7, -1):
        font = ImageFont.load_default(points)
        if draw.textlength(text, font=font) <= room:
            break
    draw.text(at, text, fill=_INK, font=font, anchor="lm")
