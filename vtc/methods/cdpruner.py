"""CDPruner: a determinantal point process, conditioned on what the question is about."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vtc.checks import check_number
from vtc.methods.base.greedy import GreedyMethod
from vtc.methods.base.method import Paper
from vtc.methods.shared.relevance import Scorer, judged, worded
from vtc.signals import VisualTokens

JUDGES = ("text", "clip", "none")


@dataclass(frozen=True, kw_only=True)
class CDPruner(GreedyMethod):
    """Tokens that span much of what is asked.

    Greedily the tokens of largest determinant of r_i cos_ij r_j, r the relevance to the question.

    Source: arXiv 2506.10967, section 3, and its released code at 9541616. Relevance is brought to (0, 1] among the
    tokens that are chosen in: (r - min + 1e-6) / (max - min); where all are equally relevant, which divides by 0 there,
    diversity alone decides. Beyond the rank of the features, which the code does not look at, the most relevant follow.
    The code takes relevance from the text tower of the CLIP whose vision tower the model has, and negates it, as
    patches of CLIP are the less like a text the more they show it: `judge="clip"` with a `scorer`, such as
    `vtc.OpenClipScorer(...).tokens_about(...)`, which reads the last layer of a CLIP of its own. Few models have such a
    pair, so that relevance is usually the mean cosine of a token and the input embeddings of all text of the row
    (`"text"`), which is not negated. Each crop chooses for itself.

    Args:
        judge: of relevance: "text"; "clip", a scorer's; "none", all alike: a plain determinantal point process.
        scorer: tokens -> relevance of each, for judge="clip".
        negate: whether a scorer's relevance counts the other way round.
        theta: a knob that the paper describes: r becomes exp(theta / (2 (1 - theta)) r), so that 0 is diversity alone,
            and what is near 1 relevance alone; None = r as it is, as released.
    """

    name = "cdpruner"
    keep: int | float = 64
    judge: str = "text"
    scorer: Scorer | None = None
    negate: bool = True
    theta: float | None = None
    objective = "determinantal"
    needs = ("text",)
    query_aware = True
    positions_default = "compact"
    scope_default = "crop"
    paper = Paper(
        "Beyond Attention or Similarity: Maximizing Conditional Diversity for Token Pruning in MLLMs", "2506.10967"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.judge not in JUDGES:
            raise ValueError(f"judge={self.judge!r} is not one of {', '.join(JUDGES)}.")
        if self.scorer is not None and not callable(self.scorer):
            raise TypeError(f"scorer={self.scorer!r} is not a function from VisualTokens to a relevance per token.")
        if self.judge == "clip" and self.scorer is None:
            raise ValueError(
                'judge="clip" asks a CLIP pair, and none is given: pass scorer=vtc.OpenClipScorer.load(...)'
                '.tokens_about(pictures, questions), or take judge="text".'
            )
        if self.judge != "clip" and self.scorer is not None:
            raise ValueError(f'scorer= is what judge="clip" asks, but judge={self.judge!r}.')
        if self.theta is not None:
            check_number(self.theta, "theta", 0, below=1, what="how much relevance counts (None = as released)")
        object.__setattr__(self, "query_aware", self.judge != "none")

    def requires(self) -> tuple[str, ...]:
        return self.needs if self.judge == "text" else ()

    def weight(self, tokens: VisualTokens) -> Tensor:
        found: Tensor | None = None
        if self.judge == "text":
            found = worded(tokens)
        elif self.scorer is not None:
            found = judged(self.scorer, tokens)
            found = -found if self.negate else found
        if found is None:
            return torch.ones(len(tokens.features), device=tokens.features.device)
        spread = found.max() - found.min()
        relevance = torch.where(spread > 0, (found - found.min() + 1e-6) / spread, 1.0)
        return relevance if self.theta is None else (relevance * self.theta / (2 * (1 - self.theta))).exp()
