"""Facts about families (adapters, one file each), vision towers and language models, and the small models that ship
with the package (`tiny/`).

Names are imported when they are asked for: `vtc.models.tiny` is of use without torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vtc.models.decoder import Decoder, decoder_for, register_decoder
    from vtc.models.family import Adapter, square_layout
    from vtc.models.registry import adapter_for, list_families, register_adapter
    from vtc.models.tower import Tower, register_tower, tower_for

_FROM = {
    "Adapter": "family",
    "Decoder": "decoder",
    "Tower": "tower",
    "adapter_for": "registry",
    "decoder_for": "decoder",
    "list_families": "registry",
    "register_adapter": "registry",
    "register_decoder": "decoder",
    "register_tower": "tower",
    "square_layout": "family",
    "tower_for": "tower",
}

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
    "square_layout",
    "tower_for",
]


def enter_those_that_ship() -> None:
    """Families, towers and language models are entered when their list is first needed, whoever needs it."""
    import_module(f"{__name__}.registry")


def enter_before(cls: type) -> None:
    """Enter those that ship before a user's class, which may stand in for one of them; before one that ships there is
    nothing to enter, and its module is still being imported."""
    if not cls.__module__.startswith(f"{__name__}."):
        enter_those_that_ship()


def __getattr__(name: str) -> Any:
    if name not in _FROM:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    enter_those_that_ship()
    return getattr(import_module(f"{__name__}.{_FROM[name]}"), name)
