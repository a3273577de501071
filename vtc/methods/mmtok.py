"""MMTok: tokens that cover the question and the picture together."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vtc.checks import check_number
from vtc.methods.base.greedy import GreedyMethod
from vtc.methods.base.method import Paper
from vtc.methods.shared.words import Words
from vtc.signals import VisualTokens


@dataclass(frozen=True, kw_only=True)
class MMTok(GreedyMethod):
    """Coverage of question and picture together.

    Greedily the token that adds most to how well each word of the question, and each token, is covered.

    Source: arXiv 2508.18264, section 3, and its released code at d1522cd. A word hands its share out to all tokens, the
    softmax of their cosines to it (after the projector) over `text_temperature`; a token does so by what the vision
    tower makes of both before the projector, over `picture_temperature`. Words have 1 / words each, tokens
    `picture / N`. What is covered is the largest share that a chosen token has of each.

    The code takes the question alone, word by word, without stop words and what prompts always say: `words` brings
    that, such as `vtc.question_words(model, processor, questions)`. Without it all text of the row counts, which is
    weaker. A row without words is covered by its picture alone. Tokens of a picture's padding, which the code leaves
    out, are not known here; whole pictures choose at once, videos, which the code does not know, frame by frame.

    Args:
        picture: how much covering the picture counts beside the question; 0 = not at all.
        text_temperature, picture_temperature: small ones leave a word, or a token, to what is most like it.
        words: tokens -> embeddings [m, D] of the words to be covered; None = of all text of the row.
    """

    name = "mmtok"
    keep: int | float = 64
    picture: float = 0.5
    text_temperature: float = 0.02
    picture_temperature: float = 0.2
    words: Words | None = None
    objective = "coverage"
    needs = ("tower_features", "text")
    query_aware = True
    positions_default = "compact"
    scope_default = "frame"
    paper = Paper("MMTok: Multimodal Coverage Maximization for Efficient Inference of VLMs", "2508.18264")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self.picture, "picture", 0, what="a weight")
        for name in ("text_temperature", "picture_temperature"):
            check_number(getattr(self, name), name, above=0, what="a temperature")
        if self.words is not None and not callable(self.words):
            raise TypeError(f"words={self.words!r} is not a function from VisualTokens to embeddings of words.")

    def requires(self) -> tuple[str, ...]:
        return self.needs if self.words is None else self.needs[:1]

    def cover(self, tokens: VisualTokens) -> Tensor:
        features, seen = _unit(tokens.features), _unit(tokens.signal("tower_features"))
        said = tokens.signal("text") if self.words is None else self.words(tokens).to(features.device)
        if said.dim() != 2 or said.shape[1] != features.shape[1]:
            wanted, shape = features.shape[1], tuple(said.shape)
            raise ValueError(f"words= returned a tensor of shape {shape}; expected embeddings [words, {wanted}].")
        words = (_unit(said) @ features.T / self.text_temperature).softmax(dim=1) / max(1, len(said))  # [m, N]
        picture = (seen @ seen.T / self.picture_temperature).softmax(dim=1) * (self.picture / len(seen))
        return torch.cat([words, picture]).T.contiguous()


def _unit(x: Tensor) -> Tensor:
    """Rows of length 1; those that are no numbers are 0."""
    unit = F.normalize(x.detach().float(), dim=-1)
    return torch.where(unit.isfinite().all(dim=-1, keepdim=True), unit, 0.0)
