"""Which patches a run of the vision tower is about, where some have left before its first block.

The stage that drops them opens a frame while the tower runs; what measures inside the tower looks here.
"""

from __future__ import annotations

from torch import Tensor

from vtc.engine import context

_PATCHES = object()


def open_patches(kept: Tensor) -> None:
    """From now on the tower's blocks see some patches alone; `kept` is a BoolTensor in main memory, as
    `Tower.tokens_from_patches` takes it."""
    context.push(_PATCHES, kept)


def close_patches() -> None:
    context.pop(_PATCHES)


def patches_there() -> Tensor | None:
    """What the running tower's blocks see, None = everything."""
    return context.top(_PATCHES)
