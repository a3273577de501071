"""The notebooks run, and show what they show in the repository."""

from __future__ import annotations

import re

import pytest

from tests.notebooks.execute import FOLDER, ROOT, cleaned, execute, notebooks, read, said

NAMES = ["first-steps", "new-method", "speed-and-memory"]


def test_there_are_three_and_they_are_light():
    assert [path.stem for path in notebooks()] == NAMES
    assert sum(path.stat().st_size for path in notebooks()) <= 300 * 1024


@pytest.mark.parametrize("name", NAMES)
def test_it_is_stored_as_it_was_written(name):
    """With outputs, and nothing of the machine they come from."""
    path = FOLDER / f"{name}.ipynb"
    notebook = read(path)
    assert cleaned(read(path)) == notebook
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"/(home|root|tmp|work|Users)/|Traceback|Warning", text)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.source.strip() for cell in notebook.cells)
    assert sum(bool(said(cell)) for cell in code) >= len(code) / 2
    assert all(cell.metadata.get("tags", ["measured"]) == ["measured"] for cell in code)
    for target in re.findall(r"\]\(([^)#:]+)\)", "\n".join(cell.source for cell in notebook.cells)):
        assert (FOLDER / target).exists(), target


@pytest.mark.parametrize("name", NAMES)
def test_it_shows_what_it_shows(name):
    """`python -m tests.notebooks.execute` writes it anew."""
    path = FOLDER / f"{name}.ipynb"
    for stored, run in zip(read(path).cells, execute(path, turns=2).cells, strict=True):
        if "measured" in stored.metadata.get("tags", []):
            assert len(said(stored)) == len(said(run))
        else:
            assert said(stored) == said(run), stored.source


def test_formats_of_a_picture():
    from tests.notebooks.execute import keep_smallest

    data = {"text/plain": "x" * 9, "image/png": "x" * 5, "image/jpeg": "x" * 3}
    keep_smallest(data)
    assert data == {"text/plain": "x" * 9, "image/jpeg": "x" * 3}
    assert ROOT in FOLDER.parents
