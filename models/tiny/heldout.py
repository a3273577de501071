"""Writes the held-out set that ships in eval/data/tiny: test drawings, test words and numbers, test fonts, test seeds.

python -m vtc.models.tiny.heldout --out eval/data/tiny
"""

import argparse
import json
import random
from collections import Counter
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
    per_task: Counter[str] = Counter()
    per_answer: Counter[tuple[str, str]] = Counter()
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
                key=lambda q: (in_picture[q.task] > 0, 2 * per_task[q.task] + _ANSWERS[q.task] * per_answer[_key(q)]),
            )
            open_questions.remove(best)
            if in_picture[best.task] >= 2:
                continue
            if best.task == "existence" and per_answer[_key(best)] > per_answer[_other(best)]:
                continue  # exactly as many yes as no
            picked.append(best)
            in_picture[best.task] += 1
            per_task[best.task] += 1
            per_answer[_key(best)] += 1
        chosen.append((scene, picked))
    return chosen


def _key(q: questions.Question) -> tuple[str, str]:
    return q.task, "" if q.task == "reading" else q.answer


def _other(q: questions.Question) -> tuple[str, str]:
    return q.task, "no" if q.answer == "yes" else "yes"


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
