"""The index of the methods that ship: what they are, without importing them, and so without torch.

`vtc/methods/index.json` is generated from the classes; after a change to one of them write it anew:

    python -m vtc.methods.base.write_index
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

FILE = Path(__file__).resolve().parents[1] / "index.json"


class Paper(NamedTuple):
    """The paper that a method follows: its title, and its number on arXiv ("2503.02175")."""

    title: str
    arxiv: str


@dataclass(frozen=True)
class MethodInfo:
    """What `vtc.list_methods()` tells of a method.

    Attributes:
        module, class_name: where its class is. stage: "input", "layer", "cache", or several joined by "+".
        places: stages that it can act at; where its option `stage` chooses, these are more than it acts at by itself.
        options: names of its options besides `keep`. defaults: their default values.
        types: annotations of all options, `keep` first. help: what the docstring says of each.
        summary: first line of its docstring. about: what comes after it, one line per paragraph.
    """

    name: str
    module: str
    class_name: str
    stage: str
    places: tuple[str, ...]
    needs: tuple[str, ...]
    query_aware: bool
    exact_count: bool
    merges: bool
    trained: bool
    modality: tuple[str, ...]
    only: tuple[str, ...]
    positions: str
    paper: Paper | None
    default_keep: int | float
    options: tuple[str, ...]
    defaults: Mapping[str, Any] = field(hash=False)
    types: Mapping[str, str] = field(hash=False)
    help: Mapping[str, str] = field(hash=False)
    summary: str
    about: str

    @property
    def acts(self) -> str:
        """`stage`, with the others that it can act at instead: "input or encoder", "input+layer"."""
        return " or ".join((self.stage, *(place for place in self.places if place not in self.stage.split("+"))))


@cache
def shipped() -> Mapping[str, MethodInfo]:
    """The methods that ship, by name, in alphabetical order."""
    return {entry["name"]: _info(entry) for entry in json.loads(FILE.read_text(encoding="utf-8"))}


def text_of(infos: list[MethodInfo]) -> str:
    """What the file holds for these methods: one JSON object each."""
    return json.dumps([_entry(info) for info in infos], indent=1, ensure_ascii=False) + "\n"


def _entry(info: MethodInfo) -> dict[str, Any]:
    entry = asdict(info)
    entry["paper"] = info.paper and info.paper._asdict()
    del entry["options"]  # the names of `defaults`
    return entry


def _info(entry: dict[str, Any]) -> MethodInfo:
    read = _frozen(entry)
    read["defaults"] = _frozen(entry["defaults"])
    read["paper"] = Paper(**entry["paper"]) if entry["paper"] else None
    return MethodInfo(**read, options=tuple(entry["defaults"]))


def _frozen(values: dict[str, Any]) -> dict[str, Any]:
    """With tuples for JSON's lists."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
