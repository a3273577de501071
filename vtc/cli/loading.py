"""How commands load a model: refused before torch is imported, where that can be, and without bars in a log file."""

from __future__ import annotations

import sys
from typing import Any

import vtc
from vtc.cli import arguments
from vtc.models import tiny


def load(name: str, device: str | None = None, dtype: str | None = None) -> tuple[Any, Any]:
    """`vtc.load`; its bars are not shown where nobody looks on.

    Raises:
        ValueError, FileNotFoundError: no such device or folder. Whatever `vtc.load` raises.
    """
    arguments.check_device(device)
    tiny.find(name)
    if not sys.stderr.isatty():
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()
    return vtc.load(name, device=device, dtype=dtype)
