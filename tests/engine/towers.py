"""Small random vision towers of every kind that can be compressed inside, and pictures for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

PATCHES = 16  # of each: 16 x 16 pixels, patches of 4


def _timm(name: str, **more: Any) -> Any:
    import timm

    sizes: dict[str, Any] = dict(img_size=16, patch_size=4, embed_dim=24, depth=4, num_heads=2, num_classes=5)
    return timm.create_model(name, **{**sizes, **more})


def _clip() -> Any:
    from transformers import CLIPVisionConfig, CLIPVisionModel

    return CLIPVisionModel(CLIPVisionConfig(**SIZES, image_size=16, patch_size=4))


def _siglip() -> Any:
    from transformers import SiglipVisionConfig, SiglipVisionModel

    return SiglipVisionModel(SiglipVisionConfig(**SIZES, image_size=16, patch_size=4))


def _auto(model_type: str, **more: Any) -> Any:
    from transformers import AutoConfig, AutoModel

    return AutoModel.from_config(
        AutoConfig.for_model(model_type, **{**SIZES, "image_size": 16, "patch_size": 4} | more)
    )


def _open_clip(**more: Any) -> Any:
    from open_clip.transformer import VisionTransformer

    sizes: dict[str, Any] = dict(image_size=16, patch_size=4, width=24, layers=4, heads=2, mlp_ratio=2, output_dim=8)
    return VisionTransformer(**{**sizes, **more})


def _eva(**more: Any) -> Any:
    from timm.models.eva import Eva

    sizes: dict[str, Any] = dict(img_size=16, patch_size=4, embed_dim=24, depth=4, num_heads=2, num_classes=5)
    return Eva(**{**sizes, **more})


SIZES: dict[str, Any] = dict(hidden_size=24, intermediate_size=48, num_hidden_layers=4, num_attention_heads=2)

TOWERS: dict[str, Callable[[], Any]] = {
    "clip": _clip,
    "siglip": _siglip,
    "dinov2": lambda: _auto("dinov2", mlp_ratio=2),
    "dinov2-registers": lambda: _auto("dinov2_with_registers", mlp_ratio=2, num_register_tokens=3),
    "dinov3": lambda: _auto("dinov3_vit", num_register_tokens=2),
    "internvit": lambda: _auto("internvl_vision", image_size=[16, 16], patch_size=[4, 4], use_qk_norm=True),
    "open-clip": _open_clip,
    "open-clip-norms": lambda: _open_clip(qk_norm=True, scale_attn=True, ls_init_value=0.3),
    "eva": lambda: _eva(qkv_fused=False, swiglu_mlp=True, scale_mlp=True),
    "eva-rotary": lambda: _eva(use_abs_pos_emb=False, use_rot_pos_emb=True, num_reg_tokens=2, qk_norm=True),
    "eva-mixed": lambda: _eva(use_rot_pos_emb=True, rope_type="mixed", attn_type="rope", init_values=0.2),
    "eva-post-norm": lambda: _eva(use_post_norm=True),
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
        if hasattr(model, "transformer") and hasattr(model, "_embeds"):  # open_clip's
            return model.transformer(model._embeds(pixels))
        return model(pixels).last_hidden_state
