"""Real processors of the families of `tests.listed_sliding`, `tests.listed_hybrid` and `tests.listed_cross`, and of one
more."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import transformers as hf

from tests.listed_processor_parts import PACKED, TILE, Chat, tokenizer_of
from tests.tiny_parts import END, IMAGE, START, VIDEO

#: the last turns and the word before an answer of Gemma's chats
GEMMA = ("<start_of_turn>user\n", "<start_of_turn>model\n")


def _gemma3() -> Any:
    names = {"image_token": "<image_soft_token>", "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>"}
    return hf.Gemma3Processor(
        hf.Gemma3ImageProcessor(size=TILE),
        tokenizer_of(dict(zip(names.values(), (IMAGE, START, END), strict=True)), names),
        image_seq_length=16,
        chat_template=Chat(*GEMMA, "<start_of_image>", "<end_of_turn>\n").template,
    )


def _paligemma() -> Any:
    pictures: Any = hf.SiglipImageProcessor(size=TILE)
    pictures.image_seq_length = 64
    return hf.PaliGemmaProcessor(
        pictures, tokenizer_of({"<image>": IMAGE}, {"image_token": "<image>"}, bos_token="<s>", eos_token="</s>")
    )


def _aya() -> Any:
    brackets = {"<|START_OF_IMG|>": START, "<|END_OF_IMG|>": END, "TILE": 6, "TILE_GLOBAL": 7, "<image>": 8}
    return hf.AyaVisionProcessor(
        hf.GotOcr2ImageProcessor(size=TILE, crop_to_patches=True, max_patches=4),
        tokenizer_of({"<|IMG_PATCH|>": IMAGE, **brackets}),
        patch_size=4,
        img_size=32,
        downsample_factor=2,
        chat_template=Chat("<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>", "<image>", "<|END_OF_TURN_TOKEN|>").template,
    )


def _cohere2() -> Any:
    names = {"image_token": "<|IMG_PATCH|>", "boi_token": "<|START_OF_IMG|>", "eoi_token": "<|END_OF_IMG|>"}
    names |= {"img_line_break_token": "<|IMG_LINE_BREAK|>"}
    sizes: Any = {"size": TILE, "patch_size": 4, "max_patches": 4}
    return hf.Cohere2VisionProcessor(
        hf.Cohere2VisionImageProcessor(**sizes),
        tokenizer_of(dict(zip(names.values(), (IMAGE, START, END, 6), strict=True)), names),
        chat_template=Chat("<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>", "<|IMG_PATCH|>", "<|END_OF_TURN_TOKEN|>").template,
    )


def _heard(names: dict[str, str]) -> Any:
    """A tokenizer that also knows what stands for and around sounds, which Gemma's processors ask for.

    Args:
        names: the tokens of a visual token, and before and behind a picture's.
    """
    ids = dict(zip(names.values(), (IMAGE, START, END), strict=True)) | {"<|video|>": VIDEO}
    sounds = {"audio_token": "<audio>", "boa_token": "<boa>", "eoa_token": "<eoa>"}
    return tokenizer_of({**ids, "<audio>": 97, "<boa>": 6, "<eoa>": 7}, {**names, **sounds})


def _gemma4() -> Any:
    names = {"image_token": "<|image|>", "boi_token": "<|image>", "eoi_token": "<image|>"}
    sizes: Any = {"patch_size": 4, "pooling_kernel_size": 2, "max_soft_tokens": 70}
    return hf.Gemma4Processor(
        hf.Gemma4AudioFeatureExtractor(),
        hf.Gemma4ImageProcessor(**sizes),
        _heard(names),
        hf.Gemma4VideoProcessor(**sizes),
        chat_template=Chat("<|turn>user\n", "<|turn>model\n", "<|image|>", "<turn|>\n", "<|video|>").template,
    )


def _gemma3n() -> Any:
    names = {"image_token": "<image_soft_token>", "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>"}
    return hf.Gemma3nProcessor(
        hf.Gemma3nAudioFeatureExtractor(),
        hf.SiglipImageProcessor(size={"height": 128, "width": 128}),
        _heard(names),
        image_seq_length=16,
        chat_template=Chat(*GEMMA, "<image_soft_token>", "<end_of_turn>\n").template,
    )


def _exaone() -> Any:
    names = {"image_token": "<|image_pad|>", "video_token": "<|video_pad|>"}
    image, film = (f"<vision>{token}</vision>" for token in names.values())
    sizes: Any = {**PACKED, "temporal_patch_size": 2}
    return hf.Exaone4_5_Processor(
        hf.Qwen2VLImageProcessor(**sizes),
        tokenizer_of({"<|image_pad|>": IMAGE, "<|video_pad|>": VIDEO, "<vision>": START, "</vision>": END}, names),
        hf.Qwen2VLVideoProcessor(**sizes),
        chat_template=Chat("<|user|>\n", "<|assistant|>\n", image, "<|endofturn|>\n", film).template,
    )


def _minicpm() -> Any:
    names = {"image_token": "<|image_pad|>", "video_token": "<|video_pad|>"}
    names |= {"image_start_token": "<image>", "image_end_token": "</image>"}
    names |= {"slice_start_token": "<slice>", "slice_end_token": "</slice>"}
    names |= {"image_id_start_token": "<image_id>", "image_id_end_token": "</image_id>"}
    ids = (IMAGE, VIDEO, START, END, 6, 7, 8, 9)
    sizes: Any = {"scale_resolution": 24, "patch_size": 4, "max_slice_nums": 4, "downsample_mode": "4x"}
    return hf.MiniCPMV4_6Processor(
        hf.MiniCPMV4_6ImageProcessor(**sizes),
        hf.MiniCPMV4_6VideoProcessor(**sizes),
        tokenizer_of(dict(zip(names.values(), ids, strict=True)), names),
        chat_template=Chat("user\n", "assistant\n", "<|image_pad|>", "\n", "<|video_pad|>").template,
    )


def _nemotron() -> Any:
    sizes: Any = {"patch_size": 4, "min_num_patches": 16, "max_num_patches": 144}
    films: Any = {"patch_size": 4, "video_target_num_patches": 32, "norm_mean": [0.5] * 3, "norm_std": [0.25] * 3}
    return hf.NemotronH_Omni_Reasoning_V3Processor(
        hf.NemotronH_Omni_Reasoning_V3ImageProcessor(**sizes),
        hf.NemotronH_Omni_Reasoning_V3VideoProcessor(**films),
        tokenizer_of({"<image>": IMAGE, "<video>": VIDEO, "<img>": START, "</img>": END}),
        hf.ParakeetFeatureExtractor(),
        chat_template=Chat("user\n", "assistant\n", "<image>", "\n", "<video>").template,
    )


def _lfm2() -> Any:
    names = {"image_token": "<image>", "image_start_token": "<|image_start|>", "image_end_token": "<|image_end|>"}
    names |= {"image_thumbnail_token": "<|img_thumbnail|>"}
    small: Any = {"min_image_tokens": 4, "max_image_tokens": 16, "max_tiles": 4, "max_pixels_tolerance": 1.5}
    return hf.Lfm2VlProcessor(
        hf.Lfm2VlImageProcessor(encoder_patch_size=4, tile_size=16, **small),
        tokenizer_of(dict(zip(names.values(), (IMAGE, START, END, 6), strict=True)), names),
        chat_template=Chat("user\n", "assistant\n", "<image>", "\n").template,
    )


def _mllama() -> Any:
    return hf.MllamaProcessor(
        hf.MllamaImageProcessor(size={"height": 16, "width": 16}, max_image_tiles=4),
        tokenizer_of(
            {"<|image|>": IMAGE, "<|python_tag|>": END},
            {"image_token": "<|image|>"},
            bos_token="<s>",
        ),
        chat_template=Chat("user\n", "assistant\n", "<|image|>", "\n").template,
    )


MORE: dict[str, Callable[[], Any]] = {
    "gemma3": _gemma3,
    "paligemma": _paligemma,
    "aya_vision": _aya,
    "cohere2_vision": _cohere2,
    "gemma4": _gemma4,
    "gemma3n": _gemma3n,
    "exaone4_5": _exaone,
    "minicpmv4_6": _minicpm,
    "nemotron_h_omni": _nemotron,
    "lfm2_vl": _lfm2,
    "mllama": _mllama,
}
