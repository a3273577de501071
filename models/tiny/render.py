"""Pixels of a scene, and which patch belongs to which object (what the vision tower learns to say)."""

import colorsys
import functools
import math
import random

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vtc.models.tiny import drawings, words
from vtc.models.tiny.scenes import GRID, PATCH, SIZE, Item, Scene, letter_centers

FONT_FOLDER = "/usr/share/fonts/truetype/dejavu/"
FONTS = {
    "train": [
        "DejaVuSans",
        "DejaVuSans-Bold",
        "DejaVuSansMono",
        "DejaVuSansMono-Bold",
        "DejaVuSerif",
        "DejaVuSerif-Bold",
    ],
    "test": ["DejaVuSansCondensed-Bold", "DejaVuSerifCondensed"],
}
# hue (degrees), saturation, value; hue < 0 for the greys
_HSV = {
    "red": (0, 0.9, 0.85),
    "green": (125, 0.85, 0.6),
    "blue": (225, 0.85, 0.85),
    "yellow": (54, 0.9, 0.97),
    "orange": (28, 0.95, 0.97),
    "purple": (285, 0.75, 0.65),
    "black": (-1, 0.0, 0.07),
    "white": (-1, 0.0, 0.98),
}


def _rgb(color: str, rng: random.Random) -> tuple[int, int, int]:
    hue, saturation, value = _HSV[color]
    if hue >= 0:
        hue += rng.uniform(-5, 5)
        saturation = min(1.0, saturation * rng.uniform(0.88, 1.08))
    value = min(1.0, max(0.0, value + rng.uniform(-0.06, 0.05)))
    r, g, b = colorsys.hsv_to_rgb(hue % 360 / 360, saturation, value)
    return int(r * 255), int(g * 255), int(b * 255)


def _outline(name: str) -> list[tuple[float, float]]:
    """Corners in [-1, 1]."""
    if name == "square":
        return [(-0.88, -0.88), (0.88, -0.88), (0.88, 0.88), (-0.88, 0.88)]
    if name == "triangle":
        return [(0, -0.98), (0.95, 0.8), (-0.95, 0.8)]
    if name == "star":
        points = []
        for i in range(10):
            radius, angle = (1.0, 0.42)[i % 2], math.pi * (i / 5 - 0.5)
            points.append((radius * math.cos(angle), radius * math.sin(angle)))
        return points
    if name == "cross":
        w = 0.34
        return [
            (-w, -1),
            (w, -1),
            (w, -w),
            (1, -w),
            (1, w),
            (w, w),
            (w, 1),
            (-w, 1),
            (-w, w),
            (-1, w),
            (-1, -w),
            (-w, -w),
        ]
    if name == "heart":
        ts = [2 * math.pi * i / 40 for i in range(40)]
        return [
            (math.sin(t) ** 3, -(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)) / 17)
            for t in ts
        ]
    return [(math.cos(2 * math.pi * i / 48) * 0.96, math.sin(2 * math.pi * i / 48) * 0.96) for i in range(48)]


def shape(item: Item, rng: random.Random) -> Image.Image:
    """A tilted shape in a shade of its colour, RGBA, as large as its box."""
    side = item.box[2] - item.box[0]
    big = side * 3
    mask = Image.new("L", (big, big), 0)
    tilt = rng.uniform(-0.22, 0.22) * (0.5 if item.name in ("square", "cross") else 1)
    scale = big / 2 * (0.9 if item.name in ("square", "triangle") else 0.97)
    c, s = math.cos(tilt) * scale, math.sin(tilt) * scale
    corners = [(big / 2 + x * c - y * s, big / 2 + x * s + y * c) for x, y in _outline(item.name)]
    ImageDraw.Draw(mask).polygon(corners, fill=255)
    rgba = Image.new("RGBA", (side, side), _rgb(item.color, rng))
    rgba.putalpha(mask.reduce(3))
    return rgba


def drawing(item: Item, rng: random.Random, split: str) -> Image.Image:
    file = drawings.load()[split][item.name]
    rgba = Image.fromarray(rng.choice(file)[1])
    side = item.box[2] - item.box[0]
    if item.name not in ("flag", "card") and rng.random() < 0.5:
        rgba = rgba.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if split == "train":  # test drawings are shown as drawn, up to mirror and size
        if rng.random() < 0.5:
            rgba = rgba.rotate(rng.uniform(-18, 18), Image.Resampling.BILINEAR, expand=True)
        if rng.random() < 0.5:
            rgba = rgba.resize((max(8, int(rgba.width * rng.uniform(0.75, 1.3))), rgba.height))
        if rng.random() < 0.5:
            rgba = _recolored(rgba, rng)
    rgba.thumbnail((side, side), Image.Resampling.BILINEAR)
    if max(rgba.size) < side:
        ratio = side / max(rgba.size)
        rgba = rgba.resize(
            (max(1, int(rgba.width * ratio)), max(1, int(rgba.height * ratio))), Image.Resampling.BILINEAR
        )
    return rgba


def _recolored(rgba: Image.Image, rng: random.Random) -> Image.Image:
    """Another tint: colour channels mixed at random and brightness bent, so that outline and inside must be used."""
    pixels = np.asarray(rgba, dtype=np.float32)
    mix = np.eye(3, dtype=np.float32)
    if rng.random() < 0.2:
        mix[:] = 1 / 3  # grey
    elif rng.random() < 0.6:
        order = rng.sample(range(3), 3)
        mix = 0.5 * mix + 0.5 * mix[order] if rng.random() < 0.5 else mix[order]
    color = pixels[..., :3] @ mix
    color = 255 * (color / 255) ** rng.uniform(0.5, 1.8)
    out = np.concatenate([color.clip(0, 255), pixels[..., 3:]], -1)
    return Image.fromarray(out.astype(np.uint8))


@functools.cache
def _font(name: str, size: int) -> ImageFont.FreeTypeFont:
    try:
        return ImageFont.truetype(f"{FONT_FOLDER}{name}.ttf", size)
    except OSError as error:
        raise SystemExit(
            "The fonts are missing: install the Debian packages openclipart-png and fonts-dejavu."
        ) from error


def sign(item: Item, rng: random.Random, split: str) -> Image.Image:
    """Dark letters on a pale plate, or the reverse."""
    x0, y0, x1, y1 = item.box
    plate, ink = (rng.randint(205, 255), rng.randint(0, 60)) if rng.random() < 0.7 else (rng.randint(0, 50), 255)
    tint = [rng.randint(-14, 0) if plate > 128 else rng.randint(0, 30) for _ in range(3)]
    r, g, b = (max(0, plate + t) for t in tint)
    sign = Image.new("RGBA", (x1 - x0, y1 - y0), (r, g, b, 255))
    draw = ImageDraw.Draw(sign)
    font = _font(rng.choice(FONTS[split]), rng.randint(27, 32))
    for letter, x in zip(item.text.upper(), letter_centers(item), strict=True):
        draw.text((x - x0, (y1 - y0) / 2), letter, font=font, fill=(ink, ink, ink, 255), anchor="mm")
    return sign


def background(rng: random.Random, side: int = SIZE) -> np.ndarray:
    """A muted gradient with blotches, then thin lines and dots: busy, but never one of the eight colours in full."""
    noise = np.random.default_rng(rng.randrange(1 << 30))
    base = noise.uniform(70, 205, 3).astype(np.float32)
    base = base.mean() + 0.55 * (base - base.mean())
    ys, xs = np.mgrid[0:side:2, 0:side:2].astype(np.float32) / side - 0.5
    direction = noise.uniform(-45, 45, 2)
    canvas = base + (xs * direction[0] + ys * direction[1])[..., None]
    cells = int(noise.integers(4, 28))
    blotches = noise.normal(0, noise.uniform(4, 22), (cells, cells, 3)).clip(-60, 60) + 128
    half = side // 2
    blotches = Image.fromarray(blotches.astype(np.uint8)).resize((half, half), Image.Resampling.BILINEAR)
    canvas = canvas + (np.asarray(blotches, dtype=np.float32) - 128)
    picture = Image.fromarray(canvas.clip(0, 255).astype(np.uint8)).resize((side, side), Image.Resampling.BILINEAR)
    draw = ImageDraw.Draw(picture)
    for _ in range(rng.randint(5, 60)):
        x, y = rng.randint(0, side), rng.randint(0, side)
        dx, dy = rng.randint(-60, 60), rng.randint(-60, 60)
        shade = [int(min(255, max(0, c + rng.uniform(-55, 55)))) for c in base]
        fill = (shade[0], shade[1], shade[2])
        mark = rng.random()
        if mark < 0.5:
            draw.line((x, y, x + dx, y + dy), fill=fill, width=rng.randint(1, 3))
        elif mark < 0.75:
            draw.arc(
                (x, y, x + abs(dx) + 2, y + abs(dy) + 2), rng.randint(0, 360), rng.randint(0, 360), fill=fill, width=2
            )
        else:
            radius = rng.randint(1, 5)
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=fill)
    return np.asarray(picture)


def draw(scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    """(picture uint8 [336, 336, 3], owner int8 [24, 24]: 0 background, i + 1 item i, -1 undecided)."""
    rng = random.Random(f"pixels {scene.split} {scene.seed}")
    picture = Image.fromarray(background(rng))
    owner = np.zeros((GRID, GRID), dtype=np.int8)
    for i, item in enumerate(scene.items):
        style = random.Random(item.style)
        if item.text:
            rgba = sign(item, style, scene.split)
        elif item.kind == "shape":
            rgba = shape(item, style)
        else:
            rgba = drawing(item, style, scene.split)
        x = int(item.center[0] - rgba.width / 2)
        y = int(item.center[1] - rgba.height / 2)
        picture.paste(rgba, (x, y), rgba)
        mask = np.zeros((SIZE, SIZE), dtype=np.float32)
        alpha = np.asarray(rgba.getchannel("A"), dtype=np.float32)[: SIZE - y, : SIZE - x] / 255
        mask[y : y + alpha.shape[0], x : x + alpha.shape[1]] = alpha
        cover = mask.reshape(GRID, PATCH, GRID, PATCH).mean((1, 3))  # [24, 24] share of each patch that is the object
        owner[cover > 0.06] = -1
        owner[cover > 0.3] = i + 1
        owner[item.anchor] = i + 1
    pixels = np.asarray(picture)
    if rng.random() < 0.5:
        grain = np.random.default_rng(scene.seed).integers(-6, 7, (SIZE, SIZE, 1), dtype=np.int16)
        pixels = (pixels.astype(np.int16) + grain).clip(0, 255).astype(np.uint8)
    return pixels, owner


def kinds_of(sign: Item, columns: np.ndarray) -> list[tuple[int, int]]:
    """(index into words.KINDS, slot from 1) of the letter that each of these patch columns of a sign shows."""
    middles = (columns + 0.5) * PATCH  # [n]
    nearest = np.abs(middles[:, None] - np.array(letter_centers(sign))).argmin(1)
    return [(words.KINDS.index(sign.text[i]), int(i) + 1) for i in nearest]
