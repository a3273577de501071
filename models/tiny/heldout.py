"""Writes the held-out set that ships in eval/data/tiny: test drawings, test words and numbers, test fonts, test seeds.

python -m vtc.models.tiny.heldout --out eval/data/tiny
"""

import argparse
import json
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from vtc.models.tiny import questions, render, scenes

PICTURES = 450
CAPTION_EVERY = 4  # captions take long to decode: one picture in four gets one
PER_PICTURE = 5
_CANDIDATES = 80
_ANSWERS = {"color": 8, "object": 16, "existence": 2, "count": 4, "position": 13, "reading": 1}  # different answers


def choose(pictures: int = PICTURES, first_seed: int = 0) -> list[tuple[scenes.Scene, list[questions.Question]]]:
    """Scenes with their questions, chosen so that tasks, and answers within a task, come equally often."""
    rng = random.Random("held out")
    balance = Balance(_ANSWERS)
    chosen = []
    for number in range(pictures):
        scene = scenes.sample(first_seed + number, "test")
        weights = {t: (2.0 if t in ("count", "position") else 1.0) for t in questions.TASKS if t != "caption"}
        open_questions = questions.ask_many(scene, rng, _CANDIDATES, weights)
        picked: list[questions.Question] = []
        if number % CAPTION_EVERY == 0 and (caption := questions.Asker(scene, rng).caption()):
            picked.append(caption)
        in_picture: Counter[str] = Counter()
        while open_questions and len(picked) < PER_PICTURE:
            # the rarest answer so far of the rarest task so far; two of one task per picture at most
            best = min(
                open_questions,
                key=lambda q: (in_picture[q.task] > 0, balance.frequency(q, 2)),
            )
            open_questions.remove(best)
            if in_picture[best.task] >= 2 or balance.tips(best):
                continue
            picked.append(best)
            in_picture[best.task] += 1
            balance.add(best)
        chosen.append((scene, picked))
    return chosen


class Balance:
    """How often each task, and each answer within it, has come; `answers`: how many different ones a task has."""

    def __init__(self, answers: dict[str, int]):
        self.answers = answers
        self.per_task: Counter[str] = Counter()
        self.per_answer: Counter[tuple[str, str]] = Counter()

    def frequency(self, q: questions.Question, weight: int) -> int:
        """Grows with how often this task (times `weight`) and this answer have come."""
        return weight * self.per_task[q.task] + self.answers[q.task] * self.per_answer[self._key(q)]

    def tips(self, q: questions.Question) -> bool:
        """Whether one more of this answer would make yes and no differ by two."""
        other = {"yes": "no", "no": "yes"}.get(q.answer)
        return other is not None and self.per_answer[self._key(q)] > self.per_answer[q.task, other]

    def add(self, q: questions.Question) -> None:
        self.per_task[q.task] += 1
        self.per_answer[self._key(q)] += 1

    def pick(
        self, options: list[questions.Question], count: int, weight: Callable[[questions.Question], int]
    ) -> list[questions.Question]:
        """Up to `count` of `options`, which loses them: of the task least often among those picked, the rarest."""
        picked: list[questions.Question] = []
        taken: Counter[str] = Counter()
        while options and len(picked) < count:
            best = min(options, key=lambda q: (taken[q.task], self.frequency(q, weight(q))))
            options.remove(best)
            if self.tips(best):
                continue
            picked.append(best)
            taken[best.task] += 1
            self.add(best)
        return picked

    @staticmethod
    def _key(q: questions.Question) -> tuple[str, str]:
        return q.task, "" if q.task == "reading" else q.answer


def write(out: Path, pictures: int = PICTURES, quality: int = 82) -> None:
    (out / "pictures").mkdir(parents=True, exist_ok=True)
    lines = []
    for number, (scene, asked) in enumerate(choose(pictures), start=1):
        name = f"pictures/{number:04d}.webp"
        Image.fromarray(render.draw(scene)[0]).save(out / name, quality=quality, method=6)
        for i, q in enumerate(asked):
            line: dict[str, object] = {"id": f"{number:04d}-{i}", "image": name, "question": q.question}
            line |= {"answer": q.answer, "task": q.task}
            if q.objects:
                line["objects"] = list(q.objects)
            lines.append(json.dumps(line))
    (out / "questions.jsonl").write_text("\n".join(lines) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the held-out pictures and questions of tiny-llava.")
    parser.add_argument("--out", type=Path, default=Path("eval/data/tiny"))
    parser.add_argument("--pictures", type=int, default=PICTURES)
    arguments = parser.parse_args()
    write(arguments.out, arguments.pictures)


if __name__ == "__main__":
    main()
