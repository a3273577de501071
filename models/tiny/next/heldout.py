"""Writes the held-out set that ships in eval/data/tiny-next: test drawings, words, numbers, fonts and seeds.

python -m vtc.models.tiny.next.heldout --out eval/data/tiny-next
"""

import argparse
import json
import random
from pathlib import Path

from PIL import Image

from vtc.models.tiny.heldout import Balance
from vtc.models.tiny.next import asking, render, scenes
from vtc.models.tiny.questions import Question

DATA = Path(__file__).resolve().parents[3] / "eval" / "data" / "tiny-next"
PICTURES = 200
PER_PICTURE = 4
_CANDIDATES = 80
_ANSWERS = {"color": 8, "object": 14, "existence": 2, "count": 4, "position": 13, "reading": 1}  # different answers


def choose(pictures: int = PICTURES, first_seed: int = 0) -> list[tuple[scenes.Scene, list[Question]]]:
    """Scenes with their questions, chosen so that tasks, and answers within a task, come about equally often."""
    rng = random.Random("held out next")
    balance = Balance(_ANSWERS)
    chosen = []
    for number in range(pictures):
        scene = scenes.sample(first_seed + number, "test")
        options = asking.ask_many(scene, rng, _CANDIDATES)
        chosen.append((scene, balance.pick(options, PER_PICTURE, lambda q: 2)))
    return chosen


def write(out: Path, pictures: int = PICTURES, quality: int = 74) -> None:
    (out / "pictures").mkdir(parents=True, exist_ok=True)
    lines = []
    for number, (scene, asked) in enumerate(choose(pictures), start=1):
        name = f"pictures/n{number:04d}.webp"
        Image.fromarray(render.draw(scene)).save(out / name, quality=quality, method=6)
        for i, q in enumerate(asked):
            line = {"id": f"n{number:04d}-{i}", "image": name, "question": q.question, "answer": q.answer}
            lines.append(json.dumps(line | {"task": q.task}))
    (out / "questions.jsonl").write_text("\n".join(lines) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the held-out pictures and questions of tiny-next.")
    parser.add_argument("--out", type=Path, default=DATA)
    parser.add_argument("--pictures", type=int, default=PICTURES)
    arguments = parser.parse_args()
    write(arguments.out, arguments.pictures)


if __name__ == "__main__":
    main()
