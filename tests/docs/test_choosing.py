"""The page that helps to choose has a row for every method."""

from __future__ import annotations

import re
from pathlib import Path

from vtc.methods.base import index

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "choosing.md").read_text(encoding="utf-8")


def test_it_has_a_row_for_each_method():
    rows = re.findall(r"^\| \[?`([a-z0-9-]+)`", PAGE, re.M)
    assert sorted(rows) == sorted(index.shipped())


def test_its_papers_are_those_of_the_methods():
    rows = dict(re.findall(r"^\| \[?`([a-z0-9-]+)`.*\(https://arxiv.org/abs/([0-9.]+)\)", PAGE, re.M))
    papers = {name: info.paper.arxiv for name, info in index.shipped().items() if info.paper is not None}
    assert rows == {name: arxiv for name, arxiv in papers.items() if arxiv} | {"downsample": rows["downsample"]}
