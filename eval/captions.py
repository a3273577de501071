"""Captions against reference captions: CIDEr-D here, BLEU-4 and chrF by sacrebleu. No Java, so no METEOR or SPICE."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence

from vtc.eval.questions import Question

_ORDERS = (1, 2, 3, 4)
_SIGMA = 6.0
Gram = tuple[str, ...]


def words(text: str) -> list[str]:
    """Lower case, no punctuation: the tokenisation, simpler than the Penn Treebank's of the COCO server."""
    return re.findall(r"[\w']+", text.lower())


def cider(questions: Sequence[Question]) -> Callable[[str, Question], float]:
    """CIDEr-D (Vedantam et al., CVPR 2015, arXiv 1411.5726, section 5) of one caption.

    How rare an n-gram is counts over the references of all `questions`. In [0, 10], usually printed times 100.
    """
    documents: Counter[Gram] = Counter()
    for question in questions:
        documents.update({gram for text in question.answers for gram in _grams(words(text))})
    total = math.log(max(len(questions), 2))

    def weigh(grams: Counter[Gram], order: int) -> dict[Gram, float]:
        return {g: n * (total - math.log(max(1, documents[g]))) for g, n in grams.items() if len(g) == order}

    def score(answer: str, question: Question) -> float:
        said, found = words(answer), 0.0
        grams = _grams(said)
        for text in question.answers:
            meant = words(text)
            others, short = _grams(meant), math.exp(-((len(said) - len(meant)) ** 2) / (2 * _SIGMA**2))
            for order in _ORDERS:
                mine, theirs = weigh(grams, order), weigh(others, order)
                dot = sum(min(value, theirs[g]) * theirs[g] for g, value in mine.items() if g in theirs)
                size = math.sqrt(sum(v * v for v in mine.values()) * sum(v * v for v in theirs.values()))
                found += short * dot / size if size else 0.0
        return 10 * found / len(question.answers) / len(_ORDERS)

    return score


def _grams(text: list[str]) -> Counter[Gram]:
    return Counter(tuple(text[i : i + n]) for n in _ORDERS for i in range(len(text) - n + 1))


def corpus(pairs: Sequence[tuple[str, Sequence[str]]]) -> dict[str, float]:
    """BLEU-4 and chrF, in [0, 1], of (caption, references) pairs taken together.

    Raises:
        ImportError: sacrebleu is missing; it comes with the extra `eval`.
    """
    try:
        import sacrebleu
    except ImportError as error:
        raise ImportError("caption metrics need sacrebleu: pip install 'vtc-vlm[eval]'") from error
    most = max(len(references) for _, references in pairs)
    said = [caption for caption, _ in pairs]
    # one list per "first reference", "second reference", ...; None where there are fewer
    meant = [[refs[i] if i < len(refs) else None for _, refs in pairs] for i in range(most)]
    streams: list[list[str]] = meant  # type: ignore[assignment]
    bleu = sacrebleu.corpus_bleu(said, streams, lowercase=True)
    chrf = sacrebleu.corpus_chrf(said, streams)
    return {"bleu-4": bleu.score / 100, "chrf": chrf.score / 100}
