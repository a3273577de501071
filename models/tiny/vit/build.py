"""tiny-vit as a timm model: what it is made of, and its folder, which timm loads by itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import nn

ARCHITECTURE = "vit_tiny_patch16_224"  # a plain `timm.models.vision_transformer.VisionTransformer`
SIDE = 56  # pixels
PATCH, COARSE = 4, 8  # pixels: 14 × 14 patches, and 7 × 7 at first
WIDTH = 96
MEAN, STD = 0.286, 0.353  # of the pixels of Fashion-MNIST's train split, in [0, 1]


def arguments(patch: int = PATCH) -> dict[str, Any]:
    """What `timm.create_model` is told: 0.48 M parameters, any square picture whose side is a multiple of `patch`."""
    return {
        "img_size": SIDE,
        "patch_size": patch,
        "embed_dim": WIDTH,
        "depth": 6,
        "num_heads": 3,
        "mlp_ratio": 2,
        "dynamic_img_size": True,
    }


def model(classes: int, patch: int = PATCH) -> VisionTransformer:
    """A new one with random weights."""
    made = timm.create_model(ARCHITECTURE, num_classes=classes, **arguments(patch))
    assert isinstance(made, VisionTransformer)
    return made


def refined(coarse: VisionTransformer, classes: int) -> VisionTransformer:
    """The same network with patches of half the side: patch embedding and positions resampled, as timm does it."""
    fine = model(classes)
    fine.load_state_dict(checkpoint_filter_fn(coarse.state_dict(), fine))
    return fine


def save(trained: nn.Module, folder: Path, names: list[str]) -> None:
    """Weights in float16 and the config.json that `timm.create_model("local-dir:...", pretrained=True)` reads."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: value.detach().to(torch.float16).contiguous() for name, value in trained.state_dict().items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = {
        "architecture": ARCHITECTURE,
        "num_classes": len(names),
        "model_args": arguments(),
        "pretrained_cfg": {
            "tag": "tiny-vit",
            "input_size": [3, SIDE, SIDE],
            "fixed_input_size": False,
            "interpolation": "bilinear",
            "crop_pct": 1.0,
            "mean": [MEAN] * 3,
            "std": [STD] * 3,
            "num_classes": len(names),
            "label_names": names,
            "license": "apache-2.0",
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        },
    }
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
