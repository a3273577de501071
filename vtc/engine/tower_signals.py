"""Hooks on the vision tower: read queries and keys as they pass, and reduce them to the signals asked for.

Scores are computed from the projections' outputs through our own ops, so they are the same under eager, sdpa and
flash attention, and no N x N attention matrix is ever held.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from vtc import ops
from vtc.models.family import Adapter, TowerCall
from vtc.models.tower import tower_for

ATTRIBUTE = "vtc_call"  # name under which a TowerCall travels on the tower's output object


class TowerTap:
    """Watches some layers of a vision tower for some signals; every output of the tower carries its TowerCall.

    Args:
        wanted: pairs (signal, layer) with signal in "cls_attention", "received_attention", "keys".
    """

    def __init__(self, model: nn.Module, adapter: Adapter, wanted: Iterable[tuple[str, int]]) -> None:
        self.model, self.adapter = model, adapter
        self.wanted: dict[int, list[str]] = {}
        for name, layer in sorted(set(wanted)):
            self.wanted.setdefault(layer, []).append(name)
        self.call = TowerCall()
        self.outputs: list[Any] = []  # of the runs since somebody cleared it
        self.seen: dict[tuple[int, str], Tensor] = {}
        self.facts = tower_for(adapter.tower(model))
        self.handles: list[RemovableHandle] = []

    def attach(self) -> None:
        tower = self.adapter.tower(self.model)
        self.handles.append(tower.register_forward_pre_hook(self._before_tower, with_kwargs=True))
        self.handles.append(tower.register_forward_hook(self._after_tower))
        projector = self.adapter.crop_projector(self.model)
        if projector is not None:
            self.handles.append(projector.register_forward_hook(self._after_projector))
        attentions = self.facts.attentions(tower)
        for layer in self.wanted:
            q, k = self.facts.projections(attentions[layer])
            self.handles.append(q.register_forward_hook(partial(self._see, layer, "q")))
            if k is not q:
                self.handles.append(k.register_forward_hook(partial(self._see, layer, "k")))
            after = partial(self._after_attention, layer)
            self.handles.append(attentions[layer].register_forward_hook(after, with_kwargs=True))

    def detach(self) -> None:
        for handle in self.handles:
            handle.remove()
        self.handles.clear()

    def _before_tower(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        pixels = args[0] if args else kwargs.get("pixel_values", kwargs.get("hidden_states"))
        grid = kwargs.get("grid_thw", args[1] if len(args) > 1 else None)
        crops = 0 if pixels is None else (pixels.shape[0] if grid is None else len(grid))
        self.call = TowerCall(grid_thw=grid, crops=crops)
        self.seen.clear()

    def _see(self, layer: int, which: str, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        self.seen[layer, which] = output

    def _after_attention(
        self, layer: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        q = self.seen.pop((layer, "q"))
        k = self.seen.pop((layer, "k"), q)
        segments = self.facts.queries_keys(module, q.detach(), k.detach(), kwargs, self.call.grid_thw)
        for name in self.wanted[layer]:
            self.call.signals[name, layer] = self._measure(name, segments)

    def _measure(self, name: str, segments: list[tuple[Tensor, Tensor]]) -> Tensor:
        """Segments of (q, k) [B, H, T, d] -> [tokens] or, for keys, [tokens, d]: crop by crop, without CLS."""
        first = 1 if self.facts.has_cls else 0
        scale = segments[0][0].shape[-1] ** -0.5
        total = sum(q.shape[2] for q, _ in segments)
        parts = []
        for q, k in segments:
            if name == "keys":
                value = k.float().mean(dim=1)  # [B, T, d]
            elif name == "cls_attention":
                value = ops.attention_rows(q[:, :, :1], k, scale)[:, 0]  # [B, T]
            else:  # every segment (window, image) hands out attention in proportion to its size
                value = ops.received_attention(q, k, scale) * (q.shape[2] / total if len(segments) > 1 else 1.0)
            parts.append(value[:, first:])
        values = torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]
        tower, mean = self.adapter.tower(self.model), name == "keys"
        values = self.facts.tokens_from_patches(tower, values, self.call.grid_thw, mean)
        return self.adapter.tokens_from_patches(self.model, values, mean)

    def _after_projector(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        self.call.first = output[:, 0].detach()  # [crops, D]

    def _after_tower(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if hasattr(output, "last_hidden_state"):  # a ModelOutput, not a bare tuple
            setattr(output, ATTRIBUTE, self.call)
            self.outputs.append(output)
        self.seen.clear()
