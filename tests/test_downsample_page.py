"""docs/downsample.md does what it says: its examples run, one after another, and both doors answer alike."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def test_the_examples_run(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    page = (ROOT / "docs" / "downsample.md").read_text(encoding="utf-8")
    names: dict[str, Any] = {}
    for code in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(compile(code, "docs/downsample.md", "exec"), names)
    said = [
        names["processor"].batch_decode(names[out][:, -8:], skip_special_tokens=True)[0].split()[-1]
        for out in ("out", "again")
    ]
    assert said[0] == said[1]
    shown = capsys.readouterr().out
    assert "64 of 441 tokens, for a budget of 64" in shown
    assert "visual tokens 441 → 64" in shown
