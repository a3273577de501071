"""A Qwen2.5-VL with random weights and a real processor, saved to a folder: what `vtc ask --model` takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    PreTrainedTokenizerFast,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
)

import vtc

SPECIAL = ["<pad>", "</s>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>", "<unk>"]
TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }} : {% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif c['type'] == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% else %} {{ c['text'] }}{% endif %}{% endfor %}{% endfor %}{% if add_generation_prompt %} assistant :{% endif %}"
)


def loaded_from(folder: Path) -> tuple[Any, Any]:
    """Model and processor that `save` wrote, the matrices redrawn so large that pictures change what is said."""
    model, processor = vtc.load(folder)
    torch.manual_seed(0)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.25)
    return model, processor


def save(folder: Path) -> Path:
    """Write model and processor into `folder`."""
    words = [*SPECIAL, "user", "assistant", ":", "?", "what", "moves", "is", "there", *map(chr, range(97, 123))]
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=SPECIAL[2:6],
        padding_side="left",
    )
    sizes: dict[str, Any] = dict(size={"shortest_edge": 56 * 56, "longest_edge": 112 * 112})
    Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(**sizes),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(size={"shortest_edge": 56 * 56, "longest_edge": 40 * 112 * 112}),
        chat_template=TEMPLATE,
    ).save_pretrained(folder)
    rope = {"rope_type": "default", "type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
    text = dict(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=len(words),
        max_position_embeddings=4096,
        rope_parameters=rope,
        rope_scaling=rope,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=1,
    )
    vision = dict(
        depth=2, hidden_size=32, out_hidden_size=32, intermediate_size=48, num_heads=2, fullatt_block_indexes=[1]
    )
    config = AutoConfig.for_model(
        "qwen2_5_vl",
        text_config=text,
        vision_config=vision,
        image_token_id=4,
        video_token_id=5,
        vision_start_token_id=2,
        vision_end_token_id=3,
    )
    torch.manual_seed(0)
    AutoModelForImageTextToText.from_config(config).save_pretrained(folder)
    return folder
