"""Engine: hooks on a model that compress its visual tokens and keep everything else right.

Hook by hook, in the order in which a forward meets them:

1. the whole model: refuse what is not supported, before any compute;
2. the base model: note which tokens of the batch are visual;
3. the vision tower: note the signals that the methods ask for (`tap.py`);
4. the language model, before: choose (stage `input`), shorten embeddings, mask and positions (`flow.py`);
5. its rotary embedding: rotate by the tokens' own positions;
6. its layers: choose again between them (stage `layer`, `layers.py`), give each its mask and positions;
7. the language model, after: give hidden states their old length back, mark the KV cache as shortened (`cache.py`)
   and drop more of its rows, or let decode steps read a part of them (stage `cache`, `evict.py`, `active.py`).

`forward` is never replaced, and no state is kept outside this object and the cache.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from vtc.engine.find_layout import Seen, find_layout, numbered
from vtc.engine.flow import Flow
from vtc.engine.input import choose
from vtc.engine.kv_cache import CompressedLayer, check_cache
from vtc.engine.kv_evict import Evictor
from vtc.engine.kv_read import Activator
from vtc.engine.layer import Layers, TowerReader
from vtc.engine.sources import Sources
from vtc.engine.tower_signals import ATTRIBUTE, TowerTap
from vtc.engine.trace import Record
from vtc.engine.versions import cache_of
from vtc.layout import VisualSpan
from vtc.methods.base.cache import ActiveMethod, CacheMethod
from vtc.methods.base.layer import LayerMethod
from vtc.methods.base.method import STAGES, Method
from vtc.models import adapter_for
from vtc.models.family import GRIDS, PIXELS
from vtc.reports import Report
from vtc.signals import text_raters


@dataclass
class Prompt:
    """What is known of a forward's images, or of its videos, before they reach the language model."""

    modality: str
    visual: Tensor  # BoolTensor [B, L]
    encoded: Any = None  # the tower's output object, if it was handed in
    grid_thw: Tensor | None = None
    frames: Tensor | None = None  # see spans.Seen


class Engine:
    """Compression of one model by one or more methods; `attach` and `detach` are exact opposites."""

    def __init__(self, model: nn.Module, methods: tuple[Method, ...], processor: Any = None) -> None:
        self.model, self.methods = model, methods
        self.adapter = adapter_for(model)
        self.frame_marks = self.adapter.frame_marks(processor)
        parts = tuple(part for method in methods for part in method.parts())
        config: Any = model.config
        for part in parts:
            base = {"layer": LayerMethod, "cache": CacheMethod, "input": Method}.get(part.stage)
            if base is None or not isinstance(part, base):
                remedy = f"make it a vtc.{base.__name__}" if base else "there are input, layer and cache"
                raise ValueError(f"{part.title} says it works at stage {part.stage!r}; {remedy}.")
            part.check_model(config.model_type, self.adapter.language_model(model).config.hidden_size)
        for one, two in pairwise(parts):
            if STAGES.index(one.stage) > STAGES.index(two.stage):
                raise ValueError(
                    f"{two.title} (stage {two.stage!r}) comes after {one.title} (stage {one.stage!r}): name methods in "
                    f"the order in which they act, {' before '.join(STAGES[1:])}."
                )
        self.inputs = tuple(part for part in parts if part.stage == "input")
        self.layers = Layers(model, self.adapter, [part for part in parts if isinstance(part, LayerMethod)])
        resting = [part for part in parts if isinstance(part, ActiveMethod)]
        evicting = [part for part in parts if isinstance(part, CacheMethod) and part not in resting]
        self.evictor = Evictor(model, self.adapter, evicting)
        self.activator = Activator(model, self.adapter, self.evictor, resting)
        self.compact = any(part.positions == "compact" for part in parts if part.stage != "cache")
        self.sources = Sources(model, self.adapter, parts)
        self.tap = TowerTap(model, self.adapter, self.sources.wanted)
        self.handles: list[RemovableHandle] = []
        self.prompts: list[Prompt] = []  # images first, as the tower reads them
        self.flow: Flow | None = None
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
        self.handles += self.layers.attach() + self.evictor.attach() + self.activator.attach()
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
        check_cache(cache_of(given))
        self.evictor.check(given)
        self.activator.check(given)
        mask = given.get("attention_mask")
        if isinstance(mask, dict) or (isinstance(mask, Tensor) and mask.dim() != 2):
            raise ValueError("attention_mask must be 2-D, [batch, length], on a wrapped model (or left out).")

    def _before_base(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = _bind(module, args, kwargs)
        past = cache_of(given)
        decoding = past is not None and past.get_seq_length() > 0
        encoded = given.get("mm_encoder_outputs") or {}
        brought = [m for m in PIXELS if encoded.get(m) is not None or given.get(PIXELS[m]) is not None]
        self.prompts = []
        if not decoding:
            self.record = Record()
        if decoding and not brought and (given.get("input_ids") is not None or given["inputs_embeds"].shape[1] == 1):
            return  # a decode step, or a turn of plain text
        masks = self._visual_masks(given, brought)
        self.tap.outputs.clear()
        marks, ids = self.frame_marks, given.get("input_ids")
        self.prompts = [
            Prompt(m, mask, encoded.get(m), given.get(GRIDS[m]), numbered(ids, mask, marks) if marks else None)
            for m, mask in masks.items()
        ]

    def _visual_masks(self, given: dict[str, Any], brought: list[str]) -> dict[str, Tensor]:
        """BoolTensor [B, L] of each modality's tokens, none for plain text; refuses what cannot be told."""
        ids, embeds, types = given.get("input_ids"), given.get("inputs_embeds"), given.get("mm_token_type_ids")
        if ids is not None:
            if not brought and bool((ids == self.adapter.token_id(self.model, "image")).any()):
                raise ValueError(
                    "the prompt has image tokens, but no pixel_values came with them: pass all that the processor "
                    "returned, in one forward (generate's prefill_chunk_size is not supported on a wrapped model)."
                )
            return {m: ids == self.adapter.token_id(self.model, m) for m in brought}
        assert embeds is not None
        if types is not None:
            types = types[:, -embeds.shape[1] :]
            return {m: types == number for number, m in enumerate(PIXELS, start=1)}
        if brought:  # transformers itself looks for the placeholder's embedding
            table: Any = self.model.get_input_embeddings
            found = {}
            for m in brought:
                placeholder = table()(torch.tensor(self.adapter.token_id(self.model, m), device=embeds.device))
                found[m] = (embeds == placeholder).all(dim=-1)
            return found
        raise ValueError(
            "inputs_embeds came without input_ids, so vtc cannot tell which tokens are visual: pass input_ids, "
            "or mm_token_type_ids [batch, length] with 1 at image and 2 at video tokens (all 0 for plain text)."
        )

    def _after_base(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self.prompts, self.flow = [], None  # also after an exception
        self.tap.outputs.clear()
        self.layers.end()
        self.evictor.end()
        self.activator.end()

    # -- 4: shorten --------------------------------------------------------------------------------------------

    def _before_lm(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        embeds, cache = kwargs.get("inputs_embeds"), cache_of(kwargs)
        if embeds is None:
            return None
        self.activator.before(cache, embeds.shape[1] == 1 and not self.prompts)
        seen = self._seen()
        layout = find_layout(self.adapter, self.model, embeds, seen) if seen else None
        if layout is None or not layout.spans:
            if not any(isinstance(layer, CompressedLayer) for layer in getattr(cache, "layers", ())):
                return None
            layout = None
        else:
            self.layers.check(layout.spans)
        kwargs = dict(kwargs)
        flow = self.flow = Flow(
            self.adapter.language_model(self.model), kwargs, layout, self.compact, self.adapter.mrope
        )
        if layout is not None:
            self.record = Record(notes=list(self.sources.notes))
            self.record.begin(flow)
            read = self._tower_reader(seen, kwargs)
            self.layers.begin(flow, self.record, read)
            self._compress(flow, kwargs, read)
        else:
            self.layers.begin(flow, self.record, None)
        self.evictor.begin(flow, self.record)
        self.activator.begin(flow, self.record)
        part = flow.part
        mask = flow.visible(0, part)
        if mask is None and cache is None:
            # A mask without zeros: keeps transformers from reading gaps in the positions as packed sequences.
            mask = torch.ones(flow.rows, part.width, dtype=torch.bool, device=embeds.device)
        kwargs["attention_mask"] = mask
        text = flow.text_positions(part)
        kwargs["position_ids"] = torch.cat([text[None], part.positions]) if self.adapter.mrope else text
        return args, kwargs

    def _seen(self) -> list[Seen]:
        """The prompts, with what the tower made of their pixels."""
        found, ran = [], iter(self.tap.outputs)
        for prompt in self.prompts:
            output = prompt.encoded if prompt.encoded is not None else next(ran, None)
            call = getattr(output, ATTRIBUTE, None)
            grid = call.grid_thw if call is not None and call.grid_thw is not None else prompt.grid_thw
            pooled = getattr(output, "pooler_output", None)
            found.append(Seen(prompt.modality, prompt.visual, pooled, grid, call, prompt.frames))
        return found

    def _tower_reader(self, seen: list[Seen], kwargs: dict[str, Any]) -> TowerReader:
        embeds, mask = kwargs["inputs_embeds"], kwargs.get("attention_mask")
        words = ~torch.stack([one.visual for one in seen]).any(dim=0)
        words = words if mask is None else words & mask[:, -embeds.shape[1] :].bool()
        calls = {one.modality: one.call for one in seen}
        if len(seen) == 1:  # a family that reads videos as images
            calls = dict.fromkeys(PIXELS, seen[0].call)

        def reader(method: Method, span: VisualSpan) -> Callable[[str], Tensor]:
            def text(row: int) -> Tensor:
                return embeds[row, words[row].to(embeds.device)]

            return self.sources.reader(method, span, calls[span.modality], text, embeds.device)

        return reader

    def _compress(self, flow: Flow, kwargs: dict[str, Any], read: TowerReader) -> None:
        """Stage `input`: shortens the embeddings, and what travels beside them, in `kwargs`."""
        embeds: Tensor = kwargs["inputs_embeds"]
        if self.layers.wants("text_raters"):
            self.layers.raters = text_raters(embeds, flow.visual_and_text()[0], flow.text_after)
        mask, features = kwargs.get("visual_pos_masks"), kwargs.get("deepstack_visual_embeds")
        if self.inputs:
            assert flow.layout is not None
            selections = choose(self.inputs, flow.layout, embeds, read, flow.compact, self.record)
            if not all(selection.is_identity for selection in selections):
                kwargs["inputs_embeds"] = flow.shorten(embeds, selections, 0)
                if mask is not None:  # DeepStack: rows added to the first layers' visual tokens
                    plan = flow.part.plan
                    assert plan is not None
                    assert features is not None
                    mask, features = plan.visual(), [plan.merged(x) for x in features]
                    kwargs["visual_pos_masks"], kwargs["deepstack_visual_embeds"] = mask, features
        if mask is not None and features is not None and min(self.layers.steps, default=len(features)) < len(features):
            self.layers.deepstack = (features, mask)  # their number changes on the way: our hooks add them
            kwargs["visual_pos_masks"] = kwargs["deepstack_visual_embeds"] = None

    # -- 5, 7: rotate, give back -------------------------------------------------------------------------------

    def _before_rotary(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        flow = self.flow
        if flow is None or flow.rotated:
            return None
        flow.rotated = True
        return (args[:1], {**kwargs, "position_ids": flow.part.positions})

    def _after_lm(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        flow, cache = self.flow, cache_of(output)
        if flow is None:
            return None
        if flow.spans:
            self.record.note_flow(flow)
            output.last_hidden_state = flow.restore(output.last_hidden_state, self.layers.depth)
            states = getattr(output, "hidden_states", None)
            if states:  # state i is what layer i - 1 puts out
                output.hidden_states = tuple(
                    None if x is None else flow.restore(x, max(i - 1, 0)) for i, x in enumerate(states)
                )
        if cache is not None:
            flow.mark(cache)
            self.evictor.evict(cache)
            self.activator.after(cache)
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
