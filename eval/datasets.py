"""Questions about pictures, from the shipped set, from PyPI's `easy-vqa`, or from a file of yours.

A set is a `.jsonl` file (or a folder with one) of one question per line:

    {"id": "12-3", "image": "images/12.webp", "question": "What color is the star?", "answer": "red", "task": "color"}

`image` is relative to the file. `answers`, a list, may stand in for `answer` (any of them counts as right). `id` and
`task` are optional. `objects`, a list of phrases, marks a caption: it is scored by the F1 over the objects named.
"""

import json
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

_SHIPPED = Path(__file__).resolve().parent / "data"


@dataclass(frozen=True)
class Question:
    id: str
    image: Path
    question: str
    answers: tuple[str, ...]
    task: str
    objects: tuple[str, ...] = ()


@dataclass(frozen=True)
class Dataset:
    name: str
    questions: tuple[Question, ...]

    @property
    def tasks(self) -> list[str]:
        """Task names in order of first appearance."""
        return list(dict.fromkeys(question.task for question in self.questions))

    def first(self, limit: int | None) -> "Dataset":
        """The first `limit` questions."""
        return Dataset(self.name, self.questions[:limit])


def shipped() -> list[str]:
    """Names of the sets that come with the package."""
    return sorted(folder.name for folder in _SHIPPED.iterdir() if list(folder.glob("*.jsonl")))


def load(name_or_path: str | Path) -> Dataset:
    """Read a set of questions and check that all of its pictures are there.

    Args:
        name_or_path: "tiny" (shipped), "easy-vqa" (the published test split), or a `.jsonl` file or its folder.
    Raises:
        FileNotFoundError: there is no such set, or one of its pictures is missing.
        ValueError: a line is not of the form above (the message says which and why), or there are no questions.
        ImportError: `easy-vqa` is not installed.
    """
    name, path = str(name_or_path), Path(name_or_path)
    if path.exists():
        questions = _read(_only_jsonl(path))
    elif name in shipped():
        questions = _read(_only_jsonl(_SHIPPED / name))
    elif name == "easy-vqa":
        questions = _easy_vqa()
    else:
        known = ", ".join([*shipped(), "easy-vqa"])
        raise FileNotFoundError(f"there is no data set {name!r}: give one of {known}, or the path of a .jsonl file")
    if not questions:
        raise ValueError(f"the data set {name!r} holds no questions")
    for image in {question.image for question in questions}:
        if not image.is_file():
            raise FileNotFoundError(f"the data set {name!r} names the picture {image}, which does not exist")
    return Dataset(path.stem if path.exists() else name, tuple(questions))


def _only_jsonl(path: Path) -> Path:
    if path.is_file():
        return path
    files = sorted(path.glob("*.jsonl"))
    if len(files) != 1:
        raise ValueError(f"{path} holds {len(files)} .jsonl files, not one: give the path of the file itself")
    return files[0]


def _read(path: Path) -> list[Question]:
    questions = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            questions.append(_question(json.loads(line), path.parent, str(number)))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            reason = f"{error} is missing" if isinstance(error, KeyError) else error
            raise ValueError(f"{path}, line {number}, is not a question: {reason}") from None
    return questions


def _question(fields: dict, folder: Path, number: str) -> Question:
    answers = fields["answers"] if "answers" in fields else [fields["answer"]]
    if not isinstance(answers, list) or not answers:
        raise ValueError("'answers' is not a list of at least one answer")
    return Question(
        id=str(fields.get("id", number)),
        image=folder / fields["image"],
        question=fields["question"].strip(),
        answers=tuple(str(answer) for answer in answers),
        task=str(fields.get("task", "all")),
        objects=tuple(fields.get("objects", ())),
    )


def _easy_vqa() -> list[Question]:
    try:
        easy_vqa = import_module("easy_vqa")
    except ImportError:
        raise ImportError("the data set 'easy-vqa' is not installed: pip install 'vtc-vlm[eval]'") from None
    texts, answers, images = easy_vqa.get_test_questions()
    paths = easy_vqa.get_test_image_paths()
    return [
        Question(str(number), Path(paths[image]), _sentence(text), (answer,), _easy_vqa_task(text, answer))
        for number, (text, answer, image) in enumerate(zip(texts, answers, images, strict=True))
    ]


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def _easy_vqa_task(text: str, answer: str) -> str:
    if answer in ("yes", "no"):
        return "negation" if {"not", "no"} & set(text.split()) else "existence"
    return "color" if "color" in text else "shape"
