"""Adapters, one file per model family, and the small models that ship with the package (`tiny/`)."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

    from vtc.models.family import Adapter

_REGISTERED: dict[str, Adapter] = {}  # by a user


def register_adapter(cls: type[Adapter]) -> type[Adapter]:
    """Make a family known; usable as a class decorator in a user's own file."""
    for model_type in cls.model_types:
        _REGISTERED[model_type] = cls()
    return cls


@cache
def _shipped() -> dict[str, Adapter]:
    """The adapters of this package; they import torch, which `vtc.models.tiny` does without."""
    from vtc.models.internvl import InternVLAdapter
    from vtc.models.llava import LlavaAdapter
    from vtc.models.llava_next import LlavaNextAdapter, LlavaNextVideoAdapter, LlavaOnevisionAdapter
    from vtc.models.qwen_vl import Qwen25VLAdapter, QwenVLAdapter

    own = (
        LlavaAdapter,
        LlavaNextAdapter,
        LlavaOnevisionAdapter,
        LlavaNextVideoAdapter,
        QwenVLAdapter,
        Qwen25VLAdapter,
        InternVLAdapter,
    )
    return {model_type: cls() for cls in own for model_type in cls.model_types}


def _adapters() -> dict[str, Adapter]:
    return {**_shipped(), **_REGISTERED}


def list_families() -> list[str]:
    """Model types (`config.model_type`) that have an adapter."""
    return sorted(_adapters())


def adapter_for(model: nn.Module) -> Adapter:
    """The adapter of a model; ValueError with the supported families if there is none."""
    config = getattr(model, "config", None)
    model_type = getattr(config, "model_type", None)
    adapter = _adapters().get(model_type) if isinstance(model_type, str) else None
    if adapter is None:
        known = f"Supported: {', '.join(list_families())}."
        if model_type is not None and not hasattr(config, "vision_config"):
            raise ValueError(
                f"{type(model).__name__} ({model_type!r}) is a text-only model: it has no visual tokens. {known}"
            )
        raise ValueError(
            f"{type(model).__name__} (model type {model_type!r}) has no adapter. {known} "
            'To add a family, see "How to add a model family" in the README.'
        )
    if not type(model).__name__.endswith("ForConditionalGeneration"):
        raise ValueError(
            f"wrap the whole model (a ...ForConditionalGeneration), not a part of it ({type(model).__name__})."
        )
    adapter.check(model)
    kinds = set(_layer_types(adapter.language_model(model).config))
    if "sliding_attention" in kinds:
        raise ValueError(
            f"the language model of this {model_type} attends within a sliding window, which is not supported: its "
            "KV cache drops tokens by itself."
        )
    if kinds - {"full_attention"}:
        found = ", ".join(sorted(kinds - {"full_attention"}))
        raise ValueError(
            f"the language model of this {model_type} has layers of the kind {found}, which is not supported: "
            "their state cannot leave tokens out."
        )
    return adapter


def _layer_types(config: Any) -> list[str]:
    """Kinds of attention of a language model's layers, as transformers builds its cache from them."""
    if getattr(config, "layer_types", None):
        return list(config.layer_types)
    return ["sliding_attention"] if getattr(config, "sliding_window", None) else []
