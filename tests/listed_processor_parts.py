"""What real processors of the tiny models share: a tokenizer of single words, and chat templates."""

from __future__ import annotations

from typing import Any, NamedTuple

import transformers as hf
from tokenizers import Tokenizer, models, pre_tokenizers

from tests.tiny_parts import VOCAB

WORDS = ["<unk>", "user", "assistant", ":", "?", *map(chr, range(97, 123)), *map(str, range(10)), ".", "*", "seconds"]
#: edges of square crops, in pixels
SQUARE, TILE, PAGE = ({"height": n, "width": n} for n in (24, 32, 64))
PACKED: Any = {"size": {"shortest_edge": 16 * 16, "longest_edge": 48 * 48}, "patch_size": 4, "merge_size": 2}


class Chat(NamedTuple):
    """How a family writes a conversation: before a user's turn and an answer, around pictures, behind a turn."""

    user: str
    answer: str
    image: str
    end: str = ""
    video: str = ""

    @property
    def template(self) -> str:
        return (
            "{% for m in messages %}"
            f"{{% if m['role'] == 'assistant' %}}{self.answer}{{% else %}}{self.user}{{% endif %}}"
            "{% if m['content'] is string %} {{ m['content'] }}{% else %}{% for c in m['content'] %}"
            f"{{% if c['type'] == 'image' %}}{self.image}{{% elif c['type'] == 'video' %}}{self.video}"
            "{% else %} {{ c['text'] }}{% endif %}{% endfor %}{% endif %}"
            f"{self.end}{{% endfor %}}{{% if add_generation_prompt %}}{self.answer}{{% endif %}}"
        )


def tokenizer_of(special: dict[str, int], named: dict[str, str] | None = None, **more: str) -> Any:
    """A tokenizer of as many words as the tiny models know.

    Args:
        special: what is one token wherever it stands, and its id. named: those that processors ask for by name.
    """
    places = {"<pad>": 0, "<s>": 1, **special}
    free = iter(sorted({*range(VOCAB)} - {*places.values()}))
    vocabulary = places | {word: next(free) for word in WORDS}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    made = hf.PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", unk_token="<unk>", extra_special_tokens=named or {}, **more
    )
    made.add_special_tokens({"additional_special_tokens": list(special)}, replace_extra_special_tokens=False)
    return made
