"""Signals: what a method may ask for besides the features themselves.

The engine computes a signal only when a wrapped method lists it in `needs`; `vtc.select` takes it by keyword.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches

import torch
from torch import Tensor

from vtc.layout import VisualSpan

#: name -> what it is; every tensor is per visual token of one span.
SIGNALS: Mapping[str, str] = {
    "cls_attention": "[L, N] attention of the vision tower's CLS token onto each token, one row per layer asked for "
    "(softmax, mean over heads); towers without CLS: received attention instead, with a note in the report",
    "received_attention": "[L, N] attention each token receives from all tokens of its crop in the vision tower",
    "keys": "[N, d] key vectors of the vision tower, averaged over heads, at the layer the features come from",
    "text": "[T, D] input embeddings of the text tokens of the same row, padding left out",
    "grid": "the span's (t, h, w) grid is known",
}

#: Signals read from the vision tower's own layers, through hooks.
TOWER_SIGNALS = ("cls_attention", "received_attention", "keys")


def check_signals(names: tuple[str, ...], asker: str) -> None:
    """Raise ValueError if `names` holds an unknown signal."""
    for name in names:
        if name not in SIGNALS:
            near = get_close_matches(name, SIGNALS, 1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"{asker} needs {name!r}, which is not a signal; there are: {', '.join(SIGNALS)}.{hint}")


@dataclass(frozen=True, eq=False)
class VisualTokens:
    """What a method sees of one image or video.

    Attributes:
        features: [N, D], the tokens as the language model would read them (after the projector).
        span: where they come from: grid, tiles, separators, crops. Its `tokens` is N, or more than N when an earlier
            stage has already compressed the span; `index` then says which of the span's tokens the N rows are.
        index: LongTensor [N], indices into the span's own tokens.
        read: name -> signal of the whole, uncompressed span; methods use `signal`.
    """

    features: Tensor
    span: VisualSpan
    index: Tensor
    read: Callable[[str], Tensor]

    @property
    def total(self) -> int:
        """N of the uncompressed span, which fractions refer to."""
        return self.span.tokens

    def signal(self, name: str) -> Tensor:
        """The signal `name` for the current N tokens; see `vtc.signals.SIGNALS` for shapes."""
        value = self.read(name)
        if name == "text":
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
    """A reader over signals passed by keyword, checked: [N] or [L, N] for attention, [N, d] keys, [T, D] text."""
    check_signals(tuple(given), "vtc.select")
    values: dict[str, Tensor] = {}
    for name, value in given.items():
        tensor = torch.as_tensor(value).to(device)
        if name in ("cls_attention", "received_attention"):
            tensor = tensor.unsqueeze(0) if tensor.dim() == 1 else tensor
            if tensor.dim() != 2 or tensor.shape[1] != tokens:
                raise ValueError(
                    f"{name} has shape {tuple(torch.as_tensor(value).shape)}; expected [{tokens}] or [L, {tokens}]."
                )
        elif name == "keys" and (tensor.dim() != 2 or tensor.shape[0] != tokens):
            raise ValueError(f"keys has shape {tuple(tensor.shape)}; expected [{tokens}, d].")
        elif name == "text" and tensor.dim() != 2:
            raise ValueError(f"text has shape {tuple(tensor.shape)}; expected [T, D].")
        values[name] = tensor

    def read(name: str) -> Tensor:
        if name in values:
            return values[name]
        if name == "cls_attention" and "received_attention" in values:
            return values["received_attention"]
        raise ValueError(f"this method needs the signal {name!r}: pass {name}=... ({SIGNALS[name]}).")

    return read
