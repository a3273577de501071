"""Questions and answers about clips and pictures, computed from their descriptions alone."""

import random

from vtc.models.tiny import words
from vtc.models.tiny.questions import Question
from vtc.models.tiny.qwen.clips import Actor, Clip

TASKS = ["direction", "order", "change", "blink", "reading", "ever", "color", "object"]
PICTURE_TASKS = ["color", "object", "existence", "reading"]
TEMPLATES = {
    "direction": ["Which way does the {a} move?", "In which direction does the {a} move?"],
    "moves": ["What moves?", "Which object moves?"],
    "first": ["What appears first, the {a} or the {b}?", "Which comes first, the {a} or the {b}?"],
    "appears": ["What appears and stays?", "Which object appears and stays?"],
    "disappears": ["What disappears for good?", "Which object disappears for good?"],
    "blink": ["How many times does the {a} blink?"],
    "reading": ["What number does the sign show?", "Which number is written on the sign?"],
    "ever": ["Is there ever {a}?"],
    "existence": ["Is there {a}?", "Is there {a} in the picture?"],
    "color": ["What color is the {a}?", "Which color is the {a}?"],
    "object": ["Which shape is {a}?", "What shape is {a}?"],
}
TIMES = ["zero", "one", "two", "three"]


class Asker:
    """Draws questions about one clip; every method returns None when the clip has no fair question of that sort."""

    def __init__(self, clip: Clip, rng: random.Random):
        self.clip, self.rng = clip, rng
        self.shapes = [a for a in clip.actors if not a.item.text]
        self.phrases = [a.phrase for a in self.shapes]

    def _say(self, template: str, **slots: str) -> str:
        return self.rng.choice(TEMPLATES[template]).format(**slots)

    def _of(self, role: str) -> list[Actor]:
        return [a for a in self.shapes if a.role == role]

    def _name(self, actor: Actor) -> str:
        """ "star" if it is the only one and luck will have it, else "red star"."""
        alone = sum(a.item.name == actor.item.name for a in self.shapes) == 1
        return actor.item.name if alone and self.rng.random() < 0.4 else actor.phrase

    def direction(self) -> Question | None:
        moving = self._of("moves")
        if not moving:
            return None
        if self.rng.random() < 0.25:
            return Question("direction", self._say("moves"), moving[0].phrase)
        return Question("direction", self._say("direction", a=self._name(moving[0])), moving[0].direction)

    def order(self) -> Question | None:
        coming = [a for a in self.clip.actors if a.role in ("appears", "flashes")]
        pairs = [(a, b) for a in coming for b in coming if a.first < b.first]
        if not pairs:
            return None
        a, b = pair = self.rng.choice(pairs)
        first, second = (a, b) if self.rng.random() < 0.5 else (b, a)
        names = {actor: "number" if actor.item.text else actor.phrase for actor in pair}
        return Question("order", self._say("first", a=names[first], b=names[second]), names[a])

    def change(self) -> Question | None:
        options = [(role, of[0]) for role in ("appears", "disappears") if len(of := self._of(role)) == 1]
        if not options:
            return None
        role, actor = self.rng.choice(options)
        return Question("change", self._say(role), actor.phrase)

    def blink(self) -> Question | None:
        blinking = self._of("blinks")
        if not blinking:
            return None
        actor = blinking[0]
        return Question("blink", self._say("blink", a=self._name(actor)), TIMES[actor.shown.count(False)])

    def reading(self) -> Question | None:
        signs = [a for a in self.clip.actors if a.item.text]
        return Question("reading", self._say("reading"), signs[0].item.text) if signs else None

    def ever(self) -> Question | None:
        return self._exists("ever")

    def existence(self) -> Question | None:
        return self._exists("existence")

    def _exists(self, task: str) -> Question | None:
        if not self.shapes:
            return None
        brief = [a for a in self.shapes if a.role in ("appears", "disappears")]
        if self.rng.random() < 0.5:
            actor = self.rng.choice(brief if brief and self.rng.random() < 0.6 else self.shapes)
            return Question(task, self._say(task, a=words.article(actor.phrase)), "yes")
        return Question(task, self._say(task, a=words.article(self._absent())), "no")

    def _absent(self) -> str:
        """A hard negative: a colour that is there with a shape that is there, or at least one of the two."""
        color, name = self.rng.choice(self.shapes).item.color, self.rng.choice(self.shapes).item.name
        while f"{color} {name}" in self.phrases:
            if self.rng.random() < 0.5:
                color = self.rng.choice(words.COLORS)
            else:
                name = self.rng.choice(words.SHAPES)
        return f"{color} {name}"

    def color(self) -> Question | None:
        names = [a.item.name for a in self.shapes]
        options = [a for a in self.shapes if names.count(a.item.name) == 1]
        if not options:
            return None
        actor = self.rng.choice(options)
        return Question("color", self._say("color", a=actor.item.name), actor.item.color)

    def object(self) -> Question | None:
        colors = [a.item.color for a in self.shapes]
        options = [a for a in self.shapes if colors.count(a.item.color) == 1]
        if not options:
            return None
        actor = self.rng.choice(options)
        return Question("object", self._say("object", a=actor.item.color), actor.item.name)

    def ask(self, task: str, tries: int = 4) -> Question | None:
        for _ in range(tries):
            if (question := getattr(self, task)()) is not None:
                return question
        return None


def ask_many(clip: Clip, rng: random.Random, count: int, weights: dict[str, float]) -> list[Question]:
    """Up to `count` different questions, tasks drawn by weight from those that suit a clip or a picture."""
    asker = Asker(clip, rng)
    tasks = TASKS if clip.steps > 1 else PICTURE_TASKS
    found: dict[str, Question] = {}
    for task in rng.choices(tasks, [weights.get(t, 1.0) for t in tasks], k=count):
        question = asker.ask(task)
        if question is not None:
            found.setdefault(question.question, question)
    return list(found.values())
