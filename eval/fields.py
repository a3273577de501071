"""From what a data set calls its columns to the fields of a question: other names, lists in cells, conversations."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from vtc.eval.files import Row, read_json
from vtc.hints import did_you_mean

FIELDS = ("id", "image", "video", "question", "answer", "answers", "choices", "objects", "task", "metric")
CONVERSATIONS = "conversations"
_LISTS = ("answers", "choices", "objects")
_ASKS, _ANSWERS, _SILENT = ("human", "user"), ("gpt", "assistant"), ("system",)
_PART, _MEDIA = '{"type": "text", "text": "What?"}', ' or {"type": "image"}'
_PLACEHOLDER = re.compile(r"\s*<(?:image|video)>\s*")


def check_columns(columns: Mapping[str, str]) -> None:
    """ValueError if one of the names that columns are to stand for is no field."""
    for field, name in columns.items():
        if field not in (*FIELDS, CONVERSATIONS):
            turned = f" Did you mean {name}={field}?" if name in FIELDS else ""
            hint = turned or did_you_mean(field, FIELDS) or f" There are: {', '.join(FIELDS)}."
            raise ValueError(f"columns: a question has no field {field!r}.{hint}")


def renamed(rows: Sequence[Row], columns: Mapping[str, str], there: Iterable[str], source: str) -> list[Row]:
    """Rows under the names of fields: `columns` says by field what `source`, a data set, calls it.

    A column that is renamed is not found under its own name any more, and comes before one that had the name already.

    Args:
        there: all names of columns.
    Raises:
        ValueError: there is no such column.
    """
    for field, name in columns.items():
        if name not in there:
            known = [*there]
            hint = did_you_mean(name, known) or f" There are: {', '.join(known) or 'none'}."
            raise ValueError(f"{source} has no column {name!r}, which was to be {field!r}.{hint}")
    return [replace(row, fields=_rename(row.fields, columns)) for row in rows]


def _rename(fields: Any, columns: Mapping[str, str]) -> Any:
    if not isinstance(fields, Mapping):
        return fields
    rest = {name: value for name, value in fields.items() if name not in (*columns, *columns.values())}
    return rest | {field: fields[name] for field, name in columns.items() if name in fields}


def names_of(rows: Iterable[Row]) -> list[str]:
    """All names that some row has, in order of first appearance."""
    return list(dict.fromkeys(name for row in rows if isinstance(row.fields, Mapping) for name in row.fields))


def unread(names: Sequence[str], source: str) -> list[str]:
    """A sentence about the columns that are no fields, if there are any, with what may have been meant."""
    extra = [name for name in names if name not in (*FIELDS, CONVERSATIONS)]
    if not extra:
        return []
    absent = [field for field in FIELDS if field not in names]
    hints = [f" ({hint.strip()})" if (hint := did_you_mean(name, absent)) else "" for name in extra]
    listed = ", ".join(f"{name!r}{hint}" for name, hint in zip(extra, hints, strict=True))
    return [f"{source}: not read, as no field of a question is called so: {listed}"]


def with_lists(row: Row) -> Row:
    """A row of text whose lists, JSON or separated by "|", have been read."""
    if not isinstance(row.fields, dict):
        return row
    found = dict(row.fields)
    for name in {*_LISTS, CONVERSATIONS} & found.keys():
        cell = found[name].strip()
        try:
            found[name] = read_json(cell) if cell.startswith("[") else [part.strip() for part in cell.split("|")]
        except ValueError as error:
            return replace(row, fields=ValueError(f"'{name}' is not a JSON list ({error})"))
    return replace(row, fields=found)


def spread(rows: Sequence[Row]) -> list[Row]:
    """Rows with a conversation become one row per question of it; ids that several conversations share get the row's
    number."""
    shared = Counter(str(row.fields.get("id")) for row in rows if isinstance(row.fields, Mapping))
    found: list[Row] = []
    for row in rows:
        if not isinstance(row.fields, Mapping) or row.fields.get(CONVERSATIONS) is None:
            found.append(row)
            continue
        try:
            found += _turns(row, shared)
        except ValueError as error:
            found.append(replace(row, fields=error))
    return found


def _turns(row: Row, shared: Counter[str]) -> Iterator[Row]:
    """{"id": "7", "image": "a.png", "conversations": [{"from": "human", "value": "<image>\\nWhat?"}, {"from": "gpt",
    "value": "A star"}, ...]} -> {"id": "7-1", "image": "a.png", "question": "What?", "answer": "A star"}, ..."""
    rest = {name: value for name, value in row.fields.items() if name != CONVERSATIONS}
    name = str(rest.get("id", row.number))
    name += f"#{row.number}" if "id" in rest and shared[name] > 1 else ""
    pairs = _pairs(row.fields[CONVERSATIONS])
    for number, (question, answer) in enumerate(pairs, 1):
        own = {"id": name if len(pairs) == 1 else f"{name}-{number}", "question": question, "answer": answer}
        yield replace(row, fields=rest | own)


def _pairs(turns: Any) -> list[tuple[str, str]]:
    """Questions, placeholders left out, and their answers."""
    if not isinstance(turns, list) or not all(isinstance(turn, Mapping) for turn in turns):
        raise ValueError('\'conversations\' is not a list of turns such as {"from": "human", "value": "What?"}')
    spoken = [(turn.get("from", turn.get("role")), turn.get("value", turn.get("content"))) for turn in turns]
    spoken = [(who, content) for who, content in spoken if who not in _SILENT]
    if not spoken:
        raise ValueError("'conversations' holds no question")
    texts: list[str] = []
    for number, (who, content) in enumerate(spoken, 1):
        turn = _ANSWERS if number % 2 == 0 else _ASKS
        if who not in turn:
            raise ValueError(f"turn {number} of 'conversations' is by {who!r}: expected {' or '.join(map(repr, turn))}")
        texts.append(_content(content, f"turn {number} of 'conversations'", media=turn == _ASKS))
    if len(spoken) % 2:
        raise ValueError("the last question of 'conversations' has no answer")
    questions = texts[::2]
    if (held := sum(len(_PLACEHOLDER.findall(text)) for text in questions)) > 1:
        raise ValueError(f"'conversations' has {held} placeholders: a question is about one picture or one video")
    return [(_PLACEHOLDER.sub(" ", asked).strip(), said) for asked, said in zip(questions, texts[1::2], strict=True)]


def _content(content: Any, place: str, media: bool) -> str:
    """What a turn says, pictures and videos as placeholders. Content is a text or parts, as Hugging Face has them.

    [{"type": "image"}, {"type": "text", "text": "What?"}] -> "<image>\\nWhat?"

    Args:
        media: whether it may hold pictures and videos.
    """
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not all(isinstance(part, Mapping) for part in content):
        raise ValueError(f"{place} is no text, nor a list of parts such as {_PART}: {content!r}")
    said = []
    for part in content:
        kind = part.get("type")
        if kind in ("image", "video") and media:
            said.append(f"<{kind}>")
        elif kind == "text" and isinstance(part.get("text"), str):
            said.append(part["text"])
        else:
            raise ValueError(f"{place} holds {part!r}: expected parts such as {_PART}{_MEDIA if media else ''}")
    return "\n".join(said)
