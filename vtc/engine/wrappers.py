"""Objects that hold a model inside: PEFT's, torch.compile's, DataParallel's. Users wrap and ask through any of them."""

from __future__ import annotations

from typing import Any

from torch import nn


def look_through(model: nn.Module) -> tuple[nn.Module, tuple[nn.Module, ...]]:
    """(the model itself, what it is inside of, outermost first)."""
    around: list[nn.Module] = []
    while (inside := _inside(model)) is not None:
        around.append(model)
        model = inside
    return model, tuple(around)


def _inside(model: Any) -> nn.Module | None:
    """The module that `model` is a shell around, None if it is none."""
    own = getattr(model, "_modules", {})
    if "_orig_mod" in own:  # torch.compile's OptimizedModule
        return own["_orig_mod"]
    if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        return model.module
    if "_fsdp_wrapped_module" in own:
        return own["_fsdp_wrapped_module"]
    if "base_model" in own and hasattr(model, "get_base_model") and hasattr(model, "peft_config"):
        return model.get_base_model()
    return None
