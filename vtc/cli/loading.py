"""How commands load a model: refused before torch is imported, where that can be, and without bars in a log file."""

from __future__ import annotations

import sys
from typing import Any

import vtc
from vtc.cli import arguments
from vtc.models import tiny


def check(name: str, device: str | None = None) -> None:
    """Refuse a model or a device that cannot be had, as far as can be told without loading it.

    Raises:
        FileNotFoundError, ValueError: with one sentence.
    """
    tiny.find(name)
    arguments.check_device(device)


def load(name: str, device: str | None = None, dtype: str | None = None) -> tuple[Any, Any]:
    """`vtc.load`; its bars are not shown where nobody looks on.

    Raises:
        FileNotFoundError, ValueError: as `check`. Whatever `vtc.load` raises.
    """
    check(name, device)
    if not sys.stderr.isatty():
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()
    return vtc.load(name, device=device, dtype=dtype)
