"""Comparisons as JSON: what `vtc compare --json` writes, and reads again, so that the runs need not be at hand."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any

from vtc.eval.compare import Group, Row
from vtc.eval.statistics import Difference, Score
from vtc.speedup import SpeedUp

FORMAT = 1
_DIGITS = 5  # significant ones
_PARTS = {
    "accuracy": Score,
    "retention": Score,
    "loyalty": Score,
    "group_a": Score,
    "versus_full": Difference,
    "versus_random": Difference,
    "speedup": SpeedUp,
}


@dataclass(frozen=True)
class Recorded:
    """A group of rows without the runs they come from; for the rest see `vtc.eval.compare.Group`."""

    title: str
    model: str
    data: str
    kind: str
    questions: int
    media: int
    tasks: list[str]
    made: list[str]
    rows: list[Row]


Compared = Group | Recorded


def classifies(group: Compared) -> bool:
    """Whether the model is a bare classifier, which writes no tokens."""
    return not any(row.kv for row in group.rows)


def write(groups: Sequence[Compared]) -> str:
    """Every row with its intervals and p-values as JSON, a line each; numbers to five digits."""
    return "[\n" + ",\n".join(map(_written, groups)) + "\n]\n"


def _written(group: Compared) -> str:
    from vtc.eval.table import caption

    names = [field.name for field in fields(Recorded) if field.name != "rows"]
    head = {"format": FORMAT} | {name: getattr(group, name) for name in names} | {"caption": caption(group)}
    lines = [f' "{name}": {_json(value)},' for name, value in head.items()]
    rows = ",\n".join(f"  {_json(_shortened(asdict(row)))}" for row in group.rows)
    return "\n".join(["{", *lines, ' "rows": [', rows, " ]", "}"])


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _shortened(value: Any) -> Any:
    """With floats to five significant digits, whole ones as ints, but for a keep, where 1 and 1.0 differ."""
    if isinstance(value, Mapping):
        return {name: own if name == "keep" else _shortened(own) for name, own in value.items()}
    if isinstance(value, list):
        return [_shortened(own) for own in value]
    if isinstance(value, float):
        short = float(f"{value:.{_DIGITS}g}")
        return int(short) if short.is_integer() else short
    return value


def read(file: str | Path) -> list[Recorded]:
    """The groups of a file that `vtc compare --json` wrote.

    Raises:
        FileNotFoundError, ValueError: there is no such file, or something else is in it.
    """
    path = Path(file)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}: give one that `vtc compare --json` wrote")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not (isinstance(found, list) and found and all(group["format"] == FORMAT for group in found)):
            raise ValueError(f"it is not of format {FORMAT}")
        return [_group(group) for group in found]
    except (ValueError, KeyError, TypeError) as error:
        why = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
        raise ValueError(
            f"{path} is no comparison that this version can read ({why}): write it anew with `vtc compare RUN --json`"
        ) from None


def _group(found: Mapping[str, Any]) -> Recorded:
    known = {field.name: found[field.name] for field in fields(Recorded) if field.name != "rows"}
    for name in ("tasks", "made"):
        if not isinstance(known[name], list):
            raise TypeError(f"{name} is no list")
    return Recorded(**known, rows=[_row(row) for row in found["rows"]])


def _row(found: Mapping[str, Any]) -> Row:
    lacks = [f.name for f in fields(Row) if f.default is MISSING and f.name not in found]
    if lacks:
        raise KeyError(", ".join(lacks))
    parts = {name: kind(**found[name]) for name, kind in _PARTS.items() if found[name] is not None}
    return Row(**{**found, **parts, "tasks": {task: Score(**score) for task, score in found["tasks"].items()}})
