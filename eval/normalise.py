"""Answers made comparable: the plain way, and the VQA challenge's way."""

from __future__ import annotations

import re
from functools import cache

_ARTICLES = {"a", "an", "the"}
_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_DIGITS = {word: str(value) for value, word in enumerate(_NUMBERS)}
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
# Written without an apostrophe, these mean the same; with two, one of them may be missing.
_CONTRACTIONS = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've
o'clock oughtn't shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd
someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've there're there's
they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've when's
where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't wouldn't've
y'all y'all'll you'd you'd've you'll you're you've
"""


# All but letters, digits, a minus before a number, a point within one, and pluses and sharps at the end of a word.
_SIGNS = r"(?!(?<!\w)-(?=\d)|(?<=\d)\.(?=\d)|(?<=[\w+#])[+#]+(?!\w))[^\w\s]"


def normalise(text: str) -> str:
    """Lower case, no punctuation, no articles, number words as digits: "A red star." -> "red star".

    Signs that make another answer stay: "-5", "2.5", "C++", and what is nothing but signs.
    """
    words = re.sub(_SIGNS, " ", text.lower().replace("'", "")).split() or text.lower().split()
    kept = [word for word in words if word not in _ARTICLES] or words  # a printed "A" is an answer, not an article
    return " ".join(_DIGITS.get(word, word) for word in kept)


def normalise_vqa(text: str) -> str:
    """The normalisation of the VQA challenge's evaluation: its punctuation, digit, article and contraction rules."""
    text = " ".join(text.split())
    joined = re.search(r"\d,\d", text) is not None
    bare = text
    for mark in _PUNCTUATION:
        at_an_edge = f"{mark} " in text or f" {mark}" in text
        bare = bare.replace(mark, "" if joined or at_an_edge else " ")
    bare = re.sub(r"\.(?!\d)", "", bare)
    words = [_DIGITS.get(word, "0" if word == "none" else word) for word in bare.lower().split()]
    return " ".join(_contractions().get(word, word) for word in words if word not in _ARTICLES)


@cache
def _contractions() -> dict[str, str]:
    table = {}
    for whole in _CONTRACTIONS.split():
        for place, sign in enumerate(whole):
            if sign == "'":
                table[whole[:place] + whole[place + 1 :]] = whole
    return table
