"""A listed family's tiny model and its processor in a folder, as `vtc ask --model` takes one."""

from __future__ import annotations

from pathlib import Path

from tests.families import model_of
from tests.processors import processor_of


def save(folder: Path, family: str) -> Path:
    """Write model and processor into `folder`."""
    model_of(family).save_pretrained(folder)
    processor_of(family).save_pretrained(folder)
    return folder
