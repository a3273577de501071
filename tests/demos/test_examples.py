"""What the pages, the Makefile and the demo ask first is answered right by the models that ship, uncompressed."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from vtc.demos.examples import shipped_clips, shipped_pictures
from vtc.demos.media import Media, load_media
from vtc.demos.studio import Studio

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "eval" / "data"


def answers() -> dict[tuple[str, str], str]:
    """What is right, by file and question; descriptions are neither right nor wrong."""
    found = {}
    for file in sorted(DATA.glob("*/questions.jsonl")):
        for line in map(json.loads, file.read_text().splitlines()):
            if line["task"] != "caption":
                found[Path(line.get("image") or line["video"]).name, line["question"]] = line["answer"]
    return found


def asked() -> list[tuple[Media, str]]:
    """By `make demo` and by the demo's page, the first two of each first."""
    lines = re.findall(r'\bask (\d+\.\w+) "(.*?)"', (ROOT / "Makefile").read_text())
    folders = {".webp": "tiny/pictures", ".mp4": "tiny-video/clips"}
    make = [(load_media(DATA / folders[Path(name).suffix] / name), question) for name, question in lines]
    page = [*shipped_pictures(), *shipped_clips()]
    return [make[0], page[0], *make[1:], *page[1:]]


@pytest.fixture(scope="module")
def studio():
    return Studio(["tiny-llava", "tiny-qwen"], device="cpu")


@pytest.fixture(autouse=True)
def one_round(monkeypatch):
    monkeypatch.setattr("vtc.demos.studio._PATIENCE", 0)


def test_both_ask_something_that_has_an_answer():
    right = answers()
    named = [(media.name, question) for media, question in asked()]
    assert len(named) > 10
    assert [pair for pair in named if pair not in right] == [("0005.webp", "Describe the picture.")]


@pytest.mark.parametrize("number", [0, 1, *(pytest.param(i, marks=pytest.mark.full) for i in range(2, 15))])
def test_what_is_asked_first_is_answered_right(studio, number):
    examples = [(media, question) for media, question in asked() if (media.name, question) in answers()]
    media, question = examples[min(number, len(examples) - 1)]
    model = "tiny-llava" if media.clip is None else "tiny-qwen"
    said = list(studio.answer(model, media, question, None))[-1].text
    assert said == answers()[media.name, question], (media.name, question)
