"""Scores a checkpoint on the held-out set, with its pictures and blind (a grey picture in place of each).

python -m vtc.models.tiny.evaluate --json models/tiny/tiny-llava/metrics.json
"""

import argparse
import hashlib
import json
import time
from collections import defaultdict
from pathlib import Path

import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from vtc.models.tiny import build, path, questions

DATA = Path(__file__).resolve().parents[2] / "eval" / "data" / "tiny"
GREY = (128, 128, 128)


def load(folder: Path):
    """(model in float32, processor), from a local folder, without a network."""
    model = AutoModelForImageTextToText.from_pretrained(folder, local_files_only=True).float().eval()
    return model, AutoProcessor.from_pretrained(folder, local_files_only=True)


@torch.inference_mode()
def answer(model, processor, pictures: list[Image.Image], asked: list[str], max_new_tokens: int = 48) -> list[str]:
    """Greedy answers to one question about each picture."""
    texts = [build.prompt(q) for q in asked]
    batch = processor(images=pictures, text=texts, padding=True, return_tensors="pt").to(model.device)
    ids = model.generate(**batch, max_new_tokens=max_new_tokens, do_sample=False)
    said = processor.batch_decode(ids[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    return [s.strip() for s in said]


def read(data: Path) -> list[dict]:
    return [json.loads(line) for line in (data / "questions.jsonl").read_text().splitlines()]


def run(model, processor, data: Path, lines: list[dict], blind: bool = False, batch: int = 10) -> list[dict]:
    """Every line with what the model said and its score."""
    captions = [x for x in lines if x["task"] == "caption"]
    others = [x for x in lines if x["task"] != "caption"]
    done = []
    for group, longest in ((others, 8), (captions, 48)):
        for at in range(0, len(group), batch):
            part = group[at : at + batch]
            pictures = [Image.open(data / x["image"]).convert("RGB") for x in part]
            if blind:
                pictures = [Image.new("RGB", p.size, GREY) for p in pictures]
            said = answer(model, processor, pictures, [x["question"] for x in part], longest)
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


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", type=Path, default=None, help="checkpoint folder (default: the shipped one)")
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--limit", type=int, default=None, help="only the first N questions")
    parser.add_argument("--easy-vqa", action="store_true", help="also the published test split of easy-vqa")
    parser.add_argument("--json", type=Path, default=None, help="write the numbers here")
    parser.add_argument("--answers", type=Path, default=None, help="write every answer here (JSONL)")
    arguments = parser.parse_args()
    model, processor = load(arguments.model or path())
    lines = read(arguments.data)[: arguments.limit]
    started = time.monotonic()
    done = run(model, processor, arguments.data, lines)
    weights = hashlib.sha256(((arguments.model or path()) / "model.safetensors").read_bytes()).hexdigest()
    metrics: dict[str, object] = {"weights_sha256": weights, "questions": len(lines), "accuracy": summary(done)}
    metrics["seconds"] = round(time.monotonic() - started, 1)
    metrics["blind"] = summary(run(model, processor, arguments.data, lines, blind=True))
    if arguments.easy_vqa:
        root, easy = easy_vqa_lines(arguments.limit)
        metrics["easy_vqa"] = {"questions": len(easy), "accuracy": summary(run(model, processor, root, easy))}
    if arguments.answers:
        arguments.answers.write_text("".join(json.dumps(x) + "\n" for x in done))
    text = json.dumps(metrics, indent=2)
    print(text)
    if arguments.json:
        arguments.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
