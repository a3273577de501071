"""A real processor of every family, for the tiny models of `tests.families`."""

from __future__ import annotations

from typing import Any

import transformers as hf
from tokenizers import Tokenizer, models, pre_tokenizers

from tests.families import PINPOINTS
from tests.listed_processors import LISTED_PROCESSORS

SPECIAL = ["<pad>", "<s>", "<image>", "<start>", "<end>", "<video>"]
QWEN: Any = dict(patch_size=4, merge_size=2, temporal_patch_size=2)
TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }} : {% for c in m['content'] %}"
    "{% if c['type'] == 'text' %} {{ c['text'] }}{% else %}BEFORE<{{ c['type'] }}>AFTER{% endif %}"
    "{% endfor %}{% endfor %}{% if add_generation_prompt %} assistant :{% endif %}"
)


def processor_of(family: str) -> Any:
    """A real processor for the family's tiny model, whose tokens are those of `tests.families`."""
    if family in LISTED_PROCESSORS:
        return LISTED_PROCESSORS[family]()
    words = [
        *SPECIAL,
        "<unk>",
        "user",
        "assistant",
        ":",
        "?",
        *map(chr, range(97, 123)),
        *map(str, range(10)),
        ".",
        "seconds",
    ]
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = hf.PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        unk_token="<unk>",
        extra_special_tokens={
            "image_token": "<image>",
            "video_token": "<video>",
            "vision_start_token": "<start>",
            "vision_end_token": "<end>",
            "start_image_token": "<start>",
            "end_image_token": "<end>",
            "context_image_token": "<image>",
        },
    )
    square: Any = {"height": 24, "width": 24}
    anyres: Any = dict(size={"shortest_edge": 24}, crop_size=square, image_grid_pinpoints=PINPOINTS)
    clip: Any = dict(patch_size=4, num_additional_image_tokens=1, vision_feature_select_strategy="default")
    small: Any = {"shortest_edge": 8 * 8, "longest_edge": 24 * 24}
    brackets = ("<start>", "<end>") if family.startswith("qwen") else ("", "")
    more: Any = {
        "tokenizer": tokenizer,
        "chat_template": TEMPLATE.replace("BEFORE", brackets[0]).replace("AFTER", brackets[1]),
    }
    match family:
        case "llava":
            return hf.LlavaProcessor(
                hf.CLIPImageProcessor(size={"shortest_edge": 24}, crop_size=square), **clip, **more
            )
        case "llava_next":
            return hf.LlavaNextProcessor(hf.LlavaNextImageProcessor(**anyres), **clip, **more)
        case "llava_next_video":
            videos = hf.LlavaNextVideoVideoProcessor(size={"shortest_edge": 24}, crop_size=square)
            return hf.LlavaNextVideoProcessor(videos, hf.LlavaNextImageProcessor(**anyres), **clip, **more)
        case "llava_onevision":
            return hf.LlavaOnevisionProcessor(
                hf.LlavaOnevisionImageProcessor(size=square, image_grid_pinpoints=PINPOINTS),
                video_processor=hf.LlavaOnevisionVideoProcessor(size=square),
                num_image_tokens=36,
                vision_feature_select_strategy="full",
                vision_aspect_ratio="anyres_max_2",
                **more,
            )
        case "internvl":
            return hf.InternVLProcessor(
                hf.GotOcr2ImageProcessor(size=square, min_patches=1, max_patches=4),
                video_processor=hf.InternVLVideoProcessor(size=square),
                image_seq_length=9,
                **more,
            )
        case "qwen3_vl":
            return hf.Qwen3VLProcessor(
                hf.Qwen2VLImageProcessor(size=small, **QWEN),
                video_processor=hf.Qwen3VLVideoProcessor(
                    size={"shortest_edge": 64, "longest_edge": 4 * 24 * 24}, **QWEN
                ),
                **more,
            )
    videos = hf.Qwen2VLVideoProcessor(size=small, **QWEN)
    kind = hf.Qwen2VLProcessor if family == "qwen2_vl" else hf.Qwen2_5_VLProcessor
    return kind(hf.Qwen2VLImageProcessor(size=small, **QWEN), video_processor=videos, **more)
