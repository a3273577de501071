"""Frames of a clip, and what every visual token of them shows (what the vision tower learns to say)."""

import random

import numpy as np
from PIL import Image

from vtc.models.tiny import render, words
from vtc.models.tiny.qwen.clips import CELL, DIRECTIONS, GRID, SIDE, STEPS, Actor, Clip
from vtc.models.tiny.scenes import letter_centers

KINDS = ["", *words.SHAPES, *words.DIGITS]  # class 0: nothing there
EVENTS = ["", *DIRECTIONS, "appeared", "blinked once", "blinked twice", "blinked thrice", "gone", "moved on"]
KIND, COLOR, SLOT, EVENT, SINCE, WAS_KIND, WAS_COLOR = range(7)
LABELS = 7
LOOKS = (len(KINDS), len(words.COLORS) + 1, 4)  # classes of the first three; a number has three digits at most
PASTS = (len(EVENTS), STEPS + 1, *LOOKS[:2])  # of the others
LEFT = EVENTS.index("gone")  # from here on: events of empty places
IGNORE = -100


def draw(clip: Clip) -> tuple[np.ndarray, np.ndarray]:
    """(frames uint8 [2 * steps, 192, 192, 3], labels int8 [steps, 12, 12, 7]).

    Three labels say what a token shows: kind, colour, slot of the digit; IGNORE where a thing covers so little of it
    that nobody could say. Four say what has become known by this step: what the thing has done, and the step, from 1,
    in which it was first seen; of an empty place, that something has gone or moved on, and its kind and colour.
    """
    rng = random.Random(f"film {clip.split} {clip.seed}")
    ground = render.background(rng, SIDE)
    count = 2 * clip.steps
    frames = np.repeat(ground[None], count, 0)
    labels = np.zeros((clip.steps, GRID, GRID, LABELS), dtype=np.int8)
    for actor in clip.actors:
        style = random.Random(actor.item.style)
        sprite = render.sign(actor.item, style, clip.split) if actor.item.text else render.shape(actor.item, style)
        pixels = np.asarray(sprite)
        color, alpha = pixels[..., :3].astype(np.float32), pixels[..., 3:].astype(np.float32) / 255
        height, width = alpha.shape[:2]
        for step, shown in enumerate(actor.shown):
            if not shown:
                continue
            cover = np.zeros((SIDE, SIDE), dtype=np.float32)
            for frame in (2 * step, 2 * step + 1):
                dx, dy = actor.offset(frame, count)
                x, y = actor.item.box[0] + dx, actor.item.box[1] + dy
                under = frames[frame, y : y + height, x : x + width]
                under[:] = (under * (1 - alpha) + color * alpha + 0.5).astype(np.uint8)
                cover[y : y + height, x : x + width] += alpha[..., 0] / 2
            share = cover.reshape(GRID, CELL, GRID, CELL).mean((1, 3))
            _label(labels[step], actor, share, step, actor.offset(2 * step, count))
    return _worn(frames, rng), _left(labels, clip)


def sketch(clip: Clip) -> np.ndarray:
    """Labels guessed from boxes alone, without drawing."""
    labels = np.zeros((clip.steps, GRID, GRID, LABELS), dtype=np.int8)
    edges = np.arange(GRID + 1) * CELL
    for actor in clip.actors:
        x0, y0, x1, y1 = actor.item.box
        for step, shown in enumerate(actor.shown):
            if shown:
                dx, dy = actor.offset(2 * step, 2 * clip.steps)
                along = [
                    (np.minimum(edges[1:], high) - np.maximum(edges[:-1], low)).clip(0) / CELL
                    for low, high in ((y0 + dy, y1 + dy), (x0 + dx, x1 + dx))
                ]
                _label(labels[step], actor, along[0][:, None] * along[1][None], step, (dx, dy))
    return _left(labels, clip)


def _event(actor: Actor, step: int) -> int:
    """What an actor has been seen to do, up to this step."""
    if actor.role == "moves" and step:
        return EVENTS.index(actor.direction)
    if actor.role in ("appears", "flashes") and actor.first:
        return EVENTS.index("appeared")
    blinks = actor.shown[:step].count(False) if actor.role == "blinks" else 0
    return EVENTS.index("appeared") + blinks if blinks else 0


def _left(labels: np.ndarray, clip: Clip) -> np.ndarray:
    """Mark empty places where something was before with what it was."""
    moving = {(KINDS.index(a.item.name), words.COLORS.index(a.item.color) + 1) for a in clip.actors if a.direction}
    was = np.zeros((GRID, GRID, 2), dtype=np.int8)
    for now in labels:
        here, empty = now[..., KIND] > 0, now[..., KIND] == 0
        left = empty & (was[..., 0] > 0)
        now[left, WAS_KIND], now[left, WAS_COLOR] = was[left].T
        moved = np.zeros_like(left)
        for kind, color in moving:
            moved |= left & (was[..., 0] == kind) & (was[..., 1] == color)
        now[left, EVENT] = LEFT
        now[moved, EVENT] = LEFT + 1
        was[here] = now[here][:, :2]
    return labels


def _label(labels: np.ndarray, actor: Actor, share: np.ndarray, step: int, offset: tuple[int, int]) -> None:
    """Enter an actor that covers this share of each token into the labels [12, 12, 7] of one step."""
    item, past = actor.item, (_event(actor, step), actor.first + 1)
    mine = share > 0.3
    labels[(share > 0.06) & ~mine] = IGNORE
    if not item.text:
        labels[mine] = (KINDS.index(item.name), words.COLORS.index(item.color) + 1, 0, *past, 0, 0)
        return
    centers = np.array(letter_centers(item)) + offset[0]
    columns = np.nonzero(mine.any(0))[0]
    nearest = np.abs((columns + 0.5)[:, None] * CELL - centers[None]).argmin(1)
    for column, digit in zip(columns, nearest, strict=True):
        labels[mine[:, column], column] = (KINDS.index(item.text[digit]), 0, digit + 1, *past, 0, 0)


def _worn(frames: np.ndarray, rng: random.Random) -> np.ndarray:
    """As video files are: half of the clips with grain, half with colours at half resolution."""
    if rng.random() < 0.5:
        noise = np.random.default_rng(rng.randrange(1 << 30))
        grain = noise.integers(-6, 7, (1, SIDE, SIDE, 1), dtype=np.int16)
        frames = (frames.astype(np.int16) + grain).clip(0, 255).astype(np.uint8)
    if rng.random() < 0.5:
        frames = np.stack([_coarse_color(frame) for frame in frames])
    return frames


def _coarse_color(frame: np.ndarray) -> np.ndarray:
    """4:2:0, the colour resolution of nearly every video file."""
    bands = list(Image.fromarray(frame).convert("YCbCr").split())
    for i in (1, 2):
        bands[i] = bands[i].reduce(2).resize(bands[i].size, Image.Resampling.BILINEAR)
    return np.asarray(Image.merge("YCbCr", bands).convert("RGB"))
