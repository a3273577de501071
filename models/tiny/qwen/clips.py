"""Clips: four seconds in which a few things move, come, go, blink or are shown for a moment, before a still background.

A clip has eight steps of two frames; all but movement changes from step to step. A picture is a clip of one step. The
seed alone decides everything; `film.py` turns a clip into pixels and `asking.py` asks about it.
"""

import random
from dataclasses import dataclass
from itertools import pairwise

from vtc.models.tiny import words
from vtc.models.tiny.scenes import Item

SIDE = 192  # px; 12 x 12 visual tokens of 16 px a step
CELL = 16
GRID = SIDE // CELL
STEPS = 8
FRAMES = 2 * STEPS
FPS = 4.0
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
ROLES = ("moves", "appears", "disappears", "blinks", "flashes", "stays")
_TRAVEL = (64, 116)  # px from the first frame to the last
_MARGIN = 3


@dataclass(frozen=True)
class Actor:
    """One thing: what it looks like and where it is at first (`item`), where it goes, and when it is there."""

    item: Item
    role: str
    shown: tuple[bool, ...]  # by step
    direction: str = ""
    travel: int = 0  # px

    @property
    def phrase(self) -> str:
        return self.item.phrase

    @property
    def first(self) -> int:
        """Step at which it is first seen."""
        return self.shown.index(True)

    def offset(self, frame: int, frames: int) -> tuple[int, int]:
        """How far it has gone, px in x and y, at a frame."""
        if not self.direction:
            return 0, 0
        dx, dy = DIRECTIONS[self.direction]
        gone = round(self.travel * frame / max(1, frames - 1))
        return dx * gone, dy * gone

    @property
    def envelope(self) -> tuple[int, int, int, int]:
        """Everything that it ever covers."""
        x0, y0, x1, y1 = self.item.box
        dx, dy = DIRECTIONS.get(self.direction, (0, 0))
        return (
            x0 + min(0, dx) * self.travel,
            y0 + min(0, dy) * self.travel,
            x1 + max(0, dx) * self.travel,
            y1 + max(0, dy) * self.travel,
        )


@dataclass(frozen=True)
class Clip:
    seed: int
    split: str
    steps: int
    actors: tuple[Actor, ...]


def sample(seed: int, split: str = "train", steps: int = STEPS) -> Clip:
    """The clip of this seed; `steps=1` gives a picture. `split` decides which numbers and fonts it may show."""
    rng = random.Random(f"clip {split} {seed}")
    actors: list[Actor] = []
    phrases: set[str] = set()
    for role in _roles(rng, steps):
        for _ in range(60):
            actor = _actor(rng, role, split, steps)
            if actor.phrase in phrases:
                continue  # everything can be named without doubt
            if all(_apart(actor.envelope, other.envelope) for other in actors):
                actors.append(actor)
                phrases.add(actor.phrase)
                break
    return Clip(seed, split, steps, tuple(actors))


def _roles(rng: random.Random, steps: int) -> list[str]:
    if steps == 1:
        return ["flashes"] * (rng.random() < 0.5) + ["stays"] * rng.randint(3, 6)
    roles = ["moves"] * (rng.random() < 0.8) + ["flashes"] * (rng.random() < 0.55)
    roles += ["blinks"] * (rng.random() < 0.6) + ["appears"] * rng.choice((0, 1, 2, 2))
    roles += ["disappears"] * rng.choice((0, 1, 1, 2))
    roles += ["stays"] * max(1, rng.randint(4, 6) - len(roles))
    return roles


def _actor(rng: random.Random, role: str, split: str, steps: int) -> Actor:
    text = words.sample_number(rng, split) if role == "flashes" else ""
    width, height = _extent(rng, text)
    direction = rng.choice(list(DIRECTIONS)) if role == "moves" else ""
    travel = rng.randint(*_TRAVEL) if direction else 0
    dx, dy = DIRECTIONS.get(direction, (0, 0))
    x = rng.randint(2 - min(0, dx) * travel, SIDE - 2 - width - max(0, dx) * travel)
    y = rng.randint(2 - min(0, dy) * travel, SIDE - 2 - height - max(0, dy) * travel)
    box = (x, y, x + width, y + height)
    style = rng.randrange(1 << 30)
    if text:
        item = Item("number", "number", box, text=text, style=style)
    else:
        item = Item("shape", rng.choice(words.SHAPES), box, rng.choice(words.COLORS), style=style)
    return Actor(item, role, _shown(rng, role, steps), direction, travel)


def _extent(rng: random.Random, text: str) -> tuple[int, int]:
    if text:
        return 12 + len(text) * rng.randint(19, 23), rng.randint(32, 42)
    side = rng.randint(28, 46)
    return side, side


def _shown(rng: random.Random, role: str, steps: int) -> tuple[bool, ...]:
    """When it is there, by step."""
    if steps == 1 or role in ("stays", "moves"):
        return (True,) * steps
    if role == "appears":
        start = rng.randint(1, steps - 3)
        return tuple(s >= start for s in range(steps))
    if role == "disappears":
        end = rng.randint(3, steps - 1)
        return tuple(s < end for s in range(steps))
    if role == "flashes":
        at = rng.randrange(steps)
        return tuple(s == at for s in range(steps))
    times = rng.randint(1, 3)  # blinks: gone for one step, there again in the next
    while True:
        gone = sorted(rng.sample(range(1, steps - 1), times))
        if all(b - a > 1 for a, b in pairwise(gone)):
            return tuple(s not in gone for s in range(steps))


def _apart(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> bool:
    return a[2] + _MARGIN <= b[0] or b[2] + _MARGIN <= a[0] or a[3] + _MARGIN <= b[1] or b[3] + _MARGIN <= a[1]
