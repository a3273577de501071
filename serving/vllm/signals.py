"""Signals of a vision tower that vLLM runs: hooks read queries and keys as its attention is given them.

All of vLLM's towers attend through one class, `MMEncoderAttention`, which is handed queries and keys as they are
multiplied (rotated, normed), [B, T, heads * d] or [B, T, heads, d]. What a method asks for is made of them by the rows
of `vtc.signals.SIGNALS`, as it is on transformers.
"""

# pyright: reportMissingImports=false
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


def wanted_of(method: Method, facts: Tower, depth: int, feature_layer: int) -> dict[str, tuple[int, ...]]:
    """By signal of the tower, the blocks (0-based, of `depth`) that `method` wants it measured at; none where it would
    be a CLS token's and the tower has none. Received attention stands in for the CLS token's."""
    wanted, layers = {}, method.tower_layers(depth, feature_layer)
    for name in of_place(method.requires(), "tower"):
        signal = SIGNALS[name]
        if signal.of_cls and not facts.has_cls:
            wanted[name] = ()
        else:
            row = signal if facts.has_cls or signal.stand_in is None else SIGNALS[signal.stand_in]
            wanted[row.name] = layers if "L" in row.shape else (feature_layer,)
    return wanted


def deepest(wanted: Mapping[str, tuple[int, ...]]) -> int:
    """The last block that is listened to; -1 = none is."""
    return max((layer for layers in wanted.values() for layer in layers), default=-1)


class TowerTaps:
    """Measures what `method` reads of a tower, whenever that runs within `listening`.

    Example: VTC-CLS on a tower of 24 blocks that hands over block 22's output asks for `cls_attention` of blocks 11 to
    22; after a run with two pictures `of_pictures(run, [576, 576])` holds {"cls_attention": [12, 576]} for each.

    Raises:
        ValueError: it reads a block that vLLM has not built.
    """

    def __init__(self, parts: Parts, method: Method) -> None:
        self.parts = parts
        self.wanted = wanted_of(method, parts.facts, parts.depth, parts.feature_layer)
        self._run: Run | None = None
        if deepest(self.wanted) >= len(parts.blocks):
            raise ValueError(
                f"{method.title} reads block {deepest(self.wanted)} of the vision tower, of which vLLM has built the "
                f"first {len(parts.blocks)}, whose features the model takes: choose another method, such as divprune."
            )
        self._undo = [undo for layer in range(deepest(self.wanted) + 1) for undo in self._tap(layer)]

    def _tap(self, layer: int) -> Iterator[Callable[[], None]]:
        """Listen to block `layer` as far as anything is wanted of it; how to stop that again."""
        here = [SIGNALS[name] for name, layers in self.wanted.items() if layer in layers]
        if attended := [signal for signal in here if not signal.of_block]:
            hear = partial(self._attends, layer, attended)
            yield self.parts.attention(layer).register_forward_pre_hook(hear, with_kwargs=True).remove
        if after := [signal for signal in here if signal.of_block]:
            block = self.parts.blocks[layer]
            # not by a hook: blocks that vLLM can compile call `forward` past theirs
            block.forward = self._heard(block.forward, partial(self._puts_out, layer, after))
            yield partial(delattr, block, "forward")

    @staticmethod
    def _heard(forward: Callable[..., Any], hear: Callable[[Any], None]) -> Callable[..., Any]:
        def heard(*args: Any, **kwargs: Any) -> Any:
            output = forward(*args, **kwargs)
            hear(output)
            return output

        return heard

    def close(self) -> None:
        """Leave the tower as it was."""
        for undo in self._undo:
            undo()

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

    def _puts_out(self, layer: int, signals: list[Signal], output: Any) -> None:
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
        """What `vtc.select` takes by keyword, [L, N(, d)] or [N(, d)], of each picture (N tokens) of a run."""
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
