"""LateStep: in models that denoise their answer, visual tokens are read by the first denoising steps only."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vtc.budget import check_layer, layer_number
from vtc.checks import check_number
from vtc.methods.base.cache import CacheMethod
from vtc.methods.base.method import Paper, top_k

DENOISING = ("diffusion_gemma",)


@dataclass(frozen=True, kw_only=True)
class LateStep(CacheMethod):
    """Late denoising steps read fewer tokens.

    Models that denoise write a block of text at a time: it is denoised in several steps, each of which reads the cached
    prompt. The first `after` steps of every block read everything; the later ones read the text, and of each picture
    the `keep` tokens that the block attended to most in the last step that read everything.

    Source: arXiv 2511.15098, abstract (its sections were not at hand): pruning loses information, which models that are
    trained by diffusion from scratch recover in late steps, and no others; to these, pruning late, or in steps, does
    least harm. Which tokens go is not the study's: here attention says it.

    Deviations: attention is averaged over all positions of the block, as the model does not say which of them are
    settled; it is read in one layer. Rows rest in memory while a block is finished, as the next block's first steps
    read them again: later steps read less, and the cache is no smaller.

    Args:
        keep: visual tokens of each picture that later steps read.
        after: how many denoising steps of each block read everything.
        withdraw: later steps read no visual token at all, whatever `keep` says.
        layer: whose attention decides, an int from 1 or a share of the depth; of layers that attend within a window,
            the next one that does not.
    """

    name = "late-step"
    keep: int | float = 0.25
    after: int = 8
    withdraw: bool = False
    layer: int | float = 0.5
    scopes = ("visual",)
    needs = ("attention_record",)
    only = DENOISING
    paper = Paper(
        "A Comprehensive Study on Visual Token Redundancy for Discrete Diffusion-based Multimodal Large Language "
        "Models",
        "2511.15098",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self.after, "after", 1, integer=True, what="a number of denoising steps that read everything")
        object.__setattr__(self, "layer", check_layer(self.layer, "layer"))
        if self.every is not None or self.first != 0:
            raise ValueError(f"{self.title} chooses once in each block, for all layers: leave every= and first= out.")

    def check_model(self, model_type: str, width: int) -> None:
        if model_type not in self.only:
            raise ValueError(
                f"{self.title} is for models that denoise blocks of text ({', '.join(self.only)}), and {model_type} "
                "writes token by token: use a method that drops cached tokens, such as h2o."
            )

    def deciding_layer(self, kinds: list[str]) -> int:
        """The decoder layer (0-based) whose attention decides, of layers of these kinds."""
        asked = layer_number(self.layer, len(kinds), self.title)
        full = [i for i, kind in enumerate(kinds) if kind == "full_attention"]
        return next((i for i in full if i >= asked), full[-1])

    def read_later(self, attention: Tensor, total: int) -> Tensor:
        """Ascending LongTensor: which of a picture's tokens later steps read, by attention [N] of its `total`."""
        if self.withdraw:
            return torch.empty(0, dtype=torch.long, device=attention.device)
        count = self.keep if isinstance(self.keep, int) else max(1, round(self.keep * total))
        return top_k(attention, min(count, total))
