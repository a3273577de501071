"""Real processors of the families of `tests.listed_sliding`, as `tests.listed_processors` makes the others'."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import transformers as hf

from tests.listed_processors import Chat, tokenizer_of
from tests.tiny_parts import END, IMAGE, START, VIDEO

GEMMA = {"image_token": "<image_soft_token>", "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>"}
SOUND = {"audio_token": "<audio_soft_token>", "boa_token": "<start_of_audio>", "eoa_token": "<end_of_audio>"}
SIDE = {"height": 32, "width": 32}
TURNS = ("<start_of_turn>user\n", "<start_of_turn>model\n")


def _gemma(**more: str) -> Any:
    special = dict(zip(GEMMA.values(), (IMAGE, START, END), strict=True))
    special |= {name: 90 + i for i, name in enumerate(more.values())}
    return tokenizer_of(special, GEMMA | more)


def _gemma3() -> Any:
    return hf.Gemma3Processor(
        hf.Gemma3ImageProcessor(size=SIDE),
        _gemma(),
        image_seq_length=16,
        chat_template=Chat(*TURNS, "<start_of_image>", "<end_of_turn>\n").template,
    )


def _gemma3n() -> Any:
    return hf.Gemma3nProcessor(
        hf.Gemma3nAudioFeatureExtractor(),
        hf.SiglipImageProcessor(size={"height": 128, "width": 128}),
        _gemma(**SOUND),
        image_seq_length=16,
        chat_template=Chat(*TURNS, "<image_soft_token>", "<end_of_turn>\n").template,
    )


def _gemma4() -> Any:
    names = {"image_token": "<|image|>", "boi_token": "<|image>", "eoi_token": "<image|>"}
    sound = {"audio_token": "<|audio|>", "boa_token": "<|audio>", "eoa_token": "<audio|>"}
    special = {**dict(zip(names.values(), (IMAGE, START, END), strict=True)), "<|video|>": VIDEO}
    sizes: Any = dict(patch_size=4, pooling_kernel_size=2, max_soft_tokens=70)
    return hf.Gemma4Processor(
        hf.Gemma4AudioFeatureExtractor(),
        hf.Gemma4ImageProcessor(**sizes),
        tokenizer_of(special | {name: 90 + i for i, name in enumerate(sound.values())}, names | sound),
        hf.Gemma4VideoProcessor(**sizes),
        chat_template=Chat("<|turn>user\n", "<|turn>model\n", "<|image|>", "<turn|>\n", "<|video|>").template,
    )


def _paligemma() -> Any:
    images: Any = hf.SiglipImageProcessor(size=SIDE)
    images.image_seq_length = 64
    return hf.PaliGemmaProcessor(
        images,
        tokenizer_of({"<image>": IMAGE}, {"image_token": "<image>"}, bos_token="<s>"),
        chat_template=Chat("", "", "<image>").template,
    )


def _aya() -> Any:
    names = {"<|IMG_PATCH|>": IMAGE, "<|START_OF_IMG|>": START, "<|END_OF_IMG|>": END, "<image>": 90}
    return hf.AyaVisionProcessor(
        hf.GotOcr2ImageProcessor(size=SIDE, crop_to_patches=True, min_patches=1, max_patches=4),
        tokenizer_of(names),
        patch_size=4,
        img_size=32,
        downsample_factor=2,
        chat_template=Chat("USER ", "CHATBOT ", "<image>").template,
    )


def _cohere() -> Any:
    names = {"image_token": "<|IMG_PATCH|>", "boi_token": "<|START_OF_IMG|>", "eoi_token": "<|END_OF_IMG|>"}
    names |= {"img_line_break_token": "<|IMG_LINE_BREAK|>"}
    sizes: Any = dict(size=SIDE, patch_size=4, min_patches=1, max_patches=4)
    return hf.Cohere2VisionProcessor(
        hf.Cohere2VisionImageProcessor(**sizes),
        tokenizer_of(dict(zip(names.values(), (IMAGE, START, END, 90), strict=True)), names),
        chat_template=Chat("USER ", "CHATBOT ", "<|IMG_PATCH|>").template,
    )


SLIDING_PROCESSORS: dict[str, Callable[[], Any]] = {
    "gemma3": _gemma3,
    "gemma3n": _gemma3n,
    "gemma4": _gemma4,
    "paligemma": _paligemma,
    "aya_vision": _aya,
    "cohere2_vision": _cohere,
}
