"""Tiny random-weight models of every supported family, and batches for them, without processors or a hub."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForImageTextToText

from tests.listed import LISTED
from tests.tiny_parts import (
    BOS,
    CLIPS,
    END,
    GRIDS,
    IMAGE,
    MROPE,
    PAD,
    QWEN_VISION,
    START,
    TEXT,
    VIDEO,
    VISION,
    Family,
    noise,
)


def _llava(tower: str) -> Any:
    full = {"vision_feature_select_strategy": "full"} if tower == "siglip_vision_model" else {}
    vision = {"model_type": tower, **VISION, "projection_dim": 16}
    return AutoConfig.for_model(
        "llava", vision_config=vision, text_config={"model_type": "llama", **TEXT}, image_token_index=IMAGE, **full
    )


def _square(seeds: Sequence[int]) -> tuple[dict[str, Tensor], list[list[int]]]:
    if not seeds:
        return {}, []
    return {"pixel_values": torch.stack([noise(s, 3, 24, 24) for s in seeds])}, [[IMAGE] * 36 for _ in seeds]


PINPOINTS = [[24, 48], [48, 24], [48, 48], [72, 24], [24, 72], [72, 72]]
SIZES = [(40, 30), (24, 60), (70, 70), (64, 18)]  # heights and widths, one per seed in turn


def _next(family: str, tower: str) -> Any:
    extra: dict[str, Any] = {} if family == "llava_next" else {"video_token_index": VIDEO}
    if family == "llava_onevision":
        extra |= {"vision_feature_select_strategy": "full", "vision_feature_layer": -1}
        extra["vision_aspect_ratio"] = "anyres_max_2"
    vision = {"model_type": tower, **VISION, "projection_dim": 16}
    lm = "qwen2" if family == "llava_onevision" else "llama"
    return AutoConfig.for_model(
        family,
        vision_config=vision,
        text_config={"model_type": lm, **TEXT},
        image_token_index=IMAGE,
        image_grid_pinpoints=PINPOINTS,
        **extra,
    )


def _anyres(family: str) -> Callable[[Sequence[int]], tuple[dict[str, Tensor], list[list[int]]]]:
    def images(seeds: Sequence[int]) -> tuple[dict[str, Tensor], list[list[int]]]:
        from transformers.image_processing_utils import select_best_resolution

        if not seeds:
            return {}, []
        sizes = [SIZES[s % len(SIZES)] for s in seeds]
        crops = []
        for size in sizes:
            h, w = select_best_resolution(size, PINPOINTS)
            crops.append(1 + (h // 24) * (w // 24))
        pixels = torch.zeros(len(seeds), max(crops), 3, 24, 24)
        for i, (seed, n) in enumerate(zip(seeds, crops, strict=True)):
            pixels[i, :n] = noise(seed, n, 3, 24, 24)
        inputs = {"pixel_values": pixels, "image_sizes": torch.tensor(sizes)}
        return inputs, [[IMAGE] * _tokens(family, *each) for each in zip(sizes, crops, strict=True)]

    return images


@cache
def _tokens(family: str, size: tuple[int, int], crops: int) -> int:
    """How many a picture of that size has; the model says it, with the ends of rows and without what was padded."""
    inputs = {"pixel_values": torch.zeros(1, crops, 3, 24, 24), "image_sizes": torch.tensor([size])}
    with torch.no_grad():
        return len(model_of(family).model.get_image_features(**inputs, return_dict=True).pooler_output[0])


def _qwen(family: str) -> Any:
    text = {**TEXT, "rope_parameters": MROPE, "rope_scaling": MROPE}
    vision = dict(QWEN_VISION)
    if family == "qwen2_vl":
        vision |= {"embed_dim": 16, "hidden_size": 32, "mlp_ratio": 2}
    else:
        vision |= {"hidden_size": 16, "out_hidden_size": 32, "intermediate_size": 24}
    if family == "qwen2_5_vl":
        vision |= {"window_size": 16, "fullatt_block_indexes": [2]}
    if family == "qwen3_vl":
        vision |= {"deepstack_visual_indexes": [0, 1], "num_position_embeddings": 64}
        text |= {"head_dim": 8}
    return AutoConfig.for_model(
        family,
        vision_config=vision,
        text_config=text,
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        vision_start_token_id=START,
        vision_end_token_id=END,
    )


def _packed(seeds: Sequence[int]) -> tuple[dict[str, Tensor], list[list[int]]]:
    if not seeds:
        return {}, []
    grids = [GRIDS[s % len(GRIDS)] for s in seeds]
    pixels = torch.cat([noise(s, t * h * w, 3 * 2 * 4 * 4) for s, (t, h, w) in zip(seeds, grids, strict=True)])
    prompts = [[START, *[IMAGE] * (t * h * w // 4), END] for t, h, w in grids]
    return {"pixel_values": pixels, "image_grid_thw": torch.tensor(grids)}, prompts


def _frames(ends: int) -> Callable[[Sequence[int]], tuple[dict[str, Tensor], list[list[int]]]]:
    """Videos of four frames of 3 x 3 tokens after pooling, and so many tokens behind the last frame."""

    def videos(seeds: Sequence[int]) -> tuple[dict[str, Tensor], list[list[int]]]:
        pixels = torch.stack([noise(100 + s, 4, 3, 24, 24) for s in seeds])
        return {"pixel_values_videos": pixels}, [[VIDEO] * (4 * 9 + ends) for _ in seeds]

    return videos


def _clips(family: str) -> Callable[[Sequence[int]], tuple[dict[str, Tensor], list[list[int]]]]:
    def videos(seeds: Sequence[int]) -> tuple[dict[str, Tensor], list[list[int]]]:
        grids = [CLIPS[s % len(CLIPS)] for s in seeds]
        pixels = [noise(100 + s, t * h * w, 3 * 2 * 4 * 4) for s, (t, h, w) in zip(seeds, grids, strict=True)]
        inputs = {"pixel_values_videos": torch.cat(pixels), "video_grid_thw": torch.tensor(grids)}
        if family == "qwen2_5_vl":
            inputs["second_per_grid_ts"] = torch.tensor([0.5 + s for s in seeds])
        if family == "qwen3_vl":  # a timestamp before every frame
            prompts = [
                [x for i in range(t) for x in (40 + i, START, *[VIDEO] * (h * w // 4), END)] for t, h, w in grids
            ]
        else:
            prompts = [[START, *[VIDEO] * (t * h * w // 4), END] for t, h, w in grids]
        return inputs, prompts

    return videos


def _internvl() -> Any:
    vision = {"model_type": "internvl_vision", **VISION, "image_size": [24, 24], "patch_size": [4, 4]}
    return AutoConfig.for_model(
        "internvl",
        vision_config={**vision, "use_absolute_position_embeddings": True},
        text_config={"model_type": "qwen2", **TEXT},
        image_token_id=IMAGE,
        downsample_ratio=0.5,
    )


def _tiles(seeds: Sequence[int]) -> tuple[dict[str, Tensor], list[list[int]]]:
    if not seeds:
        return {}, []
    counts = [1 if s % 2 == 0 else 3 for s in seeds]  # tiles, the last one a thumbnail
    pixels = torch.cat([noise(s, n, 3, 24, 24) for s, n in zip(seeds, counts, strict=True)])
    return {"pixel_values": pixels}, [[START, *[IMAGE] * (9 * n), END] for n in counts]


FAMILIES: dict[str, Family] = {
    "llava": Family(lambda: _llava("clip_vision_model"), _square),
    "llava_siglip": Family(lambda: _llava("siglip_vision_model"), _square),
    "llava_next": Family(lambda: _next("llava_next", "clip_vision_model"), _anyres("llava_next")),
    "llava_next_video": Family(
        lambda: _next("llava_next_video", "clip_vision_model"), _anyres("llava_next_video"), _frames(0)
    ),
    "llava_onevision": Family(
        lambda: _next("llava_onevision", "siglip_vision_model"), _anyres("llava_onevision"), _frames(1)
    ),
    "qwen2_vl": Family(lambda: _qwen("qwen2_vl"), _packed, _clips("qwen2_vl"), typed=True),
    "qwen2_5_vl": Family(lambda: _qwen("qwen2_5_vl"), _packed, _clips("qwen2_5_vl"), typed=True),
    "qwen3_vl": Family(lambda: _qwen("qwen3_vl"), _packed, _clips("qwen3_vl"), typed=True),
    "internvl": Family(_internvl, _tiles),
}

#: these, whose facts are written out, and those that the default family carries
EVERY: dict[str, Family] = FAMILIES | LISTED


@cache
def model_of(family: str, attention: str = "sdpa") -> Any:
    """The family's tiny model, always with the same weights."""
    torch.manual_seed(0)
    given = {} if attention == "sdpa" else {"attn_implementation": attention}  # some towers have no other than eager
    model = AutoModelForImageTextToText.from_config(EVERY[family].config(), **given)
    for parameter in model.parameters():  # the default 0.02 makes all tokens look alike
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.25)
    for name, parameter in model.named_parameters():
        if name.endswith(("image_newline", "class_embedding", "cls_token")):
            torch.nn.init.normal_(parameter, std=0.5)
        if name.endswith(("gate", "gate_attn", "gate_ffn")) and parameter.shape == (1,):  # closed, Mllama sees nothing
            torch.nn.init.constant_(parameter, 0.8)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = PAD
    model.generation_config.suppress_tokens = [
        IMAGE,
        VIDEO,
    ]  # without a cache, transformers would look for their pictures
    return model.eval()


def batch(family: str, rows: Sequence[Sequence[int | str]], side: str = "left") -> dict[str, Tensor]:
    """Inputs of a batch, padded on `side`: per row image seeds and video seeds ("v0"); an empty row is text only."""
    seeds = [seed for row in rows for seed in row]
    vision, prompts = EVERY[family].images([seed for seed in seeds if isinstance(seed, int)])
    clips = [int(seed[1:]) for seed in seeds if isinstance(seed, str)]
    pictures, films = iter(prompts), iter(())
    videos = EVERY[family].videos
    if clips and videos is not None:
        moving, prompts = videos(clips)
        vision, films = vision | moving, iter(prompts)
    texts: list[list[int]] = []
    for r, row in enumerate(rows):
        ids = [BOS, 10 + r, 11]
        for i, seed in enumerate(row):
            ids += next(pictures if isinstance(seed, int) else films) + [20 + i] * (1 + r)
        texts.append([*ids, 30 + r, 31, 32 + len(row)])
    length = max(map(len, texts))
    ids = torch.full((len(rows), length), PAD)
    mask = torch.zeros(len(rows), length, dtype=torch.long)
    for r, text in enumerate(texts):
        where = slice(length - len(text), None) if side == "left" else slice(0, len(text))
        ids[r, where] = torch.tensor(text)
        mask[r, where] = 1
    inputs = {"input_ids": ids, "attention_mask": mask, **vision}
    made = EVERY[family]
    if made.typed:
        inputs["mm_token_type_ids"] = (ids == IMAGE).int() + 2 * (ids == VIDEO).int()
        if made.video == IMAGE and clips:  # transformers takes pictures or videos then, not both
            inputs["mm_token_type_ids"] *= 2
    if made.by_row and "pixel_values" in inputs:
        pixels = iter(inputs["pixel_values"])
        inputs["pixel_values"] = torch.zeros(len(rows), max(map(len, rows)), *inputs["pixel_values"].shape[1:])
        for r, row in enumerate(rows):
            for i in range(len(row)):
                inputs["pixel_values"][r, i] = next(pixels)
    if made.more is not None:
        inputs |= made.more(ids)
    if made.arranged is not None:
        inputs = made.arranged(inputs, ids, [[seed for seed in row if isinstance(seed, int)] for row in rows])
    return inputs
