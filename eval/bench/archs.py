"""Full-size architectures with random weights, and the same on a small scale for a CPU.

How fast a model is does not depend on what it has learned; how many tokens it reads and how wide it is do.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor

TEXT_BEFORE, TEXT_AFTER = 20, 44  # tokens around the picture, as in a chat prompt with a question
IMAGE, VIDEO, START, END, VOCAB = 31_000, 31_001, 31_002, 31_003, 32_064
WORDS = 30_000  # ids up to here are plain text


@dataclass(frozen=True)
class Arch:
    """A family's model: decoder and vision tower sizes, and the picture, or video of so many frames, it is shown."""

    family: str
    layers: int
    width: int
    heads: int
    mlp: int
    tower: dict[str, Any]
    kv_heads: int | None = None
    picture: tuple[int, int] = (336, 336)  # pixels, height and width
    frames: int = 0  # of a video; 0 = a picture


CLIP = dict(hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16)
SIGLIP = dict(hidden_size=1152, intermediate_size=4304, num_hidden_layers=26, num_attention_heads=16)
QWEN = dict(hidden_size=1280, intermediate_size=3420, depth=32, num_heads=16, fullatt_block_indexes=[7, 15, 23, 31])
SMALL_CLIP = dict(hidden_size=64, intermediate_size=128, num_hidden_layers=3, num_attention_heads=4)
SMALL_QWEN = dict(hidden_size=64, intermediate_size=128, depth=2, num_heads=4, fullatt_block_indexes=[1])

ARCHS = {
    "llava-1.5-7b": Arch("llava", 32, 4096, 32, 11_008, CLIP),
    "llava-1.5-13b": Arch("llava", 40, 5120, 40, 13_824, CLIP),
    "llava-next-7b": Arch("llava_next", 32, 4096, 32, 11_008, CLIP, picture=(672, 672)),
    "qwen2.5-vl-7b": Arch("qwen2_5_vl", 28, 3584, 28, 18_944, QWEN, kv_heads=4, picture=(1008, 1008)),
    "llava-onevision-7b": Arch("llava_onevision", 28, 3584, 28, 18_944, SIGLIP, kv_heads=4, picture=(768, 768)),
    # 196 tokens a frame: 64 frames, and 119, which make as many tokens as 32 frames of 729 that were not pooled
    "llava-onevision-0.5b-64": Arch("llava_onevision", 24, 896, 14, 4864, SIGLIP, 2, (384, 384), frames=64),
    "llava-onevision-0.5b-119": Arch("llava_onevision", 24, 896, 14, 4864, SIGLIP, 2, (384, 384), frames=119),
    "llava-onevision-7b-64": Arch("llava_onevision", 28, 3584, 28, 18_944, SIGLIP, 4, (384, 384), frames=64),
    "llava-onevision-7b-119": Arch("llava_onevision", 28, 3584, 28, 18_944, SIGLIP, 4, (384, 384), frames=119),
    "qwen2.5-vl-7b-video": Arch("qwen2_5_vl", 28, 3584, 28, 18_944, QWEN, kv_heads=4, picture=(448, 448), frames=128),
    "cpu-4x256": Arch("llava", 4, 256, 4, 688, SMALL_CLIP),
    "cpu-24x1024": Arch("llava", 24, 1024, 16, 2816, SMALL_CLIP),
    "cpu-kv": Arch("llava", 8, 512, 8, 1376, SMALL_CLIP, kv_heads=2),
    "cpu-next": Arch("llava_next", 8, 512, 8, 1376, SMALL_CLIP, picture=(672, 672)),
    "cpu-qwen2.5-vl": Arch("qwen2_5_vl", 8, 512, 8, 1376, SMALL_QWEN, kv_heads=2, picture=(1008, 1008)),
    "cpu-video": Arch("qwen2_5_vl", 8, 512, 8, 1376, SMALL_QWEN, kv_heads=2, picture=(224, 224), frames=64),
    # 6,144 tokens, as 32 frames of 192 would be: a cache that decode steps take a while to read
    "cpu-decode": Arch("qwen2_5_vl", 16, 512, 8, 1376, SMALL_QWEN, kv_heads=2, picture=(224, 224), frames=192),
}


def build(arch: Arch, device: torch.device, dtype: torch.dtype) -> Any:
    """The model, with random weights."""
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText

    torch.manual_seed(0)
    text: dict[str, Any] = dict(
        model_type={"llava": "llama", "llava_next": "llama", "llava_onevision": "qwen2"}.get(arch.family),
        hidden_size=arch.width,
        intermediate_size=arch.mlp,
        num_hidden_layers=arch.layers,
        num_attention_heads=arch.heads,
        num_key_value_heads=arch.kv_heads or arch.heads,
        vocab_size=VOCAB,
        max_position_embeddings=32_768,
        pad_token_id=0,
    )
    if arch.family == "qwen2_5_vl":
        size = arch.width // arch.heads // 2
        sections = [size // 4, (size - size // 4) // 2, size - size // 4 - (size - size // 4) // 2]
        rope = {"rope_type": "default", "type": "default", "mrope_section": sections, "rope_theta": 1e6}
        text |= dict(rope_parameters=rope, rope_scaling=rope)
        text.pop("model_type")
        config = AutoConfig.for_model(
            arch.family,
            text_config=text,
            vision_config={**arch.tower, "out_hidden_size": arch.width, "patch_size": 14, "window_size": 112},
            image_token_id=IMAGE,
            video_token_id=VIDEO,
            vision_start_token_id=START,
            vision_end_token_id=END,
        )
    else:
        side = {"llava_onevision": 384, "llava": arch.picture[0]}.get(arch.family, 336)
        tower = "siglip_vision_model" if arch.family == "llava_onevision" else "clip_vision_model"
        options: dict[str, Any] = {}
        if arch.family != "llava":
            options["image_grid_pinpoints"] = [[side * h, side * w] for h, w in ((1, 2), (2, 1), (2, 2))]
        if arch.family == "llava_onevision":
            options |= dict(video_token_index=VIDEO, vision_feature_select_strategy="full", vision_feature_layer=-1)
        config = AutoConfig.for_model(
            arch.family,
            text_config=text,
            vision_config={"model_type": tower, **arch.tower, "image_size": side, "patch_size": 14},
            image_token_index=IMAGE,
            **options,
        )
    with torch.device(device):
        torch.set_default_dtype(dtype)
        try:
            model = AutoModelForImageTextToText.from_config(config, dtype=dtype, attn_implementation="sdpa")
        finally:
            torch.set_default_dtype(torch.float32)
    return model.eval()


def sharpen(model: Any, factor: float = 3.0) -> None:
    """Make queries and keys of a language model so many times as long: with small random weights all tokens receive
    nearly the same attention."""
    import torch

    from vtc.models import adapter_for

    with torch.no_grad():
        for layer in adapter_for(model).language_model(model).layers:
            layer.self_attn.q_proj.weight.mul_(factor)
            layer.self_attn.k_proj.weight.mul_(factor)


def inputs(arch: Arch, model: Any, batch: int) -> dict[str, Tensor]:
    """A batch of prompts with one different random picture or video each."""
    import torch

    from vtc.models.family import GRIDS, PIXELS

    weight = next(model.parameters())
    height, width = arch.picture
    random = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random).to(weight.device, weight.dtype)

    kind, marker = ("video", VIDEO) if arch.frames else ("image", IMAGE)
    if arch.family == "qwen2_5_vl":
        grid = [max(1, arch.frames // 2), height // 14, width // 14]  # two frames make a patch
        vision = {PIXELS[kind]: noise(batch * math.prod(grid), 3 * 2 * 14 * 14)}
        vision[GRIDS[kind]] = torch.tensor([grid] * batch, device=weight.device)
    elif arch.frames:
        vision = {PIXELS[kind]: noise(batch, arch.frames, 3, height, width)}
    elif arch.family == "llava":
        vision = {"pixel_values": noise(batch, 3, height, width)}
    else:
        side = 384 if arch.family == "llava_onevision" else 336
        crops = 1 + (height // side) * (width // side)
        vision = {"pixel_values": noise(batch, crops, 3, side, side)}
        vision["image_sizes"] = torch.tensor([[height, width]] * batch, device=weight.device)
    with torch.inference_mode():
        features = getattr(model.model, f"get_{kind}_features")(**vision, return_dict=True).pooler_output
    tokens = features[0].shape[:-1].numel()
    words = torch.randint(10, WORDS, (TEXT_BEFORE + TEXT_AFTER,), generator=random).tolist()
    picture = [marker] * tokens
    if arch.family == "qwen2_5_vl":
        picture = [START, *picture, END]
    ids = torch.tensor([words[:TEXT_BEFORE] + picture + words[TEXT_BEFORE:]] * batch, device=weight.device)
    if arch.family == "qwen2_5_vl":
        vision["mm_token_type_ids"] = (ids == IMAGE).int() + 2 * (ids == VIDEO).int()
    return {"input_ids": ids, **vision}
