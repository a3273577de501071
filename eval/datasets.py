"""Questions about pictures and videos: the shipped sets, PyPI's `easy-vqa`, a file of yours, or a saved HF data set.

`fashion-mnist` is the first 1,000 test pictures of that set, for classifiers; a folder with its IDX files, all of them.

A set is a file (or a folder with one) of one question per line or entry, in UTF-8: .jsonl, .json (one array), .csv with
commas or semicolons, or .tsv:

    {"id": "12-3", "image": "images/12.webp", "question": "What color is the star?", "answer": "red", "task": "color"}

`image` or `video` is a path relative to the file. `answers`, a list, may stand in for `answer` (what several of them
mean is up to the metric; for most, any counts). Optional: `id`; `task`; `choices`, a list of options of which the
answer is one, by its text or letter; `objects`, a list of phrases that a caption should name; `metric`, the name of one
(`vtc.eval.metrics`). In CSV and TSV files lists are JSON lists or separated by `|`, and an empty cell is no field.

`conversations` as LLaVA writes them ({"from": "human", "value": "<image>\\nWhat?"}, {"from": "gpt", ...}), or messages
as Hugging Face does ({"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]}), may stand in
for question and answer; of several turns each becomes a question of its own, asked without the others.

A folder that Hugging Face's `datasets` wrote (`save_to_disk`) or a .parquet file has the same columns; `image` may be
of type `Image`. Columns of other names: --columns image=picture,question=q. What is no field is not read, and named.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import Any

from vtc.eval import fashion, fields, files
from vtc.eval.files import Row
from vtc.eval.questions import Media, Question, question_of
from vtc.eval.saved import Saved, is_saved
from vtc.hints import did_you_mean
from vtc.models import tiny

__all__ = ["Dataset", "Media", "Question", "load", "shipped"]

_SHIPPED = Path(__file__).resolve().parent / "data"


@dataclass(frozen=True)
class Dataset:
    name: str
    questions: tuple[Question, ...]
    notes: tuple[str, ...] = field(default=(), compare=False)  # sentences about what was not read
    model: str | None = None  # the shipped one that was made for it; None: whichever reads its media

    @property
    def tasks(self) -> list[str]:
        """Task names in order of first appearance."""
        return list(dict.fromkeys(question.task for question in self.questions))

    @property
    def kinds(self) -> list[str]:
        """ "image", "video" or both."""
        return sorted({question.media.kind for question in self.questions})

    def first(self, limit: int | None) -> Dataset:
        """The first `limit` questions."""
        return replace(self, questions=self.questions[:limit])

    def only(self, tasks: Sequence[str]) -> Dataset:
        """The questions of these tasks; ValueError if there is no such task."""
        for task in tasks:
            if task not in self.tasks:
                raise ValueError(f"the data set {self.name!r} has no task {task!r}; it has {', '.join(self.tasks)}")
        return replace(self, questions=tuple(question for question in self.questions if question.task in tasks))

    def digest(self) -> str:
        """A fingerprint of the questions and of their files' sizes."""
        known = hashlib.sha256()
        for q in self.questions:
            size = q.media.file.stat().st_size if q.media.file else 0
            about = [q.id, q.media.kind, q.media.name, size, q.question, q.answers, q.choices, q.objects, q.task]
            known.update(json.dumps(about).encode())
        return known.hexdigest()[:16]


def shipped() -> list[str]:
    """Names of the sets that come with the package."""
    return sorted(
        folder.name for folder in _SHIPPED.iterdir() if list(folder.glob("*.jsonl")) or fashion.is_fashion(folder)
    )


def load(name_or_path: str | Path, columns: Mapping[str, str] | None = None, answered: bool = True) -> Dataset:
    """Read a set of questions, and check every field and that every picture and video is there.

    Args:
        name_or_path: a shipped set, "easy-vqa" (the published test split), a `.jsonl`, `.json`, `.csv`, `.tsv` or
            `.parquet` file or its folder, a folder written by `datasets.Dataset.save_to_disk`, or one with the IDX
            files of Fashion-MNIST's test split.
        columns: field -> what the set calls it.
        answered: whether each question must have an answer.
    Raises:
        FileNotFoundError: there is no such set, or one of its pictures is missing.
        ValueError: a line is not of the form above (the message says which and why), or there are no questions, or
            no such columns.
        ImportError: `easy-vqa` or `datasets` is not installed.
    """
    name, path = str(name_or_path), Path(name_or_path)
    columns = columns or {}
    fields.check_columns(columns)
    own = path if path.is_dir() else _SHIPPED / name
    if name and fashion.is_fashion(own):
        data = _fashion(name, own, columns)
    elif path.exists():
        read = _from_saved if is_saved(path) else _from_file
        data = read(path if is_saved(path) else _only_file(path), columns, answered)
        data = replace(data, name=path.resolve().stem)
    elif name in shipped():
        own_model = name if name in tiny.names() else None
        data = replace(_from_file(_only_file(_SHIPPED / name), columns), name=name, model=own_model)
    elif name == "easy-vqa":
        _no_columns(name, columns)
        data = Dataset(name, tuple(_easy_vqa()))
    else:
        known = [*shipped(), "easy-vqa"]
        raise FileNotFoundError(
            f"there is no data set {name!r}.{did_you_mean(name, known)} Give one of {', '.join(known)}, or the path of "
            "a file of questions."
        )
    if not data.questions:
        raise ValueError(f"the data set {name!r} holds no questions")
    return data


def _no_columns(name: str, columns: Mapping[str, str]) -> None:
    if columns:
        raise ValueError(f"columns are for files and saved data sets, and {name} is neither: leave them out")


def _fashion(name: str, folder: Path, columns: Mapping[str, str]) -> Dataset:
    _no_columns(name, columns)
    return Dataset(folder.resolve().name, tuple(fashion.questions(folder)), model=fashion.MODEL)


def _only_file(path: Path) -> Path:
    if path.is_file():
        return path
    found = [file for kind in (*files.KINDS, ".parquet") for file in sorted(path.glob(f"*{kind}"))]
    inside = [file for file in found if file.suffix != ".json"] or found  # .json may be about anything
    if len(inside) != 1:
        raise ValueError(f"{path} holds {len(inside)} files of questions, not one: give the path of the file itself")
    return inside[0]


def _from_file(path: Path, columns: Mapping[str, str], answered: bool = True) -> Dataset:
    def locate(kind: str, value: Any) -> Media:
        if not isinstance(value, str) or not value.strip():
            raise ValueError(f"'{kind}' is not the path of a file: {value!r}")
        if "://" in value:
            raise ValueError(f"'{kind}' is an address: fetch it first, and give the path of the file")
        file = path.parent / value
        if not file.is_file():
            raise FileNotFoundError(f"there is no {kind} at {file}")
        return Media(kind, value, file)

    rows = files.rows(path)
    rows = fields.renamed(rows, columns, fields.names_of(rows), str(path))
    if files.is_delimited(path):
        rows = [fields.with_lists(row) for row in rows]
    return _dataset(rows, locate, str(path), answered)


def _from_saved(path: Path, columns: Mapping[str, str], answered: bool) -> Dataset:
    saved = Saved(path)
    return _dataset(fields.renamed(saved.rows, columns, saved.names, str(path)), saved.locate, str(path), answered)


def _dataset(rows: Sequence[Row], locate: Callable[[str, Any], Media], source: str, answered: bool) -> Dataset:
    """Questions of rows under the names of fields, ids being different."""
    questions: list[Question] = []
    places: dict[str, str] = {}
    for row in fields.spread(rows):
        try:
            if isinstance(row.fields, ValueError):
                raise row.fields
            question = question_of(row.fields, str(row.number), locate, answered)
            if question.id in places:
                raise ValueError(
                    f"its id {question.id!r} is that of {places[question.id].rstrip(',')}: ids must differ"
                )
        except (ValueError, FileNotFoundError) as error:
            raise type(error)(f"{row.place} is not a question: {error}") from None
        places[question.id] = row.place
        questions.append(question)
    return Dataset(source, tuple(questions), tuple(fields.unread(fields.names_of(rows), source)))


def _easy_vqa() -> list[Question]:
    try:
        easy_vqa: Any = import_module("easy_vqa")
    except ImportError:
        raise ImportError("the data set 'easy-vqa' is not installed: pip install 'vtc-vlm[eval]'") from None
    texts, answers, images = easy_vqa.get_test_questions()
    paths = {number: Path(path) for number, path in easy_vqa.get_test_image_paths().items()}
    media = {number: Media("image", path.name, path) for number, path in paths.items()}
    return [
        Question(str(number), media[image], _sentence(text), (answer,), _easy_vqa_task(text, answer))
        for number, (text, answer, image) in enumerate(zip(texts, answers, images, strict=True))
    ]


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def _easy_vqa_task(text: str, answer: str) -> str:
    if answer in ("yes", "no"):
        return "negation" if {"not", "no"} & set(text.split()) else "existence"
    return "color" if "color" in text else "shape"
