"""docs/pixels.md does what it says: its examples run, one after another."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import vtc

ROOT = Path(__file__).resolve().parents[1]


def test_its_examples_run(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    page = (ROOT / "docs" / "pixels.md").read_text(encoding="utf-8")
    names: dict[str, Any] = {}
    for code in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(compile(code, "docs/pixels.md", "exec"), names)
    shown = capsys.readouterr().out
    assert "visual tokens 441 → 110" in shown
    assert "tower FLOPs" in shown
    assert [stage.name for stage in vtc.report(names["model"]).stages] == ["downsample", "pixelprune", "vtc-cls"]
