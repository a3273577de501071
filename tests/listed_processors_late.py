"""Real processors of the families of `tests.listed_late`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import transformers as hf

from tests.listed_late import LOW, PINPOINTS, ROW
from tests.listed_processor_parts import PAGE, SQUARE, TILE, Chat, tokenizer_of
from tests.tiny_parts import END, IMAGE, START


def _granite() -> Any:
    tiles: Any = {"size": {"shortest_edge": 32}, "crop_size": TILE, "image_grid_pinpoints": PINPOINTS}
    return hf.Granite4VisionProcessor(
        hf.LlavaNextImageProcessor(**tiles),
        tokenizer_of({"<image>": IMAGE}),
        patch_size=4,
        vision_feature_select_strategy="full",
        downsample_rate="2/4",
        chat_template=Chat("<|user|>\n", "<|assistant|>\n", "<image>", "<|end_of_text|>\n").template,
    )


def _step() -> Any:
    sizes: Any = {"size": PAGE, "patch_size": 48, "max_image_size": 192}
    pictures: Any = hf.Step3p7ImageProcessor(**sizes)
    pictures.vision_patch_size = 4
    words = {"<im_patch>": IMAGE, "<im_start>": START, "<im_end>": END}
    words |= {"<patch_start>": 6, "<patch_end>": 7, "<patch_newline>": 8}
    return hf.Step3p7Processor(
        pictures, tokenizer_of(words), chat_template=Chat("user\n", "assistant\n", "<im_patch>", "\n").template
    )


def _molmo() -> Any:
    special = {"<im_patch>": IMAGE, "<im_start>": START, "<im_end>": END, "<im_col>": ROW, "<low_res_im_start>": LOW}
    special |= {"<frame_start>": 8, "<frame_end>": 9, "<im_low>": 95, "<|image|>": 96, "<|video|>": 97}
    sizes: Any = {"size": SQUARE, "patch_size": 4, "pooling_size": [2, 2]}
    return hf.Molmo2Processor(
        hf.Molmo2ImageProcessor(**sizes, max_crops=4, overlap_margins=[1, 1]),
        hf.Molmo2VideoProcessor(**sizes),
        tokenizer_of(special, bos_token="<s>"),
        chat_template=Chat("user\n", "assistant\n", "<|image|>", "\n", "<|video|>").template,
    )


LATE: dict[str, Callable[[], Any]] = {"granite4_vision": _granite, "step3p7": _step, "molmo2": _molmo}
