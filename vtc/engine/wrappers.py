"""Objects that hold a model inside: PEFT's, torch.compile's, DataParallel's. Users wrap and ask through any of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle


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


def hooked_modules(model: nn.Module, handles: Sequence[RemovableHandle]) -> dict[str, nn.Module]:
    """The modules inside `model`, by name, that the hooks of `handles` are on."""
    ours = {id(handle.hooks_dict_ref()) for handle in handles}
    return {
        name: module
        for name, module in model.named_modules()
        if id(module._forward_hooks) in ours or id(module._forward_pre_hooks) in ours
    }


def check_in_place(model: nn.Module, hooked: Mapping[str, nn.Module]) -> None:
    """Raise ValueError if one of these modules is no longer where it was: what stands there now, no hook hears.

    PEFT puts its own modules in the place of those that it adapts, and takes them out again when it merges.
    """
    for name, module in hooked.items():
        there: Any = model
        for step in filter(None, name.split(".")):
            there = there._modules.get(step) or getattr(there, step, None)
        if there is not module and (there is None or look_through(there)[0] is not module):
            raise ValueError(
                f"{name} has been replaced since vtc.wrap (adapters put in, or taken out?), so that vtc cannot hear "
                "it: call vtc.wrap again."
            )
