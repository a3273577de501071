"""A question about a picture or a video, made from the fields of a file's line, which are checked."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import vtc
from vtc.eval.fields import FIELDS
from vtc.hints import did_you_mean

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True)
class Media:
    """A picture or a video. Questions whose media have the same `name` are about the same thing.

    Attributes:
        kind: "image" or "video". name: as the data set calls it.
        file: where it lies. read: gives the bytes of a picture that lies in no file of its own.
        of: what several media show alike, where there is such a thing: they are no independent draws then.
    """

    kind: str
    name: str
    file: Path | None = None
    read: Callable[[], bytes] | None = field(default=None, compare=False)
    of: str | None = None

    def picture(self) -> Image.Image:
        """The picture; OSError or ValueError if it cannot be read."""
        if self.file is not None:
            return vtc.load_picture(self.file)
        assert self.read is not None
        from vtc.media.pictures import open_large

        with open_large(io.BytesIO(self.read())) as picture:
            return vtc.load_picture(picture)


@dataclass(frozen=True)
class Question:
    id: str
    media: Media
    question: str
    answers: tuple[str, ...]
    task: str = "all"
    choices: tuple[str, ...] = ()
    objects: tuple[str, ...] = ()  # what a caption should name
    metric: str | None = None  # None: the task's own, see `vtc.eval.metrics.plan`


def letter(index: int) -> str:
    """A, B, C, ... of an option."""
    return chr(ord("A") + index)


def question_of(fields: Any, place: str, locate: Callable[[str, Any], Media], answered: bool = True) -> Question:
    """A question from a line's fields, as `vtc.eval.datasets` describes them.

    Args:
        place: the id of a question that names none.
        locate: (kind, value) -> Media.
        answered: whether there must be an answer.
    Raises:
        ValueError: what is wrong with the fields.
    """
    if not isinstance(fields, Mapping):
        raise ValueError(f"it is {_kind(fields)}, not an object with 'image' or 'video', 'question' and 'answer'")
    given = [kind for kind in ("image", "video") if fields.get(kind) is not None]
    if len(given) != 1:
        both = "it has both 'image' and 'video': give one"
        raise ValueError(both if given else f"'image' or 'video' is missing{_instead(fields, 'image', 'video')}")
    question = _text(fields, "question", required=True)
    plural, single = fields.get("answers") is not None, fields.get("answer") is not None
    if not plural and not single and answered:
        raise ValueError(f"'answer' is missing{_instead(fields, 'answer')}")
    answers = _words(fields, "answers") if plural else (_word(fields["answer"], "'answer'"),) if single else ()
    choices = _words(fields, "choices") if fields.get("choices") is not None else ()
    if choices:
        answers = tuple(_option(answer, choices) for answer in answers)
    identity = fields.get("id")
    return Question(
        id=place if identity is None else _word(identity, "'id'"),
        media=locate(given[0], fields[given[0]]),
        question=question.strip(),
        answers=answers,
        task=_text(fields, "task") or "all",
        choices=choices,
        objects=_words(fields, "objects") if fields.get("objects") is not None else (),
        metric=_text(fields, "metric") or None,
    )


def _instead(fields: Mapping[str, Any], *wanted: str) -> str:
    """How to say which of the other names stands for a missing one, if there are any."""
    others = [str(name) for name in fields if name not in FIELDS]
    if not others:
        return ""
    near = next(((name, field) for name in others for field in wanted if did_you_mean(name, [field])), None)
    name, field = near or ("NAME", wanted[0])
    return f" (there are {', '.join(map(repr, others))}: name what it is called with --columns {field}={name})"


def _option(answer: str, choices: tuple[str, ...]) -> str:
    """The option that an answer names by its text or its letter."""
    if len(set(choices)) != len(choices) or not 2 <= len(choices) <= 26:
        raise ValueError(f"'choices' are {len(choices)}, some of them alike: expected 2 to 26 different options")
    if answer in choices:
        return answer
    for index, choice in enumerate(choices):
        if answer == letter(index):
            return choice
    raise ValueError(f"the answer {answer!r} is none of the choices, nor the letter of one")


def _text(fields: Mapping[str, Any], name: str, required: bool = False) -> str:
    value = fields.get(name)
    if value is None and not required:
        return ""
    if value is None:
        raise ValueError(f"'{name}' is missing{_instead(fields, name)}")
    if not isinstance(value, str):
        raise ValueError(f"'{name}' is {_kind(value)}, not text")
    if required and not value.strip():
        raise ValueError(f"'{name}' is empty")
    return value


def _word(value: Any, name: str) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"{name} is {_kind(value)}, not text or a number")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{name} is {value}, which is no number: put it in quotes if it is meant as a word")
    return str(value)


def _words(fields: Mapping[str, Any], name: str) -> tuple[str, ...]:
    value = fields[name]
    if not isinstance(value, list | tuple):
        raise ValueError(f"'{name}' is {_kind(value)}, not a list")
    if not value:
        raise ValueError(f"'{name}' is an empty list: expected at least one")
    return tuple(_word(entry, f"an entry of '{name}'") for entry in value)


def _kind(value: Any) -> str:
    names = {bool: "true or false", dict: "an object", list: "a list", str: "text", int: "a number", float: "a number"}
    return names.get(type(value), "empty" if value is None else f"a {type(value).__name__}")
