"""Pictures and clips to click, from the sets of questions that come with the package."""

from __future__ import annotations

import json
from pathlib import Path

import vtc
from vtc.demos.media import Media, load_media

_DATA = Path(vtc.__file__).parent / "eval" / "data"
_ASKED = {  # of the pictures in eval/data/tiny
    "0001": "Is the yellow star above or below the cone?",
    "0003": "What word is printed?",
    "0006": "What shape is red?",
    "0008": "How many smileys are in the picture?",
    "0004": "Where is the white square?",
    "0012": "What number is printed?",
    "0005": "Describe the picture.",
}
_ASKED_OF = {  # of the pictures made for another model, in the set that has its name
    "tiny-next": {
        "n0001": "What word is printed?",
        "n0016": "How many stars are there?",
        "n0008": "In which quarter is the purple star?",
        "n0017": "What number is printed?",
        "n0022": "Where is the note?",
        "n0003": "Which color is the cross?",
    },
}
_MOST_CLIPS = 3
_PATHS: dict[str, str] = {}  # of what was loaded, by key


def shipped_pictures(model: str = "tiny-llava") -> list[tuple[Media, str]]:
    """Pictures, each with a question: those made for a model that ships, or tiny-llava's."""
    folder, asked = (model, _ASKED_OF[model]) if model in _ASKED_OF else ("tiny", _ASKED)
    return [(_load(_DATA / folder / "pictures" / f"{name}.webp"), question) for name, question in asked.items()]


def shipped_path(media: Media) -> str | None:
    """Path of one of the examples, from the package's own folder; None of what a visitor uploads."""
    return _PATHS.get(media.key)


def _load(path: Path) -> Media:
    media = load_media(path)
    if path.is_relative_to(_DATA):
        _PATHS[media.key] = f"eval/data/{path.relative_to(_DATA).as_posix()}"
    return media


def shipped_clips(data: Path = _DATA) -> list[tuple[Media, str]]:
    """The first clips of any set of questions about videos, each with its first question."""
    found: dict[Path, str] = {}
    for file in sorted(data.glob("*/*.jsonl")):
        with file.open(encoding="utf-8") as lines:
            for line in lines:
                row = json.loads(line)
                if "video" not in row:
                    break
                found.setdefault(file.parent / row["video"], row["question"])
                if len(found) == _MOST_CLIPS:
                    break
    try:
        return [(_load(path), question) for path, question in found.items()]
    except ImportError:  # neither decord nor PyAV is here
        return []
