"""Which families, towers and language models are known, and which family a model is of."""

from __future__ import annotations

from torch import nn

from vtc.models import text_models as text_models
from vtc.models.cross import CROSS
from vtc.models.decoder import APART, SEEING, decoder_for
from vtc.models.default import AutoAdapter
from vtc.models.family import Adapter
from vtc.models.hybrid import HYBRID
from vtc.models.internvl import InternVLAdapter
from vtc.models.listed import LISTED
from vtc.models.listed_late import LISTED_LATE
from vtc.models.listed_more import LISTED_MORE
from vtc.models.llava import LlavaAdapter
from vtc.models.llava_next import LlavaNextAdapter, LlavaNextVideoAdapter, LlavaOnevisionAdapter
from vtc.models.qwen_vl import Qwen3VLAdapter, QwenVLAdapter
from vtc.models.sliding import SLIDING
from vtc.models.tower import (
    CLIPTower,
    InternVLTower,
    JanusTower,
    QianfanOcrTower,
    Siglip2Tower,
    SiglipTower,
    find_tower,
    no_patches,
    register_tower,
)
from vtc.models.tower_dino import Dino3Tower, DinoTower, PixtralTower
from vtc.models.tower_listed import TOWERS_LISTED
from vtc.models.tower_open_clip import OpenClipTower
from vtc.models.tower_qwen import Qwen3Tower, Qwen25Tower, QwenTower
from vtc.models.tower_timm import EvaTower, FastVitTower, TimmTower, WrappedTower
from vtc.models.unsupported import why_unsupported

_ADAPTERS: dict[str, Adapter] = {}


def register_adapter(cls: type[Adapter]) -> type[Adapter]:
    """Make a family known; usable as a class decorator in a user's own file."""
    for model_type in cls.model_types:
        _ADAPTERS[model_type] = cls()
    return cls


for _family in (
    LlavaAdapter,
    LlavaNextAdapter,
    LlavaOnevisionAdapter,
    LlavaNextVideoAdapter,
    QwenVLAdapter,
    Qwen3VLAdapter,
    InternVLAdapter,
    *LISTED,
    *HYBRID,
    *SLIDING,
    *LISTED_MORE,
    *LISTED_LATE,
    *CROSS,
):
    register_adapter(_family)

for _tower in (
    CLIPTower,
    SiglipTower,
    Siglip2Tower,
    JanusTower,
    InternVLTower,
    QianfanOcrTower,
    DinoTower,
    Dino3Tower,
    PixtralTower,
    QwenTower,
    Qwen25Tower,
    Qwen3Tower,
    TimmTower,
    EvaTower,
    FastVitTower,
    WrappedTower,
    OpenClipTower,
    *TOWERS_LISTED,
):
    register_tower(_tower)


def list_families() -> list[str]:
    """Model types (`config.model_type`) that have an adapter."""
    return sorted(_ADAPTERS)


def adapter_of(model_type: str) -> Adapter:
    """The adapter of a model type of `list_families()`."""
    return _ADAPTERS[model_type]


def is_alone(model: nn.Module) -> bool:
    """Whether a model is to be taken for a vision tower, or one with something around it that generates no text."""
    model_type = getattr(getattr(model, "config", None), "model_type", None)
    if model_type in _ADAPTERS or hasattr(model, "generate"):
        return False
    if no_patches(model):  # which is then said
        return True
    try:
        find_tower(model)
    except ValueError:
        return False
    return True


def adapter_for(model: nn.Module, family: str | None = None) -> Adapter:
    """The adapter of a model; ValueError that says why if there is none.

    Args:
        family: None = that of its model type; "auto" = the default one, for a model of no listed family.
    """
    model_type = getattr(getattr(model, "config", None), "model_type", None)
    if family not in (None, "auto"):
        raise ValueError(f'family={family!r} is none: leave it out, or give "auto" for a model of no listed family.')
    if model_type not in _ADAPTERS and family is None:
        raise ValueError(f"{why_unsupported(model)} `vtc families` lists those that are supported.")
    if model_type in _ADAPTERS and not type(model).__name__.endswith(whole := adapter_of(model_type).whole):
        raise ValueError(f"wrap the whole model (a ...{whole}), not a part of it ({type(model).__name__}).")
    adapter = adapter_of(model_type).of(model) if model_type in _ADAPTERS else AutoAdapter(model)
    adapter.check(model)
    lm = adapter.language_model(model)
    kinds = set(decoder_for(lm).kinds(lm.config))
    if unknown := kinds - SEEING - APART:
        raise ValueError(
            f"the language model of this {model_type} has layers of the kind {', '.join(sorted(unknown))}, which is "
            "not supported: their state cannot leave tokens out."
        )
    if not kinds & SEEING:
        raise ValueError(
            f"the language model of this {model_type} has no attention in any layer, which is not supported: its "
            "cache does not know how long a conversation is."
        )
    return adapter
