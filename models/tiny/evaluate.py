"""Scores a shipped checkpoint on its held-out set, seeing and blind (grey in place of every picture and frame).

python -m vtc.models.tiny.evaluate --json models/tiny/tiny-llava/metrics.json
python -m vtc.models.tiny.evaluate --model tiny-qwen --json models/tiny/tiny-qwen/metrics.json
"""

import argparse
import hashlib
import json
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from vtc.media.prompts import prompt
from vtc.media.video import load_clip
from vtc.models.tiny import questions, source

_DATA = Path(__file__).resolve().parents[2] / "eval" / "data"
GREY = 128
FRAMES = 16


def load(folder: Path):
    """(model in float32, processor), from a local folder, without a network."""
    model = AutoModelForImageTextToText.from_pretrained(folder, local_files_only=True).float().eval()
    return model, AutoProcessor.from_pretrained(folder, local_files_only=True)


def data_of(model) -> Path:
    """The held-out set of a shipped model."""
    return _DATA / {"llava": "tiny", "llava_next": "tiny-next"}.get(model.config.model_type, "tiny-video")


def look(data: Path, line: dict, blind: bool) -> dict[str, list]:
    """What a processor takes of the picture or clip of one line, grey if `blind`."""
    if "image" in line:
        picture = Image.open(data / line["image"]).convert("RGB")
        return {"images": [Image.new("RGB", picture.size, (GREY,) * 3) if blind else picture]}
    clip = load_clip(data / line["video"], frames=FRAMES)
    frames = np.full_like(clip.frames, GREY) if blind else clip.frames
    return {"videos": [frames], "video_metadata": [clip.metadata()]}


@torch.inference_mode()
def answer(model, processor, shown: list[dict[str, list]], asked: list[str], max_new_tokens: int = 48) -> list[str]:
    """Greedy answers to one question each about pictures, or about clips."""
    given = {name: [part for one in shown for part in one[name]] for name in shown[0]}
    if "videos" in given:
        given["do_sample_frames"] = False  # they are sampled
    count = {"pictures": int("images" in given), "videos": int("videos" in given)}
    texts = [prompt(processor, q, **count) for q in asked]
    batch = processor(text=texts, **given, padding=True, return_tensors="pt").to(model.device)
    ids = model.generate(**batch, max_new_tokens=max_new_tokens, do_sample=False)
    said = processor.batch_decode(ids[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    return [s.strip() for s in said]


def read(data: Path) -> list[dict]:
    return [json.loads(line) for line in (data / "questions.jsonl").read_text().splitlines()]


def run(model, processor, data: Path, lines: list[dict], blind: bool = False, batch: int = 10) -> list[dict]:
    """Every line with what the model said and its score."""
    groups: dict[tuple[bool, bool], list[dict]] = defaultdict(list)
    for line in lines:
        groups["video" in line, line["task"] == "caption"].append(line)
    done = []
    for (_, caption), group in sorted(groups.items()):
        for at in range(0, len(group), batch):
            part = group[at : at + batch]
            shown = [look(data, x, blind) for x in part]
            said = answer(model, processor, shown, [x["question"] for x in part], 48 if caption else 8)
            done += [{**x, "said": s, "score": questions.score(s, x)} for x, s in zip(part, said, strict=True)]
    return done


def summary(done: list[dict]) -> dict[str, float]:
    """Mean score over all questions and by task."""
    by_task: dict[str, list[float]] = defaultdict(list)
    for x in done:
        by_task[x["task"]].append(x["score"])
    means = {task: sum(v) / len(v) for task, v in sorted(by_task.items())}
    return {"all": sum(x["score"] for x in done) / max(1, len(done)), **means}


def easy_vqa_lines(limit: int | None = None) -> tuple[Path, list[dict]]:
    """The published test split of PyPI's easy-vqa, as lines of our format."""
    import easy_vqa

    root = Path(easy_vqa.__file__).parent / "data" / "test"
    asked, answers, pictures = easy_vqa.get_test_questions()
    lines = [
        {"id": str(i), "image": f"images/{p}.png", "question": q.capitalize(), "answer": a, "task": _easy_task(a)}
        for i, (q, a, p) in enumerate(zip(asked, answers, pictures, strict=True))
    ]
    return root, lines[:limit]


def _easy_task(answer: str) -> str:
    if answer in ("yes", "no"):
        return "existence"
    return "object" if answer in ("circle", "triangle", "rectangle") else "color"


def parser_of(doc: str | None, model: str, data: Path | None) -> argparse.ArgumentParser:
    """The command line of a module that says `doc` and scores `model` unless told otherwise."""
    parser = argparse.ArgumentParser(description=(doc or "").split("\n")[0])
    parser.add_argument("--model", default=model, help="a shipped name or a folder; default: %(default)s")
    parser.add_argument("--data", type=Path, default=data, help="folder of questions.jsonl; default: the model's own")
    parser.add_argument("--limit", type=int, default=None, help="only the first N questions")
    parser.add_argument("--json", type=Path, default=None, help="write the numbers here")
    parser.add_argument("--answers", type=Path, default=None, help="write every answer here (JSONL)")
    return parser


def begun(folder: Path, done: list[dict]) -> dict[str, object]:
    """The first numbers about the weights in `folder`, from all answers."""
    weights = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    return {"weights_sha256": weights, "questions": len(done), "accuracy": summary(done)}


def report(arguments: argparse.Namespace, metrics: dict[str, object], done: list[dict]) -> None:
    """Print the numbers, and write them and the answers where the command line wants them."""
    if arguments.answers:
        arguments.answers.write_text("".join(json.dumps(x) + "\n" for x in done))
    text = json.dumps(metrics, indent=2)
    print(text)
    if arguments.json:
        arguments.json.write_text(text + "\n")


def main() -> None:
    parser = parser_of(__doc__, "tiny-llava", None)
    parser.add_argument("--easy-vqa", action="store_true", help="also the published test split of easy-vqa")
    arguments = parser.parse_args()
    folder = Path(source(arguments.model))
    model, processor = load(folder)
    data = arguments.data or data_of(model)
    lines = read(data)[: arguments.limit]
    started = time.monotonic()
    done = run(model, processor, data, lines)
    metrics = begun(folder, done)
    metrics["seconds"] = round(time.monotonic() - started, 1)
    metrics["blind"] = summary(run(model, processor, data, lines, blind=True))
    if arguments.easy_vqa:
        root, easy = easy_vqa_lines(arguments.limit)
        metrics["easy_vqa"] = {"questions": len(easy), "accuracy": summary(run(model, processor, root, easy))}
    report(arguments, metrics, done)


if __name__ == "__main__":
    main()
