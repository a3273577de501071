"""Samples: questions with answers about pictures and videos. Needs no torch.

A file of samples is a `.jsonl` of one per line, as evaluation reads them, too:

    {"video": "clips/12.mp4", "question": "Which way does the star move?", "answer": "left"}

`image` may stand in for `video`; paths are relative to the file. Of `answers`, a list, the first is trained on.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Sample:
    """One question about one picture or one video, and the answer to it."""

    question: str
    answer: str
    image: Path | None = None
    video: Path | None = None


def read_samples(path: str | Path) -> list[Sample]:
    """Samples of a `.jsonl` file, or of the only one in a folder.

    Raises:
        FileNotFoundError: there is no such file, or a picture or video that it names is missing.
        ValueError: a line is no sample; the message says which and why.
    """
    file = Path(path).expanduser()
    if file.is_dir():
        files = sorted(file.glob("*.jsonl"))
        if len(files) != 1:
            raise ValueError(f"{file} holds {len(files)} .jsonl files, not one: give the path of the file itself.")
        file = files[0]
    if not file.is_file():
        raise FileNotFoundError(f"there is no file of samples at {file}: give a .jsonl file or its folder.")
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not text in UTF-8 ({error.reason}, byte {error.start}): convert it.") from None
    samples = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            samples.append(_sample(json.loads(line), file.parent))
        except (ValueError, TypeError, KeyError, AttributeError, IndexError, RecursionError) as error:
            reason = f"{error} is missing" if isinstance(error, KeyError) else error
            raise ValueError(f"{file}, line {number}, is not a sample: {reason}") from None
    if not samples:
        raise ValueError(f"{file} holds no samples.")
    for seen in {sample.image or sample.video for sample in samples}:
        if seen is not None and not seen.is_file():
            raise FileNotFoundError(f"{file} names {seen}, which does not exist.")
    return samples


def _sample(fields: dict[str, Any], folder: Path) -> Sample:
    named = [kind for kind in ("image", "video") if fields.get(kind)]
    if len(named) != 1:
        raise ValueError("it needs an 'image' or a 'video', one of them")
    answers = fields["answers"] if "answers" in fields else [fields["answer"]]
    question, media = fields["question"], fields[named[0]]
    if not isinstance(answers, list) or not answers:
        raise ValueError(f"'answers' is {answers!r}, not a list of one or more")
    answer = answers[0]
    word = answer.strip() if isinstance(answer, str) else isinstance(answer, int | float)
    if not word or isinstance(answer, bool) or (isinstance(answer, float) and not math.isfinite(answer)):
        raise ValueError(f"its answer is {answer!r}, not a word or a number")
    if not isinstance(question, str) or not question.strip():
        raise ValueError(f"its question is {question!r}, not a text")
    if not isinstance(media, str):
        raise ValueError(f"its {named[0]!r} is {media!r}, not a path")
    return Sample(question.strip(), str(answers[0]).strip(), **{named[0]: folder / media})
