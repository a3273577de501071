"""The untrained model and its processor: a small CLIP tower, a small Llama, a word-level tokenizer."""

import re
from itertools import chain
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    GenerationConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    ProcessorMixin,
)

from vtc.models.tiny import questions, words
from vtc.models.tiny.scenes import PATCH, SIZE

SPECIAL = ["<pad>", "<s>", "</s>", "<unk>", "<image>"]
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ message['role'].upper() }}: "
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] if part['type'] == 'image' %}<image>\n{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}"
    "{% endif %}"
    "{% if message['role'] == 'assistant' %}</s>{% else %} {% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
# Words that people use in questions and easy-vqa's answers; the generator itself does not need them.
_EXTRA = """
the a an is are there this that it and or not of in on at to do does can you see any show tell me please image photo
drawing sign text letter letters digits say says read object objects shape shapes animal thing things which who why how
yes no brown gray grey teal rectangle colour pink where what contain present left right above below
arrow arrows clock clocks have
"""


def prompt(question: str) -> str:
    return f"USER: <image>\n{question} ASSISTANT:"


def vocabulary() -> list[str]:
    """Whole words of the closed world, then characters and continuations to spell everything else."""
    text = " ".join([*chain(*questions.TEMPLATES.values(), *words.CELLS), _EXTRA, "user assistant"])
    names = words.SHAPES + words.DRAWINGS + words.COLORS + words.COUNTS + ["word", "number"]
    text += " ".join(["", *names, *map(words.plural, names)])
    whole = sorted({w for w in re.findall(r"[a-z]+", re.sub(r"\{.\}", " ", text.lower())) if len(w) > 1})
    characters = words.LETTERS + words.DIGITS
    punctuation = list(".,:;?!'\"-()/&%+=*#@$_<>[]")
    return [*SPECIAL, *punctuation, *characters, *(f"##{c}" for c in characters), *whole]


def word_tokenizer(words: list[str], extra_special: dict[str, str]) -> PreTrainedTokenizerFast:
    """Whole words and, for the rest, single characters; lowercasing; `<s>` before every text."""
    vocab = {token: i for i, token in enumerate(words)}
    core = Tokenizer(models.WordPiece(vocab, unk_token="<unk>", max_input_chars_per_word=40))
    core.normalizer = normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents(), normalizers.Lowercase()])
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    core.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    core.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", vocab["<s>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        padding_side="left",
        extra_special_tokens=extra_special,
        model_max_length=2048,
        clean_up_tokenization_spaces=False,
    )


def processor() -> LlavaProcessor:
    tokenizer = word_tokenizer(vocabulary(), {"image_token": "<image>"})
    pictures = CLIPImageProcessor(size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE})
    return LlavaProcessor(
        image_processor=pictures,
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,  # CLS, dropped by the "default" strategy
        chat_template=CHAT_TEMPLATE,
    )


def model(seed: int = 0) -> LlavaForConditionalGeneration:
    """Random weights. Six tower layers: visual tokens are the output of the fifth, CLS is trained on four to six."""
    torch.manual_seed(seed)
    vision = CLIPVisionConfig(
        hidden_size=160,
        intermediate_size=640,
        projection_dim=160,
        num_hidden_layers=6,
        num_attention_heads=5,
        image_size=SIZE,
        patch_size=PATCH,
        hidden_act="gelu",
        layer_norm_eps=1e-5,
    )
    ids = {token: i for i, token in enumerate(vocabulary())}
    text = LlamaConfig(
        vocab_size=len(ids),
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=6,
        num_key_value_heads=6,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=ids["<s>"],
        eos_token_id=ids["</s>"],
        pad_token_id=ids["<pad>"],
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=ids["<image>"],
        vision_feature_select_strategy="default",
        vision_feature_layer=-2,
        image_seq_length=(SIZE // PATCH) ** 2,
        projector_hidden_act="gelu",
        tie_word_embeddings=True,
    )
    built = LlavaForConditionalGeneration(config)
    built.generation_config = greedy(ids, 48)
    return built


def greedy(ids: dict[str, int], max_new_tokens: int) -> GenerationConfig:
    """How a tiny model answers unless asked otherwise."""
    return GenerationConfig(
        do_sample=False,
        max_new_tokens=max_new_tokens,
        bos_token_id=ids["<s>"],
        eos_token_id=ids["</s>"],
        pad_token_id=ids["<pad>"],
    )


def save(built: PreTrainedModel, folder: Path, reader: ProcessorMixin, dtype: torch.dtype = torch.float16) -> None:
    """Write model and processor; the weights are replaced in one rename so that a reader never sees half a file."""
    folder.mkdir(parents=True, exist_ok=True)
    staging = folder.parent / f".{folder.name}.new"
    was = next(built.parameters()).dtype
    built.to(dtype).save_pretrained(staging)
    built.to(was)
    reader.save_pretrained(staging)
    for file in sorted(staging.iterdir()):
        file.chmod(0o644)
        file.replace(folder / file.name)
    staging.rmdir()
