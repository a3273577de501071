"""Small question sets and run folders for the tests of the evaluation."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from vtc.eval.store import RunFolder

TINY = Path(__file__).resolve().parents[2] / "eval" / "data" / "tiny"


def few(folder: Path, count: int = 6, **more: Any) -> Path:
    """The first questions of the shipped set, captions left out, in a file of their own."""
    lines = [json.loads(line) for line in (TINY / "questions.jsonl").read_text().splitlines()[: 3 * count]]
    chosen = [line for line in lines if line["task"] != "caption"][:count]
    file = folder / "few.jsonl"
    file.write_text("".join(json.dumps(line | {"image": str(TINY / line["image"])} | more) + "\n" for line in chosen))
    return file


def synthetic(
    folder: Path,
    method: str,
    keep: int | float | None,
    right: float,
    /,
    *,
    tasks: int = 3,
    count: int = 120,
    **more: Any,
) -> Path:
    """A finished run whose answers are right with the probability `right`; the same questions for all."""
    names = [f"task{i}" for i in range(tasks)]
    config = {
        "format": 2, "model": "tiny-llava", "method": method, "keep": keep, "data": "mine",
        "kinds": ["image"], "questions": count, "tasks": names, "metrics": dict.fromkeys(names, "exact"), "digest": "d",
        "instruction": "", "max_new_tokens": None, "frames": None, "fps": None, "dtype": None, "weights": "w",
    } | more  # fmt: skip
    name = method if keep is None else f"{method}@{keep}"
    draw, tokens = random.Random(f"{method}{keep}"), 576 if keep is None else int(keep)
    lines = [
        {
            "id": str(i), "task": names[i % tasks], "media": f"{i // 2}.png", "question": "?", "references": ["yes"],
            "answer": "yes" if (good := draw.random() < right) else "no", "metric": "exact", "score": float(good),
            "tokens_in": 576, "tokens_out": tokens, "tokens_mean": tokens, "flops": [576, tokens],
            "kv_bytes": [5760, 10 * tokens],
        }
        for i in range(count)
    ]  # fmt: skip
    run = RunFolder(folder / "tiny-llava" / name)
    run.open(config)
    run.append(lines)
    timing = {"ttft_ms": 10 + tokens / 10, "decode_tokens_per_s": 100.0, "peak_bytes": 1000 * tokens, "samples": 5}
    run.finish([str(i) for i in range(count)], {"tasks": {task: {} for task in names}, "timing": timing})
    return run.path
