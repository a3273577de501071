"""Rows of a file of questions: JSON lines, a JSON array, CSV or TSV. What a row's fields mean is not known here."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_DELIMITED = {".csv": ",", ".tsv": "\t"}
KINDS = (".jsonl", ".json", *_DELIMITED)
TOO_DEEP = "brackets within brackets go too deep to be read"
_NAMES = {",": "commas", ";": "semicolons", "\t": "tabs"}


@dataclass(frozen=True)
class Row:
    """A row of a file.

    Attributes:
        place: where it stands, for messages. number: counted from 1; a question that names no id is called so.
        fields: by name, or what is wrong with the row; of a CSV or TSV file all are text, empty cells left out.
    """

    place: str
    number: int
    fields: Any


def is_delimited(path: Path) -> bool:
    """Whether a file's fields are text alone, so that lists must be read from it."""
    return path.suffix.lower() in _DELIMITED


def rows(path: Path) -> list[Row]:
    """All rows of a file, in order; those that cannot be read have the reason, a ValueError, as their fields.

    Raises:
        ValueError: the file's kind is none of `KINDS`, or it is not UTF-8 text, or its first line names no columns.
    """
    kind = path.suffix.lower()
    if kind not in KINDS:
        raise ValueError(f"{path} is none of {', '.join(KINDS)}: see `vtc eval --help` for the form of a set")
    text = _text(path)
    if kind in _DELIMITED:
        return [Row(f"{path}, line {n},", n, fields) for n, fields in _cells(path, text, _DELIMITED[kind])]
    array = _array(path, text)
    if array is not None:
        return [Row(f"{path}, entry {n},", n, fields) for n, fields in enumerate(array, 1)]
    return [Row(f"{path}, line {n},", n, fields) for n, fields in _lines(text)]


def read_json(text: str | bytes) -> Any:
    """What a text in JSON says; ValueError if it is none, or too deep."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError(TOO_DEEP) from None


def _text(path: Path) -> str:
    content = path.read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        coded = "UTF-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "perhaps Latin-1"
        raise ValueError(
            f"{path} is not UTF-8 text but {coded} (byte {error.start}, in line {line}): save it as UTF-8"
        ) from None


def _array(path: Path, text: str) -> list[Any] | None:
    """The entries of a file that is one JSON array; None if it holds lines, each for itself."""
    named_so = path.suffix.lower() == ".json"
    try:
        found = read_json(text)
    except ValueError as error:
        if named_so and text.lstrip().startswith("["):
            raise ValueError(f"{path} is malformed JSON ({error})") from None
        return None
    if isinstance(found, dict) and "question" not in found and named_so:
        raise ValueError(f"{path} is one object with {', '.join(map(repr, found))}: give the array of questions alone")
    return found if isinstance(found, list) and (named_so or all(isinstance(entry, dict) for entry in found)) else None


def _lines(text: str) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(io.StringIO(text, newline=None), 1):
        if line.strip():
            try:
                yield number, read_json(line)
            except ValueError as error:
                yield number, ValueError(f"malformed JSON ({error})")


def _cells(path: Path, text: str, usual: str) -> Iterator[tuple[int, Any]]:
    first = next(csv.reader(io.StringIO(text), delimiter=usual), [])
    mark = usual
    if len(first) < 2:  # as spreadsheets write where the comma is the decimal point
        mark = max((usual, ";", "\t", ","), key=lambda m: len(next(csv.reader(io.StringIO(text), delimiter=m), [])))
    table = csv.DictReader(io.StringIO(text, newline=""), delimiter=mark, strict=True)
    names = [name.strip() for name in table.fieldnames or []]
    if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
        raise ValueError(f"{path} names the column {twice[0]!r} twice in its first line: give each a name of its own")
    try:
        for row in table:
            if None in row:
                yield (
                    table.line_num,
                    ValueError(
                        f"it has more cells than the first line names columns: put text with {_NAMES[mark]} in quotes"
                    ),
                )
            else:
                yield table.line_num, {name.strip(): cell for name, cell in row.items() if cell and cell.strip()}
    except csv.Error as error:
        yield table.reader.line_num, ValueError(f"malformed {path.suffix[1:].upper()} ({error})")
