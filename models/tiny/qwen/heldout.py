"""Writes the held-out set that ships in eval/data/tiny-video: real mp4 files, pictures, and their questions.

python -m vtc.models.tiny.qwen.heldout --out eval/data/tiny-video
python -m vtc.models.tiny.qwen.heldout --train 600 --out runs/clips  # to train methods on
"""

import argparse
import json
import random
from pathlib import Path

import av
import numpy as np
from PIL import Image

from vtc.models.tiny.heldout import Balance
from vtc.models.tiny.questions import Question
from vtc.models.tiny.qwen import asking, clips, film

CLIPS, PICTURES = 160, 40
PER_CLIP, PER_PICTURE = 5, 3
_CANDIDATES = 60
_ANSWERS = {
    "direction": 5,
    "order": 8,
    "change": 12,
    "blink": 3,
    "reading": 1,
    "ever": 2,
    "existence": 2,
    "color": 8,
    "object": 6,
}
_MOVING = {"direction", "order", "change", "blink", "reading", "ever"}  # asked before what any frame tells


def choose(count: int, first_seed: int, steps: int, per_clip: int) -> list[tuple[clips.Clip, list[Question]]]:
    """Clips with their questions, chosen so that tasks, and answers within a task, come about equally often."""
    rng = random.Random(f"held out {steps}")
    balance = Balance(_ANSWERS)
    chosen = []
    for number in range(count):
        clip = clips.sample(first_seed + number, "test", steps)
        options = asking.ask_many(clip, rng, _CANDIDATES, {})
        picked = balance.pick(options, per_clip, lambda q: 1 if steps == 1 or q.task in _MOVING else 2)
        chosen.append((clip, picked))
    return chosen


def write_clip(frames: np.ndarray, file: Path, quality: int = 21) -> None:
    """H.264 in mp4 at 4 frames per second, as cameras and the web have it."""
    with av.open(str(file), "w") as container:
        options = {"crf": str(quality), "preset": "slow", "threads": "1"}
        stream = container.add_stream("libx264", rate=int(clips.FPS), options=options)
        stream.width, stream.height, stream.pix_fmt = frames.shape[2], frames.shape[1], "yuv420p"
        # Converted first, and all held: so the same frames nearly always make the same file (x264 has the last word).
        pictures = [av.VideoFrame.from_ndarray(frame, format="rgb24").reformat(format="yuv420p") for frame in frames]
        for picture in pictures:
            container.mux(stream.encode(picture))
        container.mux(stream.encode())


def write_train(out: Path, count: int, first_seed: int = 2_000_000_000, per_clip: int = 24) -> None:
    """Clips for training, which have nothing of the held-out ones, with as many questions as there are."""
    (out / "clips").mkdir(parents=True, exist_ok=True)
    rng, lines = random.Random(first_seed), []
    for number in range(1, count + 1):
        clip, name = clips.sample(first_seed + number), f"clips/{number:05d}.mp4"
        write_clip(film.draw(clip)[0], out / name)
        lines += _lines(f"{number:05d}", "video", name, asking.ask_many(clip, rng, per_clip, {}))
    (out / "questions.jsonl").write_text("\n".join(lines) + "\n")


def write(out: Path, number_of_clips: int = CLIPS, pictures: int = PICTURES) -> None:
    (out / "clips").mkdir(parents=True, exist_ok=True)
    (out / "pictures").mkdir(parents=True, exist_ok=True)
    lines = []
    for number, (clip, asked) in enumerate(choose(number_of_clips, 0, clips.STEPS, PER_CLIP), start=1):
        name = f"clips/{number:04d}.mp4"
        write_clip(film.draw(clip)[0], out / name)
        lines += _lines(f"{number:04d}", "video", name, asked)
    for number, (clip, asked) in enumerate(choose(pictures, 1_000_000, 1, PER_PICTURE), start=1):
        name = f"pictures/{number:04d}.webp"
        Image.fromarray(film.draw(clip)[0][0]).save(out / name, quality=90, method=6)
        lines += _lines(f"p{number:04d}", "image", name, asked)
    (out / "questions.jsonl").write_text("\n".join(lines) + "\n")


def _lines(number: str, modality: str, name: str, asked: list[Question]) -> list[str]:
    return [
        json.dumps({"id": f"{number}-{i}", modality: name, "question": q.question, "answer": q.answer, "task": q.task})
        for i, q in enumerate(asked)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the held-out clips, pictures and questions of tiny-qwen.")
    parser.add_argument("--out", type=Path, default=Path("eval/data/tiny-video"))
    parser.add_argument("--clips", type=int, default=CLIPS)
    parser.add_argument("--pictures", type=int, default=PICTURES)
    parser.add_argument("--train", type=int, metavar="N", help="write N clips for training instead")
    arguments = parser.parse_args()
    if arguments.train:
        write_train(arguments.out, arguments.train)
        return
    write(arguments.out, arguments.clips, arguments.pictures)


if __name__ == "__main__":
    main()
