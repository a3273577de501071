"""Signals of a vision tower that vLLM runs: hooks read queries and keys as its attention is given them.

All of vLLM's towers attend through one class, `MMEncoderAttention`, which is handed queries and keys as they are
multiplied (rotated, normed), [B, T, heads * d] or [B, T, heads, d]. What a method asks for is made of them by the rows
of `vtc.signals.SIGNALS`, as it is on transformers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from vllm.model_executor.layers.attention.mm_encoder_attention import MMEncoderAttention

from vtc.engine.tower_segment import Segment
from vtc.methods.base.method import Method
from vtc.models.tower import Tower
from vtc.signals import SIGNALS, Signal, of_place


@dataclass(frozen=True, eq=False)
class Parts:
    """Where things are in a vision tower of vLLM's.

    Attributes:
        facts: what vtc knows of such towers. tower: the module with the attributes that `facts` reads.
        blocks: those that vLLM has built; it leaves out what lies behind the features.
        depth: how many the checkpoint has. feature_layer: the block (0-based) whose output the projector reads.
        folded: values per patch [B, T, ...], and whether they are averaged -> per token, [N, ...], of families that
            make a token of several patches behind the tower; None elsewhere.
    """

    facts: Tower
    tower: nn.Module
    blocks: Sequence[nn.Module]
    depth: int
    feature_layer: int
    folded: Callable[[Tensor, bool], Tensor] | None = None

    def attention(self, layer: int) -> MMEncoderAttention:
        """The attention of block `layer`."""
        return next(part for part in self.blocks[layer].modules() if isinstance(part, MMEncoderAttention))


@dataclass
class Run:
    """One run of the tower: the grids of its pictures (packed towers'), and what has been measured."""

    grids: Tensor | None
    measured: dict[tuple[str, int], Tensor] = field(default_factory=dict)


class TowerTaps:
    """Measures what `method` reads of a tower, whenever that runs within `listening`.

    Example: VTC-CLS on a tower of 24 blocks that hands over block 22's output asks for `cls_attention` of blocks 11 to
    22; after a run with two pictures `of_pictures(run, [576, 576])` holds {"cls_attention": [12, 576]} for each.

    Raises:
        ValueError: it reads a block that vLLM has not built.
    """

    def __init__(self, parts: Parts, method: Method) -> None:
        self.parts = parts
        layers = method.tower_layers(parts.depth, parts.feature_layer)
        #: by signal, the blocks that it is measured at; none where it would be a CLS token's and there is no such token
        self.wanted: dict[str, tuple[int, ...]] = {}
        for name in of_place(method.requires(), "tower"):
            signal, has_cls = SIGNALS[name], parts.facts.has_cls
            if signal.of_cls and not has_cls:
                self.wanted[name] = ()
            else:
                row = signal if has_cls or signal.stand_in is None else SIGNALS[signal.stand_in]
                self.wanted[row.name] = layers if "L" in row.shape else (parts.feature_layer,)
        beyond = max((layer for own in self.wanted.values() for layer in own), default=0)
        if beyond >= len(parts.blocks):
            raise ValueError(
                f"{method.title} reads block {beyond} of the vision tower, of which vLLM has built the first "
                f"{len(parts.blocks)}, whose features the model takes: choose another method, such as divprune."
            )
        self._run: Run | None = None
        heard = sorted({layer for own in self.wanted.values() for layer in own})
        self._hooks = [hook for layer in heard for hook in self._at(layer)]

    def _at(self, layer: int) -> Iterator[Any]:
        here = [SIGNALS[name] for name, layers in self.wanted.items() if layer in layers]
        if attended := [signal for signal in here if not signal.of_block]:
            yield self.parts.attention(layer).register_forward_pre_hook(
                partial(self._attends, layer, attended), with_kwargs=True
            )
        if after := [signal for signal in here if signal.of_block]:
            yield self.parts.blocks[layer].register_forward_hook(partial(self._puts_out, layer, after))

    def close(self) -> None:
        """Take the hooks off again."""
        for hook in self._hooks:
            hook.remove()

    @contextmanager
    def listening(self, grids: Tensor | None = None) -> Iterator[Run]:
        """The run of the tower within the block.

        Args:
            grids: LongTensor [pictures, 3] of patches in main memory, of towers that take packed rows.
        """
        self._run = run = Run(grids)
        try:
            yield run
        finally:
            self._run = None

    def _attends(
        self,
        layer: int,
        signals: list[Signal],
        module: MMEncoderAttention,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> None:
        if self._run is None:
            return
        query, key = [*args, *(kwargs[name] for name in ("query", "key")[len(args) :])][:2]
        scale = module.scale * module.head_size**0.5  # of a tower with another than 1 / sqrt(d), which `Segment` takes
        q, k = self._heads(module, query) * scale, self._heads(module, key)
        lengths = self._lengths(layer)
        pairs = [(q, k)] if lengths is None else list(zip(q.split(lengths, 2), k.split(lengths, 2), strict=True))
        first, total = int(self.parts.facts.has_cls), q.shape[2]
        shares = [a.shape[2] / total if len(pairs) > 1 else 1.0 for a, _ in pairs]
        self._measure(
            layer, signals, [Segment(a, b, share, first=first) for (a, b), share in zip(pairs, shares, strict=True)]
        )

    @staticmethod
    def _heads(module: MMEncoderAttention, x: Tensor) -> Tensor:
        """[B, T, heads * d] or [B, T, heads, d] -> [B, heads, T, d]."""
        x = x.detach()
        return (x.unflatten(-1, (module.num_heads, module.head_size)) if x.dim() == 3 else x).transpose(1, 2)

    def _lengths(self, layer: int) -> list[int] | None:
        """Of a packed row, the stretches that attend within themselves in this block; None where each row is one.

        They are told by the grids: what the attention is given of them depends on vLLM's backend.
        """
        assert self._run is not None
        grids = self._run.grids
        if grids is None:
            return None
        merge: Any = self.parts.tower.spatial_merge_size
        tokens = int(grids.prod(dim=1).sum()) // merge**2
        return self.parts.facts.stretches(self.parts.tower, grids, torch.ones(tokens, dtype=torch.bool))[layer]

    def _puts_out(self, layer: int, signals: list[Signal], module: nn.Module, args: Any, output: Any) -> None:
        if self._run is None:
            return
        states: Tensor = (output[0] if isinstance(output, tuple) else output).detach()
        if self._run.grids is not None:  # [T, 1, D], or [T, D]
            states = states.reshape(1, -1, states.shape[-1])
        self._measure(layer, signals, [states])

    def _measure(self, layer: int, signals: list[Signal], places: Sequence[Any]) -> None:
        """[B, T(, d)] of each signal, per token that the tower hands over, in their own order."""
        assert self._run is not None
        first = int(self.parts.facts.has_cls)
        for signal in signals:
            values = torch.cat([signal.of(place)[:, first:] for place in places], dim=1)
            mean, folded = signal.fold == "mean", self.parts.folded
            values = self.parts.facts.tokens_from_patches(self.parts.tower, values, self._run.grids, mean)
            self._run.measured[signal.name, layer] = values if folded is None else folded(values, mean)[None]

    def of_pictures(self, run: Run, sizes: Sequence[int]) -> list[dict[str, Tensor]]:
        """What `vtc.select` takes by keyword, [L, N(, d)] or [N(, d)], of each picture of a run, with so many tokens."""
        found: list[dict[str, Tensor]] = [{} for _ in sizes]
        for name, layers in self.wanted.items():
            if not layers:  # a CLS token's, of a tower without
                for own, size in zip(found, sizes, strict=True):
                    own[name] = torch.zeros(0, size)
                continue
            rows = [run.measured[name, layer].flatten(0, 1).split(list(sizes)) for layer in layers]
            for number, own in enumerate(found):
                values = torch.stack([row[number] for row in rows])
                own[name] = values if "L" in SIGNALS[name].shape else values[0]
        return found
