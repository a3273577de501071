"""Dense labels: what every patch of a picture shows. The tower learns to say it, the language model to use it."""

import numpy as np

from vtc.models.tiny import words
from vtc.models.tiny.render import kinds_of
from vtc.models.tiny.scenes import GRID, PATCH, Scene

KIND, COLOR, SLOT, CENTER = range(4)
SIZES = (len(words.KINDS), len(words.COLORS) + 1, words.SLOTS + 1, 2)  # classes of each label
IGNORE = -100
_PAIRS = [f"{c} {s}" for c in words.COLORS for s in words.SHAPES]
PRESENT = [*words.KINDS[1:], *words.COLORS, *_PAIRS]  # what the CLS token is asked about
_INDEX = {name: i for i, name in enumerate(PRESENT)}


def dense(scene: Scene, owner: np.ndarray) -> np.ndarray:
    """[24, 24, 4] int16: kind, colour, slot of the letter, is-anchor. IGNORE where the owner is undecided."""
    out = np.zeros((GRID, GRID, 4), dtype=np.int16)
    for i, item in enumerate(scene.items):
        mine = owner == i + 1
        color = words.COLORS.index(item.color) + 1 if item.color else 0
        if item.text:  # which letter a patch shows depends on its column
            columns = np.nonzero(mine.any(0))[0]
            for column, (kind, slot) in zip(columns, kinds_of(item, columns), strict=True):
                out[mine[:, column], column] = (kind, 0, slot, 0)
        else:
            out[mine] = (words.KINDS.index(item.name), color, 0, 0)
        out[item.anchor][CENTER] = 1
    out[owner == -1] = IGNORE
    return out


def window(scene: Scene, owner: np.ndarray, labels: np.ndarray, top: int, left: int, side: int) -> tuple:
    """Labels of a side x side window, and what its CLS token should and should not name.

    Objects less than 60 % inside are nobody's fault: their patches are ignored and their names left open. A sign cut on
    its left keeps its letters but loses their slots, which cannot be counted any more.
    """
    part = labels[top : top + side, left : left + side].copy()
    owners = owner[top : top + side, left : left + side]
    present = np.zeros(len(PRESENT), dtype=np.float32)
    asked = np.ones(len(PRESENT), dtype=np.float32)
    x_low, y_low, x_high, y_high = left * PATCH, top * PATCH, (left + side) * PATCH, (top + side) * PATCH
    for i, item in enumerate(scene.items):
        x0, y0, x1, y1 = item.box
        wide = max(0, min(x1, x_high) - max(x0, x_low))
        tall = max(0, min(y1, y_high) - max(y0, y_low))
        if wide * tall == 0:
            continue
        mine = owners == i + 1
        names = names_of(item)
        if wide * tall < 0.6 * (x1 - x0) * (y1 - y0) or (item.text and wide < x1 - x0):
            asked[names] = 0
            if item.text:
                part[mine, SLOT] = IGNORE if x0 < x_low else part[mine, SLOT]
            else:
                part[mine, KIND] = IGNORE
        else:
            present[names] = 1
    asked[present > 0] = 1
    return part, present, asked


def named(scene: Scene) -> np.ndarray:
    """[len(PRESENT)] what the CLS token of the whole picture should name."""
    out = np.zeros(len(PRESENT), dtype=np.float32)
    for item in scene.items:
        out[names_of(item)] = 1
    return out


def names_of(item) -> list[int]:
    """Indices into PRESENT of everything true of an object."""
    if item.text:
        return [_INDEX[c] for c in item.text]
    return [_INDEX[n] for n in ({item.name, item.color, item.phrase} - {""})]
