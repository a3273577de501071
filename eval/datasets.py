"""Questions about pictures and videos: the shipped sets, PyPI's `easy-vqa`, a file of yours, or a saved HF data set.

A set is a `.jsonl` or `.csv` file (or a folder with one) of one question per line:

    {"id": "12-3", "image": "images/12.webp", "question": "What color is the star?", "answer": "red", "task": "color"}

`image` or `video` is a path relative to the file. `answers`, a list, may stand in for `answer` (what several of them
mean is up to the metric; for most, any counts). Optional: `id`; `task`; `choices`, a list of options of which the
answer is one, by its text or letter; `objects`, a list of phrases that a caption should name; `metric`, the name of one
(`vtc.eval.metrics`). In a CSV file lists are JSON lists or separated by `|`, and an empty cell is no field.

A folder that Hugging Face's `datasets` wrote (`save_to_disk`) has the same columns; `image` may be of type `Image`.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from vtc.eval.questions import Media, Question, question_of

__all__ = ["Dataset", "Media", "Question", "load", "shipped"]

_SHIPPED = Path(__file__).resolve().parent / "data"
_LISTS = ("answers", "choices", "objects")


@dataclass(frozen=True)
class Dataset:
    name: str
    questions: tuple[Question, ...]

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
        return Dataset(self.name, self.questions[:limit])

    def only(self, tasks: Sequence[str]) -> Dataset:
        """The questions of these tasks; ValueError if there is no such task."""
        for task in tasks:
            if task not in self.tasks:
                raise ValueError(f"the data set {self.name!r} has no task {task!r}; it has {', '.join(self.tasks)}")
        return Dataset(self.name, tuple(question for question in self.questions if question.task in tasks))

    def digest(self) -> str:
        """A fingerprint of the questions and of their files' sizes."""
        known = hashlib.sha256()
        for q in self.questions:
            size = q.media.file.stat().st_size if q.media.file else 0
            fields = [q.id, q.media.kind, q.media.name, size, q.question, q.answers, q.choices, q.objects, q.task]
            known.update(json.dumps(fields).encode())
        return known.hexdigest()[:16]


def shipped() -> list[str]:
    """Names of the sets that come with the package."""
    return sorted(folder.name for folder in _SHIPPED.iterdir() if list(folder.glob("*.jsonl")))


def load(name_or_path: str | Path) -> Dataset:
    """Read a set of questions, and check every field and that every picture and video is there.

    Args:
        name_or_path: a shipped set, "easy-vqa" (the published test split), a `.jsonl` or `.csv` file or its folder, or
            a folder written by `datasets.Dataset.save_to_disk`.
    Raises:
        FileNotFoundError: there is no such set, or one of its pictures is missing.
        ValueError: a line is not of the form above (the message says which and why), or there are no questions.
        ImportError: `easy-vqa` or `datasets` is not installed.
    """
    name, path = str(name_or_path), Path(name_or_path)
    if path.exists():
        questions = _saved(path) if _is_saved(path) else _read(_only_file(path))
    elif name in shipped():
        questions = _read(_only_file(_SHIPPED / name))
    elif name == "easy-vqa":
        questions = _easy_vqa()
    else:
        known = ", ".join([*shipped(), "easy-vqa"])
        raise FileNotFoundError(
            f"there is no data set {name!r}: give one of {known}, or the path of a .jsonl or .csv file"
        )
    if not questions:
        raise ValueError(f"the data set {name!r} holds no questions")
    return Dataset(path.resolve().stem if path.exists() else name, tuple(questions))


def _only_file(path: Path) -> Path:
    if path.is_file():
        return path
    files = sorted([*path.glob("*.jsonl"), *path.glob("*.csv")])
    if len(files) != 1:
        raise ValueError(f"{path} holds {len(files)} .jsonl and .csv files, not one: give the path of the file itself")
    return files[0]


def _read(path: Path) -> list[Question]:
    if path.suffix.lower() not in (".jsonl", ".csv"):
        raise ValueError(f"{path} is neither a .jsonl nor a .csv file: see `vtc eval --help` for the form of a set")
    try:
        lines = list(_csv(path) if path.suffix.lower() == ".csv" else _jsonl(path))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text (byte {error.start}): save it as UTF-8") from None

    def locate(kind: str, value: Any) -> Media:
        if not isinstance(value, str) or not value.strip():
            raise ValueError(f"'{kind}' is not the path of a file: {value!r}")
        file = path.parent / value
        if not file.is_file():
            raise FileNotFoundError(f"there is no {kind} at {file}")
        return Media(kind, value, file)

    return _questions(((f"{path}, line {number},", str(number), fields) for number, fields in lines), locate)


def _questions(lines: Iterable[tuple[str, str, Any]], locate: Any) -> list[Question]:
    """Questions of (where a line stands, its id if it names none, its fields), ids being different."""
    questions: list[Question] = []
    places: dict[str, str] = {}
    for place, number, fields in lines:
        try:
            if isinstance(fields, ValueError):
                raise fields
            question = question_of(fields, number, locate)
            if question.id in places:
                raise ValueError(
                    f"its id {question.id!r} is that of {places[question.id].rstrip(',')}: ids must differ"
                )
        except (ValueError, FileNotFoundError) as error:
            raise type(error)(f"{place} is not a question: {error}") from None
        places[question.id] = place
        questions.append(question)
    return questions


def _jsonl(path: Path) -> Iterator[tuple[int, Any]]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                try:
                    yield number, json.loads(line)
                except ValueError as error:
                    yield number, ValueError(f"malformed JSON ({error})")


def _csv(path: Path) -> Iterator[tuple[int, Any]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = csv.DictReader(file, strict=True)
        try:
            for row in rows:
                yield rows.line_num, _cells(row)
        except csv.Error as error:
            yield rows.line_num, ValueError(f"malformed CSV ({error})")


def _cells(row: dict[Any, Any]) -> Any:
    if None in row:
        return ValueError("it has more cells than the first line names columns: put text with commas in quotes")
    fields: dict[str, Any] = {name.strip(): cell for name, cell in row.items() if cell is not None and cell.strip()}
    for name in _LISTS:
        if name in fields:
            cell = fields[name].strip()
            try:
                fields[name] = json.loads(cell) if cell.startswith("[") else [part.strip() for part in cell.split("|")]
            except ValueError as error:
                return ValueError(f"'{name}' is not a JSON list ({error})")
    return fields


def _is_saved(path: Path) -> bool:
    return any((path / name).is_file() for name in ("dataset_info.json", "dataset_dict.json"))


def _saved(path: Path) -> list[Question]:
    """A folder that Hugging Face's `datasets` wrote."""
    try:
        hub: Any = import_module("datasets")
    except ImportError:
        raise ImportError("reading a saved data set needs datasets: pip install 'vtc-vlm[datasets]'") from None
    if (path / "dataset_dict.json").is_file():
        splits = json.loads((path / "dataset_dict.json").read_text())["splits"]
        raise ValueError(f"{path} holds several splits: give one of {', '.join(str(path / split) for split in splits)}")
    try:
        table = hub.load_from_disk(str(path))
    except Exception as error:
        raise ValueError(f"{path} cannot be read as a saved data set: {error}") from error
    columns = {name for name, kind in table.features.items() if isinstance(kind, hub.Image)}
    for name in columns:  # bytes, and not pictures, until a question is asked
        table = table.cast_column(name, hub.Image(decode=False))

    def line(number: int) -> dict[str, Any]:
        fields = table[number]
        return {name: (number, value) if name in columns and value else value for name, value in fields.items()}

    def locate(kind: str, value: Any) -> Media:
        if isinstance(value, tuple):
            number, cell = value
            if cell["bytes"] is not None:
                content = hashlib.sha256(cell["bytes"]).hexdigest()[:12]  # saved names are no paths, and may repeat
                name = f"{cell['path'] or 'picture'}#{content}"
                return Media(kind, name, read=lambda: table[number][kind]["bytes"])
            value = cell["path"]
        if not isinstance(value, str):
            raise ValueError(f"'{kind}' is neither of type Image nor the path of a file")
        file = path / value
        if not file.is_file():
            raise FileNotFoundError(f"there is no {kind} at {file}")
        return Media(kind, value, file)

    return _questions(((f"{path}, row {n},", str(n), line(n)) for n in range(len(table))), locate)


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
