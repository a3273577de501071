"""Questions and answers about a scene, in plain English, computed from the scene's description alone."""

import random
from collections import Counter
from dataclasses import dataclass

from vtc.models.tiny import words
from vtc.models.tiny.scenes import SIZE, Item, Scene

TASKS = ["color", "object", "existence", "count", "position", "reading", "caption"]
TEMPLATES = {
    "color": ["What color is the {a}?", "Which color is the {a}?"],
    "object_color": ["Which shape is {a}?", "What shape is {a}?"],
    "object_cell": ["What is at the {a}?", "Which object is at the {a}?"],
    "existence": ["Is there {a}?", "Is there {a} in the picture?"],
    "count": ["How many {a} are there?", "How many {a} are in the picture?"],
    "where": ["Where is the {a}?"],
    "beside": ["Is the {a} to the left or to the right of the {b}?", "Is the {a} left or right of the {b}?"],
    "above": ["Is the {a} above or below the {b}?"],
    "word": ["What word is printed?", "Which word is written in the picture?"],
    "number": ["What number is printed?", "Which number is written in the picture?"],
    "caption": ["Describe the picture.", "What can you see?"],
}
_MARGIN = 10  # px between an asked-about centre and the border of its third of the picture
_OFFSET = 40  # px between two centres compared


@dataclass(frozen=True)
class Question:
    task: str
    question: str
    answer: str
    objects: tuple[str, ...] = ()  # captions only: what there is to be named


def cell_of(item: Item, margin: int = _MARGIN) -> str | None:
    """Ninth of the picture that the object's centre is in, or None when it is too near a border to say."""
    thirds = []
    for c in item.center:
        if min(abs(c - SIZE / 3), abs(c - 2 * SIZE / 3)) < margin:
            return None
        thirds.append(int(c * 3 // SIZE))
    return words.CELLS[thirds[1]][thirds[0]]


class Asker:
    """Draws questions about one scene; every method returns None when the scene has no fair question of that sort."""

    def __init__(self, scene: Scene, rng: random.Random):
        self.rng = rng
        self.items = [i for i in scene.items if not i.text]
        self.signs = [i for i in scene.items if i.text]
        self.everything = scene.items
        self.names = Counter(i.name for i in self.items)
        self.phrases = Counter(i.phrase for i in self.items)

    def _say(self, template: str, **slots: str) -> str:
        return self.rng.choice(TEMPLATES[template]).format(**slots)

    def _pick(self, options: list) -> object | None:
        return self.rng.choice(options) if options else None

    def _references(self) -> list[tuple[Item, str]]:
        """Objects that a phrase names without doubt: "star" if it is the only one, else "red star" if that is."""
        found = []
        for item in self.items:
            if self.names[item.name] == 1:
                found.append((item, item.name if item.kind == "drawing" or self.rng.random() < 0.5 else item.phrase))
            elif self.phrases[item.phrase] == 1:
                found.append((item, item.phrase))
        return found

    def color(self) -> Question | None:
        options = [i for i in self.items if i.color and self.names[i.name] == 1]
        if not options:
            return None
        item = self.rng.choice(options)
        return Question("color", self._say("color", a=item.name), item.color)

    def object(self) -> Question | None:
        cells = Counter(cell_of(i, 0) for i in self.everything)
        located = [(i, cell) for i in self.items if (cell := cell_of(i)) and cells[cell] == 1]
        drawn = [x for x in located if x[0].kind == "drawing"]
        colors = Counter(i.color for i in self.items if i.color)
        colored = [i for i in self.items if i.color and colors[i.color] == 1]
        if colored and (not located or self.rng.random() < 0.35):
            item = self.rng.choice(colored)
            return Question("object", self._say("object_color", a=item.color), item.name)
        if not located:
            return None
        item, cell = self.rng.choice(drawn if drawn and self.rng.random() < 0.6 else located)
        return Question("object", self._say("object_cell", a=cell), item.name)

    def existence(self, truth: bool | None = None) -> Question | None:
        truth = self.rng.random() < 0.5 if truth is None else truth
        shapes = [i for i in self.items if i.color]
        there = sorted({i.name for i in self.items if not i.color})
        if self.rng.random() < 0.6 and shapes:
            present = {i.phrase for i in shapes}
            phrase = self.rng.choice(sorted(present)) if truth else self._absent(shapes, present)
        elif there:  # asked only where a drawing is, so that "yes" is as frequent as "no"
            phrase = self.rng.choice(there if truth else [d for d in words.DRAWINGS if d not in there])
        else:
            return None
        return Question("existence", self._say("existence", a=words.article(phrase)), "yes" if truth else "no")

    def _absent(self, shapes: list[Item], present: set[str]) -> str:
        """A hard negative: a colour that is there with a shape that is there, or at least one of the two."""
        color, name = self.rng.choice(shapes).color, self.rng.choice(shapes).name
        while f"{color} {name}" in present:
            if self.rng.random() < 0.5:
                color = self.rng.choice(words.COLORS)
            else:
                name = self.rng.choice(words.SHAPES)
        return f"{color} {name}"

    def count(self) -> Question | None:
        wanted = self.rng.choice((1, 2, 2, 3, 3, 3, 4, 4, 4, 4))  # high counts are rarer in the pictures
        options = [n for n, c in sorted(self.names.items()) if c == wanted]
        if not options:
            return None
        return Question("count", self._say("count", a=words.plural(self.rng.choice(options))), words.COUNTS[wanted])

    def position(self) -> Question | None:
        references = self._references()
        if self.rng.random() < 0.5:
            placed = [(phrase, cell) for item, phrase in references if (cell := cell_of(item))]
            if not placed:
                return None
            phrase, cell = self.rng.choice(placed)
            return Question("position", self._say("where", a=phrase), cell)
        if len(references) < 2:
            return None
        (a, phrase_a), (b, phrase_b) = self.rng.sample(references, 2)
        axis = self.rng.randint(0, 1)
        gap = a.center[axis] - b.center[axis]
        if abs(gap) < _OFFSET:
            return None
        answer = (("left", "right"), ("above", "below"))[axis][int(gap > 0)]
        return Question("position", self._say(("beside", "above")[axis], a=phrase_a, b=phrase_b), answer)

    def reading(self) -> Question | None:
        if not self.signs:
            return None
        sign = self.rng.choice(self.signs)
        return Question("reading", self._say(sign.kind), sign.text)

    def caption(self) -> Question | None:
        phrases = [i.phrase for i in self.everything]
        answer = ", ".join(words.article(p) for p in phrases)
        return Question("caption", self._say("caption"), answer, tuple(phrases))

    def ask(self, task: str, tries: int = 8) -> Question | None:
        for _ in range(tries):
            if (question := getattr(self, task)()) is not None:
                return question
        return None


def ask_many(scene: Scene, rng: random.Random, count: int, weights: dict[str, float] | None = None) -> list[Question]:
    """Up to `count` different questions about one scene, tasks drawn by weight."""
    asker = Asker(scene, rng)
    tasks = list(weights or dict.fromkeys(TASKS, 1.0))
    found: dict[str, Question] = {}
    for task in rng.choices(tasks, [weights[t] for t in tasks] if weights else None, k=count):
        question = asker.ask(task)
        if question is not None:
            found.setdefault(question.question, question)
    return list(found.values())


def caption_f1(said: str, objects: list[str] | tuple[str, ...]) -> float:
    """F1 between the objects named in a caption and those present, as multisets ("a red star, a bird")."""
    named = Counter(p.strip().removeprefix("a ").removeprefix("an ") for p in said.lower().strip(" .").split(","))
    named.pop("", None)
    present = Counter(objects)
    hits = sum((named & present).values())
    return 2 * hits / max(1, sum(named.values()) + sum(present.values()))


def score(answer: str, question: Question | dict) -> float:
    """1 or 0 for an exact answer (case and final stop ignored), F1 for a caption."""
    fields = question if isinstance(question, dict) else question.__dict__
    if fields["task"] == "caption":
        return caption_f1(answer, fields["objects"])
    return float(answer.lower().strip(" .") == fields["answer"].lower())
