"""Families (adapters, one file each), vision towers and decoders, and the small models that ship (`tiny/`).

The names below come from `registry.py`, which imports torch, when they are first used: `vtc.models.tiny` needs neither.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vtc.models.registry import (
        Adapter,
        Decoder,
        Tower,
        adapter_for,
        decoder_for,
        list_families,
        register_adapter,
        register_decoder,
        register_tower,
        tower_for,
    )

__all__ = [
    "Adapter",
    "Decoder",
    "Tower",
    "adapter_for",
    "decoder_for",
    "list_families",
    "register_adapter",
    "register_decoder",
    "register_tower",
    "tower_for",
]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(import_module(f"{__name__}.registry"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
