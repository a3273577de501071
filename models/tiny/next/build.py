"""tiny-next before its training: a genuine LLaVA-NeXT that holds tiny-llava's weights, and its processor."""

from typing import Any

import torch
from transformers import (
    AutoModelForImageTextToText,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextImageProcessor,
    LlavaNextProcessor,
)

from vtc.models import tiny
from vtc.models.tiny import build as llava
from vtc.models.tiny.scenes import PATCH, SIZE

# Height and width of the mosaics that a picture may be fitted to: those of the LLaVA-NeXT checkpoints.
PINPOINTS = [[h * SIZE, w * SIZE] for h, w in ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))]
_NEW_WORDS = ["quarter", "quarters", "half", "small", "large", "tiny", "big"]
_LONGEST = 4096


def vocabulary() -> list[str]:
    """tiny-llava's words with their numbers, and a few behind them."""
    old = llava.vocabulary()
    return [*old, *(word for word in _NEW_WORDS if word not in old)]


def processor() -> LlavaNextProcessor:
    tokenizer = llava.word_tokenizer(vocabulary(), {"image_token": "<image>"})
    tokenizer.model_max_length = _LONGEST
    pictures = LlavaNextImageProcessor(
        size={"shortest_edge": SIZE},
        crop_size={"height": SIZE, "width": SIZE},
        image_grid_pinpoints=PINPOINTS,
    )
    return LlavaNextProcessor(
        image_processor=pictures,
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,  # CLS, dropped by the "default" strategy
        chat_template=llava.CHAT_TEMPLATE,
    )


def model(seed: int = 0, start: LlavaForConditionalGeneration | None = None) -> LlavaNextForConditionalGeneration:
    """tiny-llava's weights (or those of `start`); the newline row and the embeddings of new words are random."""
    torch.manual_seed(seed)
    old = start or AutoModelForImageTextToText.from_pretrained(tiny.path("tiny-llava"), local_files_only=True).float()
    was: Any = old.config
    ids = {token: i for i, token in enumerate(vocabulary())}
    text = was.text_config.to_dict() | {"vocab_size": len(ids), "max_position_embeddings": _LONGEST}
    config = LlavaNextConfig(
        vision_config=was.vision_config.to_dict(),
        text_config=text,
        image_token_index=ids["<image>"],
        vision_feature_select_strategy="default",
        vision_feature_layer=was.vision_feature_layer,
        image_grid_pinpoints=PINPOINTS,
        image_seq_length=(SIZE // PATCH) ** 2,
        projector_hidden_act=was.projector_hidden_act,
        tie_word_embeddings=True,
    )
    built = LlavaNextForConditionalGeneration(config).float()
    state, own = old.state_dict(), built.state_dict()
    table = state["model.language_model.embed_tokens.weight"]
    rows = torch.randn(len(ids) - len(table), table.shape[1]) * table.std()
    state["model.language_model.embed_tokens.weight"] = torch.cat([table, rows])
    state["lm_head.weight"] = state["model.language_model.embed_tokens.weight"]
    state["model.image_newline"] = torch.randn(table.shape[1]) * table.std()
    built.load_state_dict({name: state[name] for name in own})
    built.generation_config = llava.greedy(ids, 48)
    return built
