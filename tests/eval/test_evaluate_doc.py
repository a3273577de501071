"""The forms of sets that docs/evaluate.md shows are read, and hold the same."""

import re
from pathlib import Path

import pytest
from PIL import Image

from vtc.eval import datasets
from vtc.eval.settings import FEW, KEEPS, Settings

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "evaluate.md").read_text(encoding="utf-8")
SETS = dict(re.findall(r"`(\w+\.(?:jsonl?|csv|tsv))`[^`]*(?:`[^`\n]+`[^`]*)*?\n\n```\w+\n(.*?)```", TEXT, re.DOTALL))


@pytest.mark.parametrize("name", SETS)
def test_sets(tmp_path, name):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    (tmp_path / name).write_text(SETS[name], encoding="utf-8")
    data = datasets.load(tmp_path / name)
    assert [(q.question, q.answers) for q in data.questions] == [
        ("What color is the star?", ("red",)),
        ("Which shape is it?", ("star",)),
    ]
    if name != "llava.json":
        assert [(q.task, q.choices) for q in data.questions] == [("color", ()), ("all", ("heart", "star"))]


def test_all_forms_are_shown():
    assert set(SETS) == {"lines.jsonl", "array.json", "comma.csv", "semicolon.csv", "llava.json"}


def test_what_is_said_of_the_defaults():
    specs = Settings().specs(["image"])
    methods = [name for name in FEW if name in {spec.method for spec in specs}]
    listed = " and ".join([", ".join(f"`{name}`" for name in methods[:-1]), f"`{methods[-1]}`"])
    assert listed in " ".join(TEXT.split())
    assert KEEPS == (0.5, 0.1)
