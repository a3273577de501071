"""Questions about tiny-next's scenes: tiny-llava's, and in which quarter of the picture a thing is."""

import random
from collections import Counter

from vtc.models.tiny.next.scenes import QUARTERS, Scene
from vtc.models.tiny.questions import Asker, Question
from vtc.models.tiny.scenes import SIZE, Item

TASKS = ["color", "object", "existence", "count", "position", "reading"]
TEMPLATES = ["Which quarter is the {a} in?", "In which quarter is the {a}?"]
_MARGIN = 10  # px of the thumbnail between an asked-about centre and the border between quarters


def quarter_of(item: Item) -> str | None:
    """Quarter that the centre of an item at the thumbnail's scale is in; None when it is too near a border to say."""
    x, y = item.center
    if min(abs(x - SIZE / 2), abs(y - SIZE / 2)) < _MARGIN:
        return None
    return QUARTERS[2 * int(y > SIZE / 2) + int(x > SIZE / 2)]


class NextAsker(Asker):
    def position(self) -> Question | None:
        if self.rng.random() < 0.65:
            return super().position()
        placed = [(phrase, q) for item, phrase in self._references() if (q := quarter_of(item))]
        if not placed:
            return None
        phrase, quarter = self.rng.choice(placed)
        return Question("position", self.rng.choice(TEMPLATES).format(a=phrase), quarter)

    def reading(self) -> Question | None:
        """Only what is printed once."""
        kinds = Counter(sign.kind for sign in self.signs)
        signs = [sign for sign in self.signs if kinds[sign.kind] == 1]
        if not signs:
            return None
        sign = self.rng.choice(signs)
        return Question("reading", self._say(sign.kind), sign.text)


def ask_many(scene: Scene, rng: random.Random, count: int, weights: dict[str, float] | None = None) -> list[Question]:
    """Up to `count` different questions about one scene, tasks drawn by weight."""
    asker = NextAsker(scene, rng)  # pyright: ignore[reportArgumentType]
    weights = weights or dict.fromkeys(TASKS, 1.0)
    found: dict[str, Question] = {}
    for task in rng.choices(list(weights), list(weights.values()), k=count):
        if (question := asker.ask(task)) is not None:
            found.setdefault(question.question, question)
    return list(found.values())
