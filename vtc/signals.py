"""Signals: what a method may ask for besides the features themselves.

The engine computes a signal only when a wrapped method lists it in `needs`; `vtc.select` takes it by keyword.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vtc.hints import did_you_mean
from vtc.layout import VisualSpan

#: name -> what it is; every tensor is per visual token of one span.
SIGNALS: Mapping[str, str] = {
    "cls_attention": "[L, N] attention of the vision tower's CLS token onto each token, one row per layer asked for "
    "(softmax, mean over heads); towers without CLS: received attention instead, with a note in the report",
    "received_attention": "[L, N] attention each token receives from all tokens of its crop in the vision tower",
    "keys": "[N, d] key vectors of the vision tower, averaged over heads, at the layer the features come from",
    "text": "[T, D] input embeddings of the text tokens of the same row, padding left out",
    "grid": "the span's (t, h, w) grid is known",
    "last_attention": "[N] attention of the row's last token onto each token, in a decoder layer (softmax over the "
    "whole row, mean over heads)",
    "text_attention": "[T, N] attention of the text after the row's pictures onto each token, in a decoder layer",
    "peak_attention": "[N] largest attention that any head of any text token after the row's pictures gives each "
    "token, in a decoder layer",
    "visual_attention": "[N] mean attention that the picture's own tokens give each token, in a decoder layer",
    "relevance": "[2] mean share of its attention that text behind the first picture gives to visual tokens, and that "
    "visual tokens give to such text, in a decoder layer",
    "transition": "[N] what the method's `transition` made of the modules it listens to, summed",
    "layer_keys": "[N, G, d] keys of a decoder layer, one per head",
    "text_keys": "[T, G, d] the same of the text after the row's pictures",
    "text_states": "[T, D] hidden states of the text after the row's pictures",
    "text_raters": "[T] True for text after the pictures that the pictures are about (SparseVLM's text raters)",
    "attention_record": "[N] what the method's `gain` made of the attention each cached token has received, summed",
    "survives": "[N] True for cached tokens that the last decoder layer still sees",
}

#: Signals read from the vision tower's own layers, through hooks.
TOWER_SIGNALS = ("cls_attention", "received_attention", "keys")

#: Signals read inside the language model, for the tokens that are still there.
LAYER_SIGNALS = (
    "last_attention",
    "text_attention",
    "peak_attention",
    "visual_attention",
    "relevance",
    "transition",
    "layer_keys",
    "text_keys",
    "text_states",
    "text_raters",
)

#: Signals of tokens in the KV cache.
CACHE_SIGNALS = ("attention_record", "survives")

_SHAPES: Mapping[str, tuple[str, ...]] = {
    "cls_attention": ("L", "N"),
    "received_attention": ("L", "N"),
    "keys": ("N", "d"),
    "text": ("T", "D"),
    "last_attention": ("N",),
    "text_attention": ("T", "N"),
    "peak_attention": ("N",),
    "visual_attention": ("N",),
    "relevance": ("2",),
    "transition": ("N",),
    "layer_keys": ("N", "G", "d"),
    "text_keys": ("T", "G", "d"),
    "text_states": ("T", "D"),
    "text_raters": ("T",),
    "attention_record": ("N",),
    "survives": ("N",),
}


def check_signals(names: tuple[str, ...], asker: str) -> None:
    """Raise ValueError if `names` holds an unknown signal."""
    for name in names:
        if name not in SIGNALS:
            hint = did_you_mean(name, SIGNALS)
            raise ValueError(f"{asker} needs {name!r}, which is not a signal; there are: {', '.join(SIGNALS)}.{hint}")


@dataclass(frozen=True, eq=False)
class VisualTokens:
    """What a method sees of one image or video.

    Attributes:
        features: [N, D], the tokens as the language model would read them (after the projector).
        span: where they come from: grid, tiles, separators, crops. Its `tokens` is N, or more than N when an earlier
            stage has already compressed the span; `index` then says which of the span's tokens the N rows are.
        index: LongTensor [N], indices into the span's own tokens.
        read: name -> signal; of the whole, uncompressed span where it is the vision tower's. Methods use `signal`.
        step: which of its layers a method of the stage `layer` is asked at, from 0.
        depth: number of decoder layers; 0 = unknown (`vtc.select`).
        budget: how many tokens to keep, where that is not for the method to say (frames of a video).
        counts: of these tokens, how many each decoder layer so far has seen, the last number being N; () = unknown.
    """

    features: Tensor
    span: VisualSpan
    index: Tensor
    read: Callable[[str], Tensor]
    step: int = 0
    depth: int = 0
    budget: int | None = None
    counts: tuple[int, ...] = ()

    @property
    def total(self) -> int:
        """N of the uncompressed span, which fractions refer to."""
        return self.span.tokens

    def signal(self, name: str) -> Tensor:
        """The signal `name` for the current N tokens; see `vtc.signals.SIGNALS` for shapes."""
        value = self.read(name)
        if name not in TOWER_SIGNALS:
            return value
        return value[self.index] if name == "keys" else value[..., self.index]

    @property
    def separators(self) -> Tensor:
        """BoolTensor [N]: tokens that are no patch of the picture."""
        return self.span.separators.to(self.index.device)[self.index]

    def after(self, anchor: Tensor, features: Tensor) -> VisualTokens:
        """The tokens a next stage sees once a selection with anchors `anchor` [M] has produced `features` [M, D]."""
        return replace(self, features=features, index=self.index[anchor])


def given_signals(given: Mapping[str, Tensor], tokens: int, device: torch.device) -> Callable[[str], Tensor]:
    """A reader over signals passed by keyword, their shapes checked; [N] will do for one layer's [L, N]."""
    check_signals(tuple(given), "vtc.select")
    values: dict[str, Tensor] = {}
    for name, value in given.items():
        tensor = torch.as_tensor(value).to(device)
        shape = _SHAPES.get(name, ())
        if shape == ("L", "N") and tensor.dim() == 1:
            tensor = tensor.unsqueeze(0)
        sizes = {"N": tokens, "2": 2}
        fits = all(sizes.get(side, size) == size for side, size in zip(shape, tensor.shape, strict=False))
        if tensor.dim() != len(shape) or not fits:
            wanted = ", ".join(str(sizes.get(side, side)) for side in shape)
            also = f"[{tokens}] or " if shape == ("L", "N") else ""
            raise ValueError(f"{name} has shape {tuple(torch.as_tensor(value).shape)}; expected {also}[{wanted}].")
        values[name] = tensor

    def read(name: str) -> Tensor:
        if name in values:
            return values[name]
        if name == "cls_attention" and "received_attention" in values:
            return values["received_attention"]
        raise ValueError(f"this method needs the signal {name!r}: pass {name}=... ({SIGNALS[name]}).")

    return read


def text_raters(embeds: Tensor, visual: Tensor, after: Tensor) -> Tensor:
    """Which text tokens the pictures are about, at the language model's input.

    A text token is a rater if the share of the pictures' similarity that falls to it, softmax over the text of the
    inner products with each visual token, averaged over those, exceeds the mean (SparseVLM, arXiv 2410.04417, section
    3.2).

    Args:
        embeds: [B, L, D]. visual: BoolTensor [B, L]. after: LongTensor [B, R], text after the pictures, -1 = none.

    Returns:
        BoolTensor [B, R], False where `after` is -1.
    """
    raters = torch.zeros_like(after, dtype=torch.bool)
    for row in range(len(after)):
        there = after[row] >= 0
        if not there.any() or not visual[row].any():
            continue
        seen, text = embeds[row, visual[row]].float(), embeds[row, after[row][there]].float()
        share = (seen @ text.T).softmax(dim=-1).mean(dim=0)  # [T]
        raters[row, there] = share >= share.mean() if len(share) == 1 else share > share.mean()
    return raters
