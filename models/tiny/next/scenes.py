"""Scenes of tiny-next: a 672-pixel picture of small things, each inside one of its four crops, and of few large things.

A crop is 336 px, what tiny-llava sees as a whole, and the small things in it have the sizes that tiny-llava knows. The
thumbnail is the picture at half scale: there the large things have those sizes, and the small ones are too small for
this tower. Both are `tiny.scenes.Item`s: small ones in the pixels of their crop, large ones in those of the thumbnail.
"""

import math
import random
from dataclasses import dataclass, replace

from vtc.models.tiny import words
from vtc.models.tiny.scenes import GRID, PATCH, SIZE, Item

CROPS = 2  # along each side
SIDE = CROPS * SIZE
QUARTERS = ["top left", "top right", "bottom left", "bottom right"]
_EDGE = 4  # px that a small thing keeps from the border of its crop
_GAP = 4  # px between two things
_MOST = 4  # small things in a crop
_TRIES = 60

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Thing:
    """One object; `crop` counts the crops in reading order, and is None for a large thing."""

    item: Item
    crop: int | None = None

    @property
    def box(self) -> Box:
        """In pixels of the picture."""
        x0, y0, x1, y1 = self.item.box
        if self.crop is None:
            return (CROPS * x0, CROPS * y0, CROPS * x1, CROPS * y1)
        dx, dy = SIZE * (self.crop % CROPS), SIZE * (self.crop // CROPS)
        return (x0 + dx, y0 + dy, x1 + dx, y1 + dy)

    @property
    def seen(self) -> Item:
        """The item as the thumbnail shows it, which is what questions are asked about; its box may have halves."""
        x0, y0, x1, y1 = (edge / CROPS for edge in self.box)
        return replace(self.item, box=(x0, y0, x1, y1))  # pyright: ignore[reportArgumentType]


@dataclass(frozen=True)
class Scene:
    seed: int
    split: str
    things: tuple[Thing, ...]

    @property
    def items(self) -> tuple[Item, ...]:
        """All things at the scale of the thumbnail (336 px), in reading order."""
        return tuple(sorted((t.seen for t in self.things), key=lambda item: item.anchor))

    def small(self, crop: int) -> tuple[Item, ...]:
        """Things of one crop, in its pixels."""
        return tuple(t.item for t in self.things if t.crop == crop)

    @property
    def large(self) -> tuple[Item, ...]:
        """Large things, in pixels of the thumbnail."""
        return tuple(t.item for t in self.things if t.crop is None)


def sample(seed: int, split: str = "train", signs: float = 0.6) -> Scene:
    """The scene of this seed: up to two large things and four to ten small ones; `signs` is how often there is a word,
    and how often a number.

    A name is either large or small in a picture, so that what is counted is to be found at one scale. There is one word
    and one number at most. `split` decides which drawings, words, numbers and fonts are shown.
    """
    rng = random.Random(f"next {split} {seed}")
    large = rng.sample(words.SHAPES + words.DRAWINGS, rng.choices((0, 1, 2), (0.2, 0.5, 0.3))[0])
    things: list[Thing] = []
    for name in large:
        _put(rng, things, lambda name=name: _large(rng, name))
    for kind, name, color, text in _wanted(rng, split, large, signs):
        _put(rng, things, lambda k=kind, n=name, c=color, t=text: _small(rng, things, k, n, c, t))
    return Scene(seed, split, tuple(things))


def _wanted(rng: random.Random, split: str, taken: list[str], signs: float) -> list[tuple[str, str, str, str]]:
    """(kind, name, colour, text) of the small things, the widest first."""
    shapes = [name for name in words.SHAPES if name not in taken]
    drawings = [name for name in words.DRAWINGS if name not in taken]
    wanted = []
    if rng.random() < signs:
        wanted.append(("word", "word", "", words.sample_word(rng, split)))
    if rng.random() < signs:
        wanted.append(("number", "number", "", words.sample_number(rng, split)))
    shown = rng.choices(drawings, k=rng.randint(1, 3))
    if rng.random() < 0.3:  # several of a kind, so that counting has something to count
        shown = [shown[0]] * rng.randint(2, 4) + shown[1:2]
    wanted += [("drawing", name, "", "") for name in shown]
    total = rng.randint(max(4, len(wanted) + 2), 10)
    chosen = rng.choices(shapes, k=total - len(wanted))
    if rng.random() < 0.6:
        chosen[: rng.randint(2, 4)] = [chosen[0]] * min(4, len(chosen))
    return wanted + [("shape", name, rng.choice(words.COLORS), "") for name in chosen]


def _large(rng: random.Random, name: str) -> Thing:
    drawn = name in words.DRAWINGS
    side = rng.randint(64, 92) if drawn else rng.randint(52, 76)
    x, y = rng.randint(2, SIZE - 2 - side), rng.randint(2, SIZE - 2 - side)
    color = "" if drawn else rng.choice(words.COLORS)
    box = (x, y, x + side, y + side)
    return Thing(Item("drawing" if drawn else "shape", name, box, color, "", rng.randrange(1 << 30)))


def _small(rng: random.Random, things: list[Thing], kind: str, name: str, color: str, text: str) -> Thing:
    width, height = _extent(rng, kind, text)
    room = [c for c in range(CROPS**2) if sum(t.crop == c for t in things) < _MOST]
    x, y = rng.randint(_EDGE, SIZE - _EDGE - width), rng.randint(_EDGE, SIZE - _EDGE - height)
    return Thing(Item(kind, name, (x, y, x + width, y + height), color, text, rng.randrange(1 << 30)), rng.choice(room))


def _extent(rng: random.Random, kind: str, text: str) -> tuple[int, int]:
    if text:
        return 12 + math.ceil(len(text) * rng.uniform(20, 24)), rng.randint(38, 44)
    side = rng.randint(62, 80) if kind == "drawing" else rng.randint(34, 52)
    return side, side


def _put(rng: random.Random, things: list[Thing], make) -> None:
    """Adds one thing where it overlaps no other and one patch clearly holds its middle; without room, none."""
    for _ in range(_TRIES):
        thing = make()
        if _undisputed(thing.item) and all(_apart(thing.box, other.box) for other in things):
            things.append(thing)
            return


def _undisputed(item: Item, margin: int = 3) -> bool:
    return all(margin <= c % PATCH <= PATCH - margin for c in item.middle)


def _apart(a: Box, b: Box) -> bool:
    return a[2] + _GAP <= b[0] or b[2] + _GAP <= a[0] or a[3] + _GAP <= b[1] or b[3] + _GAP <= a[1]


def place(crop: int, patch: int) -> tuple[int, int]:
    """(row, column) in the mosaic of 48 x 48 patches of a patch of one crop, counted row by row."""
    row, column = divmod(patch, GRID)
    return GRID * (crop // CROPS) + row, GRID * (crop % CROPS) + column
