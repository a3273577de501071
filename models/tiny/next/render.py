"""Pixels of tiny-next's scenes: what tiny-llava's are drawn with, on a canvas of 672 px."""

import random
from dataclasses import replace

import numpy as np
from PIL import Image

from vtc.models.tiny import render
from vtc.models.tiny.next.scenes import CROPS, SIDE, Scene, Thing
from vtc.models.tiny.scenes import SIZE


def draw(scene: Scene) -> np.ndarray:
    """uint8 [672, 672, 3]. The background is that of 336 px at twice the scale."""
    rng = random.Random(f"next pixels {scene.split} {scene.seed}")
    picture = Image.fromarray(render.background(rng)).resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    for thing in scene.things:
        rgba = _drawn(thing, scene.split)
        x0, y0, x1, y1 = thing.box
        picture.paste(rgba, (int((x0 + x1 - rgba.width) / 2), int((y0 + y1 - rgba.height) / 2)), rgba)
    return np.asarray(picture)


def _drawn(thing: Thing, split: str) -> Image.Image:
    item = thing.item
    if thing.crop is None:
        x0, y0, x1, y1 = item.box
        item = replace(item, box=(CROPS * x0, CROPS * y0, CROPS * x1, CROPS * y1))
    style = random.Random(item.style)
    if item.text:
        return render.sign(item, style, split)
    return render.shape(item, style) if item.kind == "shape" else render.drawing(item, style, split)


def views(picture: np.ndarray) -> np.ndarray:
    """uint8 [5, 336, 336, 3]: the thumbnail and the four crops, as LlavaNextImageProcessor cuts a square of 672 px."""
    thumbnail = np.asarray(Image.fromarray(picture).resize((SIZE, SIZE), Image.Resampling.BICUBIC))
    crops = picture.reshape(CROPS, SIZE, CROPS, SIZE, 3).swapaxes(1, 2).reshape(-1, SIZE, SIZE, 3)
    return np.concatenate([thumbnail[None], crops])
