"""Small random vision towers of every kind that can be compressed inside, and pictures for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

PATCHES = 16  # of each: 16 x 16 pixels, patches of 4


def _timm(name: str, **more: Any) -> Any:
    import timm

    sizes = dict(img_size=16, patch_size=4, embed_dim=24, depth=4, num_heads=2, num_classes=5)
    return timm.create_model(name, **{**sizes, **more})


def _clip(**more: Any) -> Any:
    from transformers import CLIPVisionConfig, CLIPVisionModel

    sizes = dict(hidden_size=24, intermediate_size=48, num_hidden_layers=4, num_attention_heads=2)
    return CLIPVisionModel(CLIPVisionConfig(**sizes, image_size=16, patch_size=4, **more))


TOWERS: dict[str, Callable[[], Any]] = {
    "clip": _clip,
    "timm": lambda: _timm("vit_tiny_patch16_224"),
    "timm-registers": lambda: _timm("vit_tiny_patch16_224", reg_tokens=3, class_token=True, qk_norm=True),
    "timm-average": lambda: _timm("vit_tiny_patch16_224", class_token=False, global_pool="avg", init_values=0.1),
    "timm-distilled": lambda: _timm("deit_tiny_distilled_patch16_224"),
}


def tower(name: str, seed: int = 0) -> Any:
    """A tower with weights large enough that attention is not flat, in eval mode."""
    torch.manual_seed(seed)
    model = TOWERS[name]().eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            wide = 0.5 if parameter.dim() > 1 else 0.2
            parameter.add_(torch.randn(parameter.shape, generator=generator) * wide)
    return model


def pictures(count: int = 2, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


def run(model: Any, pixels: Tensor) -> Tensor:
    """What the tower hands over: [B, N, D], its prefix included."""
    with torch.no_grad():
        if hasattr(model, "forward_features"):
            return model.forward_features(pixels)
        out = model(pixels)
        return out if isinstance(out, Tensor) else out.last_hidden_state
