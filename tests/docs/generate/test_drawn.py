"""The pictures of "How it works" are drawn by a command, small, and show what the library computes."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from docs.generate import pictures
from vtc.methods.fastv import FastV
from vtc.methods.pyramiddrop import PyramidDrop
from vtc.stages import stage_names


def test_what_is_committed():
    files = {file.stem: file for file in pictures.FOLDER.glob("*.png")}
    assert set(files) == {name + look for name in pictures.PICTURES for look in pictures.LOOKS}
    assert sum(file.stat().st_size for file in files.values()) < 800_000
    for file in files.values():
        with Image.open(file) as drawn:
            alpha = np.asarray(drawn.convert("RGBA"))[..., 3]
            assert drawn.width >= 1600
        assert alpha[0, 0] == 0  # round corners
        assert alpha[8, 400:-400].min() > 250


@pytest.mark.parametrize("look", pictures.LOOKS)
@pytest.mark.parametrize("name", ["stages", "selection", "schedule", "keep"])
def test_they_are_drawn_as_they_are_committed(name, look):
    """Up to what another version of matplotlib does to letters."""
    drawn = pictures.draw(name, look)
    with Image.open(pictures.FOLDER / f"{name}{look}.png") as stored:
        assert stored.size == drawn.size
        small = [one.convert("RGBA").resize((130, 50)).tobytes() for one in (drawn, stored)]
    assert sum(abs(a - b) for a, b in zip(*small, strict=True)) / len(small[0]) < 2


def test_the_schedules_by_hand():
    assert pictures._seen(FastV(keep=0.25), 32, 576) == [576] * 2 + [144] * 30
    staged = pictures._seen(PyramidDrop(keep=0.25), 32, 576)
    assert (staged[:8], staged[24:]) == ([576] * 8, [144] * 8)
    assert sorted(staged, reverse=True) == staged
    average = pictures._seen(PyramidDrop(keep=288, average=True), 32, 576)
    assert sum(average) / 32 == pytest.approx(288, abs=1)


def luminance(color: str) -> float:
    """Relative luminance of "#rrggbb" as WCAG 2.2 defines it."""
    found = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in found)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("colors", pictures.LOOKS.values(), ids=["light", "dark"])
def test_every_stage_has_a_colour_that_can_be_read(colors):
    assert len(colors.hues) >= len(stage_names())
    for color in (colors.ink, colors.soft, *colors.hues):
        low, high = sorted(luminance(one) for one in (color, colors.card))
        assert (high + 0.05) / (low + 0.05) > (4.5 if color in (colors.ink, colors.soft) else 3), color


def test_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(pictures, "FOLDER", tmp_path / "new")
    assert pictures.main(["keep"]) == 0
    said = capsys.readouterr().out
    for name in ("keep.png", "keep-dark.png"):
        assert name in said
        assert (tmp_path / "new" / name).stat().st_size < 40_000
    assert pictures.main(["none"]) == 2
    assert "there are stages, selection" in capsys.readouterr().err
