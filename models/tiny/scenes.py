"""Scenes: what stands where in a 336-pixel picture. A scene is decided by its seed alone and needs no files.

`sample(seed, split)` lays out three to eight objects without overlap; `render.py` turns a scene into pixels and
`questions.py` asks about it. Which *file* shows a drawing is chosen by number here and looked up by the renderer.
"""

import math
import random
from dataclasses import dataclass, field

from vtc.models.tiny import words

SIZE = 336
PATCH = 14
GRID = SIZE // PATCH


@dataclass(frozen=True)
class Item:
    """One object: a coloured shape, a drawing, or a sign with a printed word or number."""

    kind: str  # "shape" | "drawing" | "word" | "number"
    name: str  # "star", "bird", "word", "number"
    box: tuple[int, int, int, int]  # x0, y0, x1, y1 in pixels
    color: str = ""  # shapes only: drawings keep the colours of their file
    text: str = ""  # words and numbers only
    style: int = 0  # seed of everything that does not change the answers: file, rotation, font, tint

    @property
    def center(self) -> tuple[float, float]:
        x0, y0, x1, y1 = self.box
        return (x0 + x1) / 2, (y0 + y1) / 2

    @property
    def middle(self) -> tuple[float, float]:
        """Point that decides the anchor: the centre, or that of the first letter."""
        x, y = self.center
        return (letter_centers(self)[0] if self.text else x), y

    @property
    def anchor(self) -> tuple[int, int]:
        """(row, column) of the patch that stands for the object: its middle, or the first letter of a sign."""
        x, y = self.middle
        return min(GRID - 1, int(y // PATCH)), min(GRID - 1, int(x // PATCH))

    @property
    def phrase(self) -> str:
        """How the object is named in a question: "red star", "bird"."""
        return f"{self.color} {self.name}".strip()


@dataclass(frozen=True)
class Scene:
    seed: int
    split: str
    items: tuple[Item, ...] = field(default_factory=tuple)  # in reading order of their anchors


def letter_centers(item: Item) -> list[float]:
    """x of the middle of each printed letter: letters stand at a fixed pitch so that each owns a patch column."""
    x0, _, x1, _ = item.box
    pitch = (x1 - x0 - 12) / len(item.text)
    return [x0 + 6 + pitch * (i + 0.5) for i in range(len(item.text))]


def _wanted(rng: random.Random, split: str, more_signs: bool, diverse: bool) -> list[tuple[str, str, str, str]]:
    """(kind, name, colour, text) of what the picture should hold, signs first because they are widest."""
    if diverse:
        colors, shapes = rng.sample(words.COLORS, 6), rng.sample(words.SHAPES, 6)
        shown = [("shape", name, color, "") for name, color in zip(shapes, colors, strict=True)]
        return [("drawing", name, "", "") for name in rng.sample(words.DRAWINGS, 2)] + shown
    wanted = []
    if rng.random() < 0.5:
        wanted.append(("word", "word", "", words.sample_word(rng, split)))
    if rng.random() < 0.6:
        wanted.append(("number", "number", "", words.sample_number(rng, split)))
    if more_signs:
        for kind, sampled in (("word", words.sample_word(rng, split)), ("number", words.sample_number(rng, split))):
            wanted.append((kind, kind, "", sampled))
    total = rng.randint(max(3, len(wanted) + 2), 8)
    drawings = rng.choices(words.DRAWINGS, k=rng.randint(1, 3))
    if rng.random() < 0.3:  # several of a kind, so that counting has something to count
        drawings = [drawings[0]] * rng.randint(2, 3) + drawings[1:2]
    room = max(1, total - len(wanted))
    wanted += [("drawing", name, "", "") for name in drawings[:room]]
    shapes = rng.choices(words.SHAPES, k=total)
    if rng.random() < 0.6:
        shapes[: rng.randint(2, 4)] = [shapes[0]] * 4
    wanted += [("shape", name, rng.choice(words.COLORS), "") for name in shapes[: max(0, total - len(wanted))]]
    return wanted


def _extent(rng: random.Random, kind: str, text: str) -> tuple[int, int]:
    if text:
        return 12 + math.ceil(len(text) * rng.uniform(20, 24)), rng.randint(38, 48)
    if kind == "drawing":
        side = rng.randint(62, 100)
        return side, side
    side = rng.randint(34, 76)
    return side, side


def sample(seed: int, split: str = "train", more_signs: bool = False, diverse: bool = False) -> Scene:
    """The scene of this seed. `split` decides which drawings, words, numbers and fonts it may show. `more_signs` adds
    two: letters are what a vision tower learns last, so its own lessons show them more often than questions need.
    `diverse` gives eight different objects in different colours: an answer about the wrong one is then always wrong,
    which teaches a language model to listen to the noun."""
    rng = random.Random(f"{split} {seed}")
    items: list[Item] = []
    for kind, name, color, text in _wanted(rng, split, more_signs, diverse):
        for _ in range(100):
            width, height = _extent(rng, kind, text)
            x, y = rng.randint(2, SIZE - 2 - width), rng.randint(2, SIZE - 2 - height)
            item = Item(kind, name, (x, y, x + width, y + height), color, text, rng.randrange(1 << 30))
            if _undisputed(item) and all(_apart(item.box, other.box) for other in items):
                items.append(item)
                break
    return Scene(seed, split, tuple(sorted(items, key=lambda item: item.anchor)))


def _undisputed(item: Item, margin: int = 3) -> bool:
    """Whether one patch clearly holds the object's middle: it lies `margin` px from the borders of its patch."""
    return all(margin <= c % PATCH <= PATCH - margin for c in item.middle)


def _apart(a: tuple[int, int, int, int], b: tuple[int, int, int, int], margin: int = 4) -> bool:
    return a[2] + margin <= b[0] or b[2] + margin <= a[0] or a[3] + margin <= b[1] or b[3] + margin <= a[1]
