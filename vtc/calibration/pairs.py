"""Pairs of a picture (or a video) and a question, as a calibration takes them: no answers are needed."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vtc.checks import check_number

if TYPE_CHECKING:
    pass

Given = str | Path | Sequence[tuple[Any, str]]


@dataclass(frozen=True)
class Pair:
    """A picture (its file, or a PIL image), or the file of a video (kind "video"), and a question about it."""

    question: str
    seen: Any
    kind: str = "image"

    def inputs(self, processor: Any, frames: int | None, fps: float | None, twice: bool = False) -> Any:
        """What the model takes of it; of a picture also `twice`, one behind the other.

        Raises:
            ValueError: it is a video that is asked for twice.
        """
        from vtc.media.pictures import load_picture
        from vtc.media.prompts import prepare
        from vtc.media.video import load_clip

        if self.kind == "video" and twice:
            raise ValueError("visual=True takes pictures, but there are videos among the pairs: leave visual out.")
        if self.kind == "video":
            return prepare(processor, self.question, clips=[load_clip(self.seen, frames, fps)])
        picture = self.seen.picture() if hasattr(self.seen, "picture") else load_picture(self.seen)
        return prepare(processor, self.question, [picture] * (1 + twice))

    def known(self) -> list[Any]:
        """What tells it from others."""
        name = getattr(self.seen, "name", None) or getattr(self.seen, "size", None) or self.seen
        return [self.kind, str(name), self.question]


@dataclass(frozen=True)
class Pairs:
    """Some pairs, and where they come from."""

    source: str
    chosen: tuple[Pair, ...]
    there: int

    def digest(self) -> str:
        """A fingerprint of the questions and of what they are about."""
        return hashlib.sha256(json.dumps([pair.known() for pair in self.chosen]).encode()).hexdigest()[:16]


def read_pairs(data: Given, count: int, seed: int) -> Pairs:
    """`count` of the pairs in `data`, drawn by `seed`; all of them where there are no more.

    Args:
        data: a set of questions as `vtc eval` reads it (a name, a file or a folder; answers may be missing), or a list
            of (picture, question), a picture being a file or a PIL image.

    Raises:
        ValueError, TypeError, FileNotFoundError: with one sentence; there are none, or what is given is no such set.
    """
    check_number(count, "pairs", 1, integer=True, what="how many pictures with questions are looked at")
    check_number(seed, "seed", 0, integer=True)
    if isinstance(data, str | Path):
        from vtc.eval import datasets

        dataset = datasets.load(data, answered=False)
        every = [
            Pair(q.question, q.media if q.media.kind == "image" else q.media.file, q.media.kind)
            for q in dataset.questions
        ]
        source = dataset.name
    elif isinstance(data, Sequence):
        every, source = [_pair(one) for one in data], "a list"
    else:
        raise TypeError(
            f"data is {type(data).__name__}: expected a set of questions, or a list of (picture, question)."
        )
    if not every:
        raise ValueError("there are no pairs of a picture and a question: a calibration needs one at least.")
    chosen = random.Random(seed).sample(every, count) if count < len(every) else every
    return Pairs(source, tuple(chosen), len(every))


def _pair(one: Any) -> Pair:
    if not isinstance(one, tuple | list) or len(one) != 2 or not isinstance(one[1], str) or not one[1].strip():
        raise ValueError(f"{one!r} is no pair: expected (picture, question), the question being a text.")
    picture, question = one
    if isinstance(picture, str | Path) and not Path(picture).expanduser().is_file():
        raise FileNotFoundError(f"there is no picture at {picture}.")
    return Pair(question.strip(), picture)
