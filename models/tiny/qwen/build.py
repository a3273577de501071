"""The untrained tiny-qwen and its processor: a genuine Qwen2.5-VL, with tiny-llava's words and room for a few more."""

import re
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForImageTextToText,
    LlavaForConditionalGeneration,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
)

from vtc.models import tiny
from vtc.models.tiny import build as llava
from vtc.models.tiny.qwen import asking
from vtc.models.tiny.qwen.clips import CELL, STEPS

SPECIAL = ["<pad>", "<s>", "</s>", "<unk>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ message['role'].upper() }}: "
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part['type'] == 'video' %}<|vision_start|><|video_pad|><|vision_end|>{% endif %}"
    "{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}"
    "{% endif %}"
    "{% if message['role'] == 'assistant' %}</s>{% else %} {% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
# Words for questions of one's own; the generator does not need them.
_EXTRA = "video clip frame frames time times when before after last then moving still happens blinks moves shown seen"
_PATCH = CELL // 2
_NEW_LAYERS = 2


def vocabulary() -> list[str]:
    """tiny-llava's words without its special tokens, and those of questions about clips."""
    old = llava.vocabulary()[len(llava.SPECIAL) :]
    text = " ".join([*chain(*asking.TEMPLATES.values()), *asking.TIMES, _EXTRA, "up down"])
    new = {w for w in re.findall(r"[a-z]+", re.sub(r"\{.\}", " ", text.lower())) if len(w) > 1}
    return [*SPECIAL, *old, *sorted(new - set(old))]


def processor() -> Qwen2_5_VLProcessor:
    names = {"vision_start_token": SPECIAL[4], "vision_end_token": SPECIAL[5]}
    names |= {"image_token": SPECIAL[6], "video_token": SPECIAL[7]}
    tokenizer = llava.word_tokenizer(vocabulary(), names)
    side = {"shortest_edge": 64 * 64, "longest_edge": 512 * 512}
    shared: dict[str, Any] = dict(patch_size=_PATCH, merge_size=2, temporal_patch_size=2)
    return Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(size=side, **shared),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(
            size={"shortest_edge": 64 * 64, "longest_edge": 2 * STEPS * 256 * 256},
            min_frames=2,
            cap_pixels_per_frame=False,
            **shared,
        ),
        chat_template=CHAT_TEMPLATE,
    )


def model(seed: int = 0, start: LlavaForConditionalGeneration | None = None) -> Qwen2_5_VLForConditionalGeneration:
    """Random weights; with `start`, the upper layers and known words of its language model.

    The position frequencies are far higher than usual: with heads of 32 and the usual base, columns of a picture would
    turn the last section of M-RoPE by a few thousandths of a radian and could not be told apart.
    """
    torch.manual_seed(seed)
    words = vocabulary()
    ids = {token: i for i, token in enumerate(words)}
    rope = {"rope_type": "default", "type": "default", "mrope_section": [4, 6, 6], "rope_theta": 25.0}
    config = Qwen2_5_VLConfig(
        vision_config=dict(
            depth=6,
            hidden_size=128,
            intermediate_size=352,
            num_heads=4,
            out_hidden_size=192,
            patch_size=_PATCH,
            window_size=4 * CELL,
            fullatt_block_indexes=[2, 5],
            tokens_per_second=2,
        ),
        text_config=dict(
            vocab_size=len(words),
            hidden_size=192,
            intermediate_size=512,
            num_hidden_layers=4 + _NEW_LAYERS,
            num_attention_heads=6,
            num_key_value_heads=6,
            max_position_embeddings=4096,
            rms_norm_eps=1e-6,
            rope_parameters=rope,
            tie_word_embeddings=True,
            bos_token_id=ids["<s>"],
            eos_token_id=ids["</s>"],
            pad_token_id=ids["<pad>"],
        ),
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=True,
    )
    built = Qwen2_5_VLForConditionalGeneration(config)
    built.generation_config = llava.greedy(ids, 16)
    if start is not None:
        inherit(built, start)
    return built


def tiny_llava() -> LlavaForConditionalGeneration:
    return AutoModelForImageTextToText.from_pretrained(tiny.path("tiny-llava"), local_files_only=True).float()


@torch.no_grad()
def inherit(built: Qwen2_5_VLForConditionalGeneration, start: LlavaForConditionalGeneration) -> None:
    """Give `built` the words and layers of tiny-llava's language model, below them layers that do nothing as yet."""
    mine, theirs = built.model.language_model, start.model.language_model
    old = {token: i for i, token in enumerate(llava.vocabulary())}
    for i, token in enumerate(vocabulary()):
        if token in old:
            mine.embed_tokens.weight[i] = theirs.embed_tokens.weight[old[token]]
    spread = theirs.embed_tokens.weight.std()
    for i, token in enumerate(vocabulary()):
        if token not in old:
            mine.embed_tokens.weight[i].normal_(std=float(spread))
    for layer in mine.layers:
        for projection in (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj):
            projection.bias.zero_()
    for layer in mine.layers[:_NEW_LAYERS]:
        look = layer.self_attn
        # Same content attends to same content, and the biases give every head a liking of its own for where and when:
        # the rotation of a constant depends on the distance alone.
        look.k_proj.weight.normal_(std=0.06)
        look.q_proj.weight.copy_(look.k_proj.weight)
        look.q_proj.bias.normal_(std=1.2)
        look.k_proj.bias.normal_(std=1.2)
        look.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()
    for layer, source in zip(mine.layers[_NEW_LAYERS:], theirs.layers, strict=True):
        layer.load_state_dict(source.state_dict(), strict=False)  # which has no biases
    mine.norm.load_state_dict(theirs.norm.state_dict())


def save(built: Qwen2_5_VLForConditionalGeneration, folder: Path) -> None:
    """Write model (float16) and processor."""
    llava.save(built, folder, processor())
