"""The words of a question that say what it is about."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from vtc.signals import VisualTokens

Words = Callable[[VisualTokens], Tensor]
#: what benchmarks put behind a question, and models before it
SAID_ALWAYS = (
    "answer the question using a single word or phrase",
    "answer with the option's letter from the given choices directly",
    "answer with the option letter from the given choices directly",
    "please answer yes or no",
)
_STOP = """
a about after all also am an and any are as at be been before being between both but by can could did do does
doing down each few for from further had has have having he her here hers him his how i if in into is it its
just me more most my no nor not now of off on once only or other our out over own please same she should so
some such than that the their them then there these they this those through to too under until up very was we
were what when where which while who whom why will with would you your
"""
STOP = frozenset(_STOP.split())


def content_words(question: str) -> list[str]:
    """Words of a question, in order, without what prompts always say and without stop words.

    Example: "What color is the car on the left? Answer the question using a single word or phrase." -> color car left
    """
    said = question.lower().replace("\u2019", "'")
    for phrase in SAID_ALWAYS:
        said = said.replace(phrase, " ")
    return [word for word in re.findall(r"\w+(?:['-]\w+)*", said) if word not in STOP]


def question_words(model: Any, processor: Any, questions: str | Sequence[str]) -> Words:
    """For `vtc.MMTok(words=...)`: input embeddings [m, D] of a row's `content_words`, each word's tokens for itself.

    Args:
        model: whose embeddings are read when it is asked. processor: the model's, or its tokenizer alone.
        questions: what each row of the batch asks, or one question of all.
    """
    tokenizer = getattr(processor, "tokenizer", processor)
    asked = [questions] if isinstance(questions, str) else list(questions)
    pieces = [
        [i for word in content_words(question) for i in tokenizer(f" {word}", add_special_tokens=False)["input_ids"]]
        for question in asked
    ]

    def words(tokens: VisualTokens) -> Tensor:
        row = 0 if len(pieces) == 1 else tokens.span.row
        if row >= len(pieces):
            raise ValueError(f"the batch has a row number {row}; there are {len(pieces)} questions, from 0 on.")
        table = model.get_input_embeddings()
        with torch.no_grad():
            return table(torch.tensor(pieces[row], dtype=torch.long, device=table.weight.device))

    return words
