"""mmtok: coverage of words and tokens, in loops over numbers, and the words of a question."""

import math

import pytest
import torch

import vtc
from tests.families import batch, model_of
from tests.methods.definitions import defines
from tests.methods.plain import cosine, rows
from vtc.layout import single_span
from vtc.methods.shared.words import content_words
from vtc.signals import VisualTokens


def softmax(values):
    top = max(values)
    parts = [math.exp(v - top) for v in values]
    return [part / sum(parts) for part in parts]


def define(x, seen, text, k, picture=0.5, hot=0.02, warm=0.2):
    """Greedily the column that adds most to the maxima of all rows: words by tokens, then tokens by tokens."""
    table = [[p / len(text) for p in softmax([cosine(word, token) / hot for token in x])] for word in text]
    table += [[picture * p / len(seen) for p in softmax([cosine(a, b) / warm for b in seen])] for a in seen]
    best, chosen = [0.0] * len(table), []
    while len(chosen) < k:
        left = [j for j in range(len(x)) if j not in chosen]
        gain = {j: sum(max(0.0, row[j] - have) for row, have in zip(table, best, strict=True)) for j in left}
        chosen.append(max(left, key=lambda j: (gain[j], -j)))
        best = [max(have, row[chosen[-1]]) for row, have in zip(table, best, strict=True)]
    return sorted(chosen)


def numbers(seed, words=5):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(30, 8, generator=g), torch.randn(30, 6, generator=g), torch.randn(words, 8, generator=g)


@defines("mmtok", "picture", "text_temperature", "picture_temperature")
@pytest.mark.parametrize(
    ("picture", "hot", "warm"), [(0.5, 0.02, 0.2), (2.0, 0.02, 0.2), (0.5, 0.5, 0.1), (0.0, 0.5, 0.2)]
)
@pytest.mark.parametrize("keep", [1, 9])
def test_against_the_definition(keep, picture, hot, warm):
    x, seen, text = numbers(keep)
    method = vtc.MMTok(keep=keep, picture=picture, text_temperature=hot, picture_temperature=warm)
    got = vtc.select(method, x, tower_features=seen, text=text)
    assert got.anchor.tolist() == define(rows(x), rows(seen), rows(text), keep, picture, hot, warm)


@defines("mmtok", "words")
def test_the_words_that_are_given():
    x, seen, text = numbers(1)
    method = vtc.MMTok(keep=7, words=lambda tokens: text[:2])
    assert method.requires() == ("tower_features",)
    assert vtc.MMTok().requires() == ("tower_features", "text")
    assert vtc.select(method, x, tower_features=seen).anchor.tolist() == define(rows(x), rows(seen), rows(text[:2]), 7)


def test_a_question_without_words_is_covered_by_its_picture():
    x, seen, text = numbers(2, words=0)
    expected = define(rows(x), rows(seen), [], 7)
    assert vtc.select(vtc.MMTok(keep=7), x, tower_features=seen, text=text).anchor.tolist() == expected
    assert content_words("What is it? Is there any?") == []
    method = vtc.MMTok(keep=7, words=lambda tokens: text)
    assert vtc.select(method, x, tower_features=seen).anchor.tolist() == expected


def test_rows_that_are_no_numbers():
    x, seen, text = numbers(3)
    x[3], seen[7] = float("nan"), float("nan")
    assert vtc.select(vtc.MMTok(keep=12), x, tower_features=seen, text=text).tokens_out == 12


def test_content_words():
    asked = "What color is the car on the LEFT?\nAnswer the question using a single word or phrase."
    assert content_words(asked) == ["color", "car", "left"]
    assert content_words("Is the man's T-shirt red?") == ["man's", "t-shirt", "red"]
    assert content_words("A. a cat\nAnswer with the option\u2019s letter from the given choices directly.") == ["cat"]


class Letters:
    """A tokenizer of letters."""

    def __call__(self, text, add_special_tokens=True):
        assert not add_special_tokens
        return {"input_ids": [ord(letter) % 50 for letter in text.strip()]}


def test_question_words_are_embeddings_of_their_tokens():
    model = model_of("llava")
    table = model.get_input_embeddings()
    words = vtc.question_words(model, Letters(), ["what is red?", "is there a car"])
    for row, said in enumerate(("red", "car")):
        tokens = VisualTokens(torch.randn(4, 2), single_span(4, None), torch.arange(4), lambda name: torch.zeros(0))
        object.__setattr__(tokens.span, "row", row)
        assert torch.equal(words(tokens), table(torch.tensor([ord(letter) % 50 for letter in said])))
    object.__setattr__(tokens.span, "row", 2)
    with pytest.raises(ValueError, match=r"the batch has a row number 2; there are 2 questions, from 0 on\.$"):
        words(tokens)


def test_question_words_in_a_model():
    model, inputs = model_of("llava"), batch("llava", [[0]])
    for question in ("a red car", "what is it?"):
        with vtc.wrapped(model, vtc.MMTok(keep=5, words=vtc.question_words(model, Letters(), question))):
            model(**inputs)
            assert vtc.report(model).tokens_out == 5


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"picture": -1}, r"picture=-1 is not a number of 0 or more: it is a weight\.$"),
        ({"text_temperature": 0}, r"text_temperature=0 is not a number above 0: it is a temperature\.$"),
        ({"words": "cat"}, r"words='cat' is not a function from VisualTokens to embeddings of words\.$"),
    ],
)
def test_refusals(options, says):
    with pytest.raises((ValueError, TypeError), match=says):
        vtc.MMTok(**options)


def test_words_of_another_width_are_refused():
    x, seen, _ = numbers(4)
    with pytest.raises(
        ValueError, match=r"words= returned a tensor of shape \(3, 5\); expected embeddings \[words, 8\]"
    ):
        vtc.select(vtc.MMTok(keep=3, words=lambda tokens: torch.zeros(3, 5)), x, tower_features=seen)
