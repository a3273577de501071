"""DenoisingEngine: models that denoise their answer block by block, each step of which reads the cached prompt.

Hook by hook:

1. the encoder, after: a prompt, or a finished block, has been read into the cache; which of its rows are visual. The
   next block begins;
2. the decoder, before: one denoising step. From the step after `LateStep.after` on it is handed another cache, with
   fewer rows, the columns of its masks that belong to them, and its positions, which stay;
3. one layer's attention, after, in the last step that reads everything: what the block attends to.

The cache itself is never changed, so that the next block is read on top of all of it. State belongs to a cache, and
ends with it.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers.cache_utils import Cache

from vtc import ops
from vtc.engine.compiled import forget_graphs
from vtc.engine.kv_cache import rows_of
from vtc.engine.versions import cache_name, cache_of, length_of
from vtc.methods.base.method import Method
from vtc.methods.late_step import LateStep
from vtc.reports import Report, StageReport, Stopwatch


class Rows(NamedTuple):
    """Rows of the cache that later steps read, LongTensor [B, M]; and BoolTensor [B, M], False for what fills up
    shorter ones, None where all are equally long."""

    index: Tensor
    there: Tensor | None


@dataclass
class Denoising:
    """What is known of one cache.

    Attributes:
        visual: BoolTensor [B, L] in main memory, visual tokens of all that has been read. step: of the block in
            progress, from 1. taken: steps that read less, of all blocks. steps: all of them.
        attention: [B, K] that the block's tokens gave each key in the last step that read everything.
        gone: per batch row, LongTensor of positions that later steps of the block do not read. short: what they read.
    """

    visual: Tensor
    step: int = 0
    steps: int = 0
    taken: int = 0
    attention: Tensor | None = None
    gone: list[Tensor] = field(default_factory=list)
    short: Cache | None = None
    kept: dict[str, Rows] = field(default_factory=dict)  # by kind of layer
    watch: Stopwatch | None = None


class DenoisingEngine:
    """`late-step` on one model; `attach` and `detach` are exact opposites."""

    def __init__(self, model: Any, methods: tuple[Method, ...]) -> None:
        self.model, self.methods = model, methods
        config = model.config
        if len(methods) != 1 or not isinstance(methods[0], LateStep):
            other = next((m for m in methods if not isinstance(m, LateStep)), methods[0])
            raise ValueError(
                f"{config.model_type} writes by denoising blocks of text, where vtc has one method, alone: "
                f"late-step(after=8, keep=0.25); {other.title} is for models that write token by token."
            )
        self.method = methods[0]
        self.base, self.text = model.model, config.get_text_config()
        kinds = list(self.text.layer_types)
        self.decider = self.method.deciding_layer(kinds)
        self.kinds = kinds
        self.states: WeakKeyDictionary[Cache, Denoising] = WeakKeyDictionary()
        self.last: Denoising | None = None
        self.handles: list[RemovableHandle] = []

    def attach(self) -> None:
        decider = self.base.decoder.layers[self.decider].self_attn
        self.handles = [
            self.base.encoder.register_forward_hook(self._after_encoder, with_kwargs=True),
            self.base.decoder.register_forward_pre_hook(self._before_step, with_kwargs=True),
            decider.register_forward_hook(self._after_attention, with_kwargs=True),
        ]
        forget_graphs()

    def detach(self) -> None:
        for handle in self.handles:
            handle.remove()
        self.handles.clear()
        forget_graphs()

    # -- 1: what the cache holds -------------------------------------------------------------------------------

    def _after_encoder(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        cache, ids = cache_of(output), kwargs.get("input_ids", args[0] if args else None)
        if cache is None or ids is None:
            return
        pictures = kwargs.get("pixel_values") is not None or bool(kwargs.get("mm_encoder_outputs"))
        new = (ids == self.model.config.image_token_id).cpu() & pictures
        known = self.states.get(cache)
        before = torch.zeros(len(new), length_of(cache) - new.shape[1], dtype=torch.bool)
        visual = torch.cat([before if known is None else known.visual, new], dim=1)
        if known is None and not bool(visual.any()):
            return
        if getattr(cache, "is_compileable", False):
            raise ValueError(
                'a static KV cache has a fixed length: leave out cache_implementation="static" under late-step.'
            )
        state = Denoising(visual)
        if known is not None:
            state.steps, state.taken = known.steps, known.taken
        self.states[cache] = self.last = state

    # -- 2: one denoising step ---------------------------------------------------------------------------------

    def _before_step(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        cache = cache_of(kwargs)
        state = None if cache is None else self.states.get(cache)
        if state is None:
            return None
        state.step, state.steps = state.step + 1, state.steps + 1
        if state.step <= self.method.after:
            return None
        canvas: Tensor = kwargs["decoder_input_ids"] if "decoder_input_ids" in kwargs else args[0]
        if state.short is None:
            self._choose(state, cache)
        state.taken += 1
        masks = kwargs.get("decoder_attention_mask")
        if not isinstance(masks, dict):
            masks = module.create_diffusion_decoder_attention_mask(
                config=self.text,
                inputs_embeds=canvas.unsqueeze(-1).to(module.embed_tokens.weight.dtype),
                decoder_attention_mask=masks,
                **{cache_name(): cache},
            )
        positions = kwargs.get("decoder_position_ids")
        if positions is None:
            start = length_of(cache)
            positions = torch.arange(start, start + canvas.shape[1], device=canvas.device)[None]
        kwargs = {
            **kwargs,
            cache_name(): state.short,
            "decoder_position_ids": positions,
            "decoder_attention_mask": {
                kind: self._columns(mask, state.kept[kind], canvas.shape[1]) for kind, mask in masks.items()
            },
        }
        return args, kwargs

    def _choose(self, state: Denoising, cache: Any) -> None:
        """What the later steps of a block read."""
        assert state.attention is not None
        device, length = state.attention.device, state.visual.shape[1]
        watch, state.gone = Stopwatch(device), []
        for row, visual in enumerate(state.visual):
            gone = []
            for own in _runs(visual):
                here = own.to(device)
                later = self.method.read_later(state.attention[row, here], len(own))
                stays = torch.zeros(len(own), dtype=torch.bool, device=device).index_fill_(0, later, True)
                gone.append(here[~stays])
            state.gone.append(torch.cat(gone) if gone else torch.empty(0, dtype=torch.long, device=device))
        short = copy.copy(cache)
        short.layers = list(cache.layers)
        for i, layer in enumerate(cache.layers):
            kind, held = self.kinds[i], layer.keys.shape[2]
            if kind not in state.kept:
                state.kept[kind] = self._rows(state.gone, length, held)
            own = short.layers[i] = copy.copy(layer)
            own.keys, own.values = (rows_of(x, state.kept[kind].index) for x in (layer.keys, layer.values))
        state.short, state.watch = short, watch.stop()

    def _rows(self, gone: list[Tensor], length: int, held: int) -> Rows:
        """The rows that stay, of layers that hold the last `held` of `length` tokens."""
        keep = torch.ones(len(gone), length, dtype=torch.bool, device=gone[0].device)
        for row, own in enumerate(gone):
            keep[row, own] = False
        keep = keep[:, length - held :]
        counts = keep.sum(dim=1).tolist()
        order = keep.to(torch.uint8).argsort(dim=1, stable=True)[:, held - max(counts) :]  # what stays goes last
        return Rows(order, keep.gather(1, order) if len({*counts}) > 1 else None)

    def _columns(self, mask: Tensor | None, rows: Rows, block: int) -> Tensor | None:
        """The mask [B or 1, 1, C, K + C] of a block of C tokens, with the columns of cached rows that are read, and its
        own; None = everything is seen."""
        index, there = rows
        if mask is None and there is None:
            return None
        count = len(index)
        there = None if there is None else torch.nn.functional.pad(there, (0, block), value=True)[:, None, None]
        if mask is None:
            assert there is not None
            how = self.text._attn_implementation
            if how not in ("sdpa", "eager"):
                raise ValueError(
                    f"rows of this batch keep unequally many tokens, for which {how} needs a mask that it has no room "
                    'for: give prompts one at a time, or load the model with attn_implementation="sdpa".'
                )
            seen = there.expand(-1, -1, block, -1)
            low = torch.finfo(self.base.dtype).min
            return seen if how == "sdpa" else torch.zeros(seen.shape, device=seen.device).masked_fill(~seen, low)
        index = index.to(mask.device)
        own = torch.arange(mask.shape[3] - block, mask.shape[3], device=mask.device).expand(count, -1)
        columns = torch.cat([index, own], dim=1)[:, None, None].expand(-1, mask.shape[1], block, -1)
        mask = mask.expand(count, -1, -1, -1).gather(3, columns)
        if there is None:
            return mask
        low = False if mask.dtype == torch.bool else torch.finfo(mask.dtype).min
        return mask.masked_fill(~there.to(mask.device), low)

    # -- 3: what the block attends to --------------------------------------------------------------------------

    def _after_attention(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        cache: Any = cache_of(kwargs)
        state = None if cache is None else self.states.get(cache)
        if cache is None or state is None or state.step != self.method.after:
            return
        x: Tensor = args[0] if args else kwargs["hidden_states"]
        with torch.no_grad():
            held: Any = cache
            state.attention = self._attention(module, x.detach(), kwargs, held.layers[self.decider].keys)

    def _attention(self, module: Any, x: Tensor, kwargs: dict[str, Any], cached: Tensor) -> Tensor:
        """[B, K]: mean attention that a block's tokens x [B, C, D] give each cached key."""
        from transformers.models.diffusion_gemma.modeling_diffusion_gemma import apply_rotary_pos_emb

        cos, sin = kwargs["position_embeddings"]
        shape = (*x.shape[:-1], -1, module.head_dim)
        queries, own = (
            apply_rotary_pos_emb(norm(proj(x).view(shape)), cos, sin, unsqueeze_dim=2).transpose(1, 2)
            for proj, norm in ((module.q_proj, module.q_norm), (module.k_proj, module.k_norm))
        )
        keys = torch.cat([cached, own], dim=2)
        mask = kwargs.get("attention_mask")
        seen = None
        if mask is not None:  # one row for all: the block sees everything but padding
            row = mask[:, 0, 0, : keys.shape[2]].expand(len(x), -1)
            seen = row if row.dtype == torch.bool else row == 0
        at = torch.full(queries.shape[:1] + queries.shape[2:3], keys.shape[2] - 1, device=x.device)
        received = ops.received_attention(queries, keys, module.scaling, at, seen)
        return received[:, : cached.shape[2]]

    # -- afterwards --------------------------------------------------------------------------------------------

    def report(self) -> Report:
        """The last block: visual tokens that its first and its later steps read, over all rows."""
        state = self.last
        if state is None:
            return Report()
        total = int(state.visual.sum())
        left = total - sum(len(own) for own in state.gone) if state.short is not None else total
        note = (
            f"late-step: {state.taken} of {state.steps} denoising steps read less than everything, {left} of {total} "
            "visual tokens in the last block; the others rest in memory for the next one, so the KV cache is no "
            "smaller."
        )
        ms = 0.0 if state.watch is None else state.watch.ms
        return Report(stages=[StageReport("late-step", len(self.kinds), total, left, ms)], notes=[note])


def _runs(visual: Tensor) -> list[Tensor]:
    """LongTensors: the places of each picture's tokens in a row [L], pictures being apart from each other."""
    places = visual.nonzero()[:, 0]
    starts = (places.diff() > 1).nonzero()[:, 0] + 1
    return [run for run in torch.tensor_split(places, starts) if len(run)]
