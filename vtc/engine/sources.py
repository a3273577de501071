"""Sources: which layers of a model feed the signals that methods ask for, and how a method reads them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from vtc.layout import VisualSpan
from vtc.methods.base.method import Method
from vtc.models.family import Adapter, TowerCall
from vtc.models.tower import tower_for, tower_type
from vtc.signals import TOWER_SIGNALS

Pair = tuple[str, int]  # (signal of the vision tower, layer)


class Sources:
    """Maps each method's signals to (tower signal, layer) pairs; `notes` says where one stands in for another."""

    def __init__(self, model: nn.Module, adapter: Adapter, methods: Sequence[Method]) -> None:
        tower = adapter.tower(model)
        facts = tower_for(tower)
        self.depth, self.feature_layer = len(facts.blocks(tower)), adapter.feature_layer(model)
        self.has_cls, self.tower = facts.has_cls, tower_type(tower)
        self.notes: list[str] = []
        self.wanted = [pair for method in methods for name in method.requires() for pair in self.pairs(method, name)]

    def pairs(self, method: Method, name: str) -> list[Pair]:
        """What makes up `name` for `method`; nothing if it is not the vision tower's."""
        if name not in TOWER_SIGNALS:
            return []
        if name == "keys":
            return [(name, self.feature_layer)]
        if name == "cls_attention" and not self.has_cls:
            note = f"{method.title}: {self.tower} has no CLS token; received attention stands in for CLS attention."
            if note not in self.notes:
                self.notes.append(note)
            name = "received_attention"
        return [(name, layer) for layer in method.tower_layers(self.depth, self.feature_layer)]

    def reader(
        self,
        method: Method,
        span: VisualSpan,
        call: TowerCall | None,
        text: Callable[[int], Tensor],
        device: torch.device,
    ) -> Callable[[str], Tensor]:
        """A function name -> signal for one span, on `device`; `text(row)` gives the text embeddings of a row."""

        def read(name: str) -> Tensor:
            if name not in method.requires():
                raise ValueError(f"{method.title} reads the signal {name!r} without listing it in `needs`.")
            if name == "text":
                return text(span.row)
            if name == "grid":
                raise ValueError("the grid is not read as a signal: it is tokens.span.grid, with tokens.span.tiles.")
            rows = [_per_token(_measured(call, pair), span.patch) for pair in self.pairs(method, name)]
            return (rows[0] if name == "keys" else torch.stack(rows)).to(device)

        return read


def _measured(call: TowerCall | None, pair: Pair) -> Tensor:
    if call is None or pair not in call.signals:
        raise ValueError(
            f"the signal {pair[0]!r} of vision layer {pair[1]} is missing: the image features handed in were encoded "
            "without it; encode them on the wrapped model, or with vtc.encode(model, methods, ...)."
        )
    return call.signals[pair]


def _per_token(values: Tensor, patch: Tensor) -> Tensor:
    """Tower values [P, ...] -> [N, ...] of a span's tokens; separators (patch -1) get 0."""
    patch = patch.to(values.device)
    inside = (patch >= 0).view(-1, *[1] * (values.dim() - 1))
    return torch.where(inside, values[patch.clamp(min=0)], 0.0)
