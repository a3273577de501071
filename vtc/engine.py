"""Engine: hooks on a model that compress its visual tokens and keep everything else right.

Hook by hook, in the order in which a forward meets them:

1. the whole model: refuse what is not supported, before any compute;
2. the base model: note which tokens of the batch are visual;
3. the vision tower: note the signals that the methods ask for (`tap.py`);
4. the language model, before: choose (`methods/`), plan (`plan.py`), shorten embeddings, mask and positions;
5. its rotary embedding: rotate by the tokens' own positions;
6. the language model, after: give hidden states their old length back, mark the KV cache as shortened (`cache.py`).

`forward` is never replaced, and no state is kept outside this object and the cache.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from vtc.cache import CompressedLayer, check_cache, compressed, later_mask
from vtc.choose import choose
from vtc.layout import VisualSpan
from vtc.methods.base import Method
from vtc.models import adapter_for
from vtc.models.base import TowerCall
from vtc.plan import Plan
from vtc.record import Record
from vtc.report import Report
from vtc.sources import Sources
from vtc.spans import find_layout
from vtc.tap import ATTRIBUTE, TowerTap


@dataclass
class Forward:
    """What is known of the forward in progress."""

    visual: Tensor | None = None  # BoolTensor [B, L]
    encoded: Any = None  # the tower's output object, if it was handed in
    grid_thw: Tensor | None = None
    plan: Plan | None = None
    shift: Tensor | None = None
    mask: Tensor | None = None  # BoolTensor [B, held rows], after compression
    positions: Tensor | None = None  # what the rotary embedding shall see


class Engine:
    """Compression of one model by one or more methods; `attach` and `detach` are exact opposites."""

    def __init__(self, model: nn.Module, methods: tuple[Method, ...]) -> None:
        self.model, self.methods = model, methods
        self.adapter = adapter_for(model)
        for method in methods:
            if method.stage != "input":
                raise ValueError(f"{method.title} works at stage {method.stage!r}; this version has the stage 'input'.")
        self.compact = any(method.positions == "compact" for method in methods)
        self.sources = Sources(model, self.adapter, methods)
        self.tap = TowerTap(model, self.adapter, self.sources.wanted)
        self.handles: list[RemovableHandle] = []
        self.forward: Forward | None = None
        self.record = Record()

    # -- attach, detach ----------------------------------------------------------------------------------------

    def attach(self) -> None:
        model, adapter = self.model, self.adapter
        base, lm = adapter.base(model), adapter.language_model(model)
        owner = hooked_by(lm)
        if owner is not None and owner is not self:
            raise ValueError(
                "this model's parts are already wrapped through another model object; vtc.unwrap that one first."
            )
        self.handles += [
            model.register_forward_pre_hook(self._before_model, with_kwargs=True),
            base.register_forward_pre_hook(self._before_base, with_kwargs=True),
            base.register_forward_hook(self._after_base, always_call=True),
            lm.register_forward_pre_hook(self._before_lm, with_kwargs=True),
            lm.register_forward_hook(self._after_lm, with_kwargs=True),
        ]
        if not adapter.mrope:
            self.handles.append(lm.rotary_emb.register_forward_pre_hook(self._before_rotary, with_kwargs=True))
        self.tap.attach()

    def detach(self) -> None:
        for handle in self.handles:
            handle.remove()
        self.handles.clear()
        self.tap.detach()

    # -- 1, 2: what is this batch? -----------------------------------------------------------------------------

    def _before_model(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = _bind(module, args, kwargs)
        if given.get("labels") is not None:
            raise ValueError(
                "labels are not supported on a wrapped model: train it unwrapped (vtc.unwrap), wrap it for inference."
            )
        check_cache(given.get("past_key_values"))
        mask = given.get("attention_mask")
        if isinstance(mask, dict) or (isinstance(mask, Tensor) and mask.dim() != 2):
            raise ValueError("attention_mask must be 2-D, [batch, length], on a wrapped model (or left out).")

    def _before_base(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = _bind(module, args, kwargs)
        past = given.get("past_key_values")
        decoding = past is not None and past.get_seq_length() > 0
        encoded = (given.get("mm_encoder_outputs") or {}).get("image")
        has_images = encoded is not None or given.get("pixel_values") is not None
        self.forward = None
        if not decoding:
            self.record = Record()
        if decoding and not has_images and (given.get("input_ids") is not None or given["inputs_embeds"].shape[1] == 1):
            return  # a decode step, or a turn of plain text
        visual = self._visual_mask(given, has_images)
        if visual is not None:
            self.tap.latest = None
            self.forward = Forward(visual=visual, encoded=encoded, grid_thw=given.get("image_grid_thw"))

    def _visual_mask(self, given: dict[str, Any], has_images: bool) -> Tensor | None:
        """BoolTensor [B, L] of visual tokens, None for plain text; refuses what cannot be told."""
        ids, embeds, types = given.get("input_ids"), given.get("inputs_embeds"), given.get("mm_token_type_ids")
        image_id = self.adapter.image_token_id(self.model)
        if (
            given.get("pixel_values_videos") is not None
            or (given.get("mm_encoder_outputs") or {}).get("video") is not None
        ):
            raise ValueError(
                "this prompt holds a video; vtc compresses images so far: vtc.unwrap the model for videos."
            )
        if ids is not None:
            return ids == image_id if has_images else None
        assert embeds is not None
        if types is not None:
            types = types[:, -embeds.shape[1] :]
            return types == 1
        if has_images:  # transformers itself looks for the placeholder's embedding
            table: Any = self.model.get_input_embeddings
            placeholder = table()(torch.tensor(image_id, device=embeds.device))
            return (embeds == placeholder).all(dim=-1)
        raise ValueError(
            "inputs_embeds came without input_ids, so vtc cannot tell which tokens are visual: pass input_ids, "
            "or mm_token_type_ids [batch, length] with 1 at image tokens (all 0 for plain text)."
        )

    def _after_base(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self.forward = None  # also after an exception
        self.tap.latest = None

    # -- 4: shorten --------------------------------------------------------------------------------------------

    def _before_lm(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        state, embeds = self.forward, kwargs.get("inputs_embeds")
        cache = kwargs.get("past_key_values")
        past = compressed(cache)
        if embeds is None:
            return None
        if state is None or state.visual is None:
            return (args, self._continue(kwargs, past)) if past is not None else None
        output = state.encoded if state.encoded is not None else self.tap.latest
        call: TowerCall | None = getattr(output, ATTRIBUTE, None)
        grid = call.grid_thw if call is not None and call.grid_thw is not None else state.grid_thw
        pooled = getattr(output, "pooler_output", None)
        layout = find_layout(self.adapter, self.model, state.visual, embeds, pooled, grid, call)
        if not layout.spans:
            return (args, self._continue(kwargs, past)) if past is not None else None

        mask = kwargs.get("attention_mask")
        words = ~state.visual if mask is None else ~state.visual & mask[:, -layout.length :].bool()

        def reader(method: Method, span: VisualSpan) -> Callable[[str], Tensor]:
            def text(row: int) -> Tensor:
                return embeds[row, words[row].to(embeds.device)]

            return self.sources.reader(method, span, call, text, embeds.device)

        self.record = Record(notes=list(self.sources.notes))
        selections = choose(self.methods, layout, embeds, reader, self.compact, self.record)
        return args, self._shorten(kwargs, Plan.of(layout, selections, embeds.device), past)

    def _shorten(self, kwargs: dict[str, Any], plan: Plan, past: CompressedLayer | None) -> dict[str, Any]:
        """The language model's arguments for the shortened batch."""
        state = self.forward
        assert state is not None
        kwargs = dict(kwargs)
        embeds: Tensor = kwargs["inputs_embeds"]
        cache = kwargs.get("past_key_values")
        seen = cache.get_seq_length() if cache is not None else 0  # logical
        rows, length, _ = embeds.shape

        short = plan.gather(embeds)
        for span, selection in zip(plan.layout.spans, plan.selections, strict=True):
            if selection.merges:
                features = embeds[span.row, span.index.to(embeds.device)]
                short[span.row, plan.slots_of(span, selection)] = selection.apply(features)
        kwargs["inputs_embeds"] = short

        mask = kwargs.get("attention_mask")
        full = torch.ones(rows, length, dtype=torch.bool, device=embeds.device)
        full = full if mask is None else mask[:, -length:].bool().to(embeds.device)
        self.record.note_plan(plan, full)
        no_gaps = mask is None and not plan.ragged and (past is None or past.mask is None)
        if no_gaps:
            state.mask = None
            # A mask without zeros, where there is no cache: keeps transformers from reading gaps as packed sequences.
            kwargs["attention_mask"] = None if cache is not None else full[:, : plan.width]
        else:
            own = full.gather(1, plan.slot) & plan.valid
            dropped = 0 if past is None else past.dropped
            before = self._earlier(mask, past, rows, seen, embeds.device)  # [B, dropped + held]
            kwargs["attention_mask"] = torch.cat([before, own], dim=1)
            state.mask = kwargs["attention_mask"][:, dropped:]

        ids = kwargs.get("position_ids")
        if ids is None:
            ids = torch.arange(seen, seen + length, device=embeds.device)[None]
            if past is not None and past.shift is not None:
                ids = ids - past.shift[:, None].to(ids.device)
        elif past is not None and past.shift is not None:
            ids = self._shifted(ids, past.shift)
        text = torch.arange(seen, seen + plan.width, device=embeds.device).expand(rows, -1)
        if self.adapter.mrope:
            grid = ids[-3:] if ids.dim() == 3 else ids.expand(3, -1, -1)
            grid, state.shift = plan.positions(grid.expand(3, rows, -1), self.compact)
            kwargs["position_ids"] = torch.cat([text[None], grid])
        else:
            state.positions, state.shift = plan.positions(ids.expand(rows, -1), self.compact)
            kwargs["position_ids"] = text
        if past is not None and past.shift is not None:
            state.shift = state.shift + past.shift.to(state.shift.device)

        if kwargs.get("visual_pos_masks") is not None:  # DeepStack: rows added to the first layers' visual tokens
            kwargs["visual_pos_masks"] = plan.visual()
            kwargs["deepstack_visual_embeds"] = [plan.merged(x) for x in kwargs["deepstack_visual_embeds"]]
        state.plan = plan
        return kwargs

    def _earlier(
        self, mask: Tensor | None, past: CompressedLayer | None, rows: int, seen: int, device: torch.device
    ) -> Tensor:
        """BoolTensor [B, seen]: the mask of what the cache already stands for."""
        earlier = None if mask is None else mask[:, :seen]
        if past is not None:
            found = later_mask(past, earlier, rows, seen, device)
            if found is not None:
                return found
        return torch.ones(rows, seen, dtype=torch.bool, device=device) if earlier is None else earlier.bool().to(device)

    def _continue(self, kwargs: dict[str, Any], past: CompressedLayer) -> dict[str, Any]:
        """Arguments of a forward without visual tokens on a compressed cache: decode steps, text-only turns."""
        kwargs = dict(kwargs)
        embeds: Tensor = kwargs["inputs_embeds"]
        rows, length, _ = embeds.shape
        seen = kwargs["past_key_values"].get_seq_length()
        mask = kwargs.get("attention_mask")
        if past.keys is not None and past.keys.shape[0] != rows:
            raise ValueError(
                f"the compressed cache holds {past.keys.shape[0]} rows, the input {rows}; they must agree."
            )
        if mask is None or mask.dim() == 2:
            kwargs["attention_mask"] = later_mask(past, mask, rows, seen + length, embeds.device)
        if past.shift is not None:
            ids = kwargs.get("position_ids")
            if ids is None:
                ids = torch.arange(seen, seen + length, device=embeds.device).expand(rows, -1)
            kwargs["position_ids"] = self._shifted(ids, past.shift)
        return kwargs

    def _shifted(self, ids: Tensor, shift: Tensor) -> Tensor:
        """Position ids [B, T], [3, B, T] or [4, B, T] (row 0 counts tokens), moved down by `shift` [B]."""
        moved = ids - shift[:, None].to(ids.device)
        return torch.cat([ids[:1].expand_as(moved[:1]), moved[1:]]) if ids.dim() == 3 and len(ids) == 4 else moved

    # -- 5, 6: rotate, give back -------------------------------------------------------------------------------

    def _before_rotary(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        state = self.forward
        if state is None or state.positions is None:
            return None
        return (args[:1], {**kwargs, "position_ids": state.positions})

    def _after_lm(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        state = self.forward
        if state is None or state.plan is None:
            return None
        plan = state.plan
        output.last_hidden_state = plan.restore(output.last_hidden_state)
        if getattr(output, "hidden_states", None):
            output.hidden_states = tuple(plan.restore(x) for x in output.hidden_states)
        cache = output.past_key_values
        if cache is not None:
            moved = state.shift if self.compact else None
            lost = plan.layout.length - plan.width
            for i, layer in enumerate(cache.layers):
                before = layer.dropped if isinstance(layer, CompressedLayer) else 0
                cache.layers[i] = CompressedLayer.of(layer, before + lost, state.mask, moved)
        return output

    def report(self) -> Report:
        return self.record.report(self.adapter.language_model(self.model))


def hooked_by(module: nn.Module) -> Engine | None:
    """The engine that has hooks on this module, if any."""
    for hook in module._forward_pre_hooks.values():
        owner = getattr(hook, "__self__", None)
        if isinstance(owner, Engine):
            return owner
    return None


def _bind(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments of a call by name."""
    if not args:
        return kwargs
    names = list(inspect.signature(module.forward).parameters)
    return {**dict(zip(names, args, strict=False)), **kwargs}
