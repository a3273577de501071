"""Engine: hooks on a model that compress its visual tokens and keep everything else right.

Hook by hook, in the order in which a forward meets them:

1. the whole model: a `Forward` is opened, which every later hook finds by context;
2. the base model: which tokens of the batch are visual; refuse what is not supported, before any compute;
3. the vision tower: note the signals that the methods ask for (`tower_signals.py`);
4. the language model, before: the stages' runs begin; those that act here shorten the embeddings (`flow.py`);
5. its rotary embedding: rotate by the tokens' own positions;
6. its layers: the stages' own hooks, then each layer is given the mask and positions of what is left;
7. the language model, after: give hidden states their old length back, mark the KV cache as shortened
   (`kv_cache.py`); the stages' runs leave;
8. the whole model: the Forward is closed, also after an exception.

`forward` is never replaced. Of a forward the engine holds nothing but its trace, for the report.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from vtc.engine import context
from vtc.engine.attention import check_reads, reads_attention
from vtc.engine.companions import CompanionRows
from vtc.engine.compiled import OLD_GRAPH, forget_graphs
from vtc.engine.context import uncompiled
from vtc.engine.find_layout import Found, Seen, find_layout
from vtc.engine.find_prompts import brought, find_prompts, on_host
from vtc.engine.flow import Flow
from vtc.engine.forward import CARRIED, Forward, Traces
from vtc.engine.kv_cache import compressed
from vtc.engine.kv_tags import settle
from vtc.engine.refuse import check_handed, check_inputs, check_known, check_sight, check_states
from vtc.engine.stage import Facts, Stage, stages
from vtc.engine.tower_call import unpack
from vtc.engine.tower_signals import TowerReader, TowerSignals
from vtc.engine.trace import Trace
from vtc.engine.versions import cache_of, length_of
from vtc.engine.wrappers import check_in_place, hooked_modules
from vtc.layout import VisualSpan
from vtc.methods.base.encoder import placed
from vtc.methods.base.method import Method
from vtc.models import adapter_for
from vtc.models.family import PIXELS, Blocks
from vtc.models.fingerprint import fingerprint_of
from vtc.reports import Report
from vtc.transfer import upload

_ATTACHING = threading.Lock()  # two threads may need the hooks of one engine's layers at the same time


class Engine:
    """Compression of one model by one or more methods; `attach` and `detach` are exact opposites.

    Args:
        model: the ...ForConditionalGeneration. around: what it is wrapped in (PEFT's model, say), outermost first.
        family: see `vtc.wrap`.
    """

    def __init__(
        self,
        model: nn.Module,
        methods: tuple[Method, ...],
        processor: Any = None,
        around: tuple[nn.Module, ...] = (),
        family: str | None = None,
    ) -> None:
        self.family = adapter_for(model, family)
        methods = tuple(placed(method, "input") for method in methods)
        self.model, self.methods, self.around = model, methods, around
        self.frame_marks = self.family.frame_marks(processor)
        facts = self.facts = Facts(model, self.family)
        parts = tuple(placed(part, "input") for method in methods for part in method.parts())
        kinds = stages()
        config: Any = model.config
        self.parts = parts
        for part in parts:
            if not any(kind.takes(part) for kind in kinds):
                there = ", ".join(dict.fromkeys(kind.name for kind in kinds))
                raise ValueError(f"{part.title} works at stage {part.stage!r}, which nothing runs; there are {there}.")
            part.check_model(config.model_type, facts.language_model.config.hidden_size)
        for method in methods:
            method.check_checkpoint(config.model_type, partial(fingerprint_of, model, self.family))
        check_reads(facts.language_model, parts)
        for method in methods:
            if set(method.modality) == {"video"} and not self.family.reads_videos(model):
                raise ValueError(
                    f"{method.title} is for videos, and {config.model_type} reads none: choose a method for pictures, "
                    "such as divprune."
                )
        order = {kind.name: kind.order for kind in reversed(kinds)}
        for one, two in pairwise(parts):
            if order[one.stage] > order[two.stage]:
                raise ValueError(
                    f"{two.title} (stage {two.stage!r}) comes after {one.title} (stage {one.stage!r}): name methods in "
                    f"the order in which they act, {' before '.join(sorted(order, key=lambda name: order[name]))}."
                )
        self.stages: list[Stage] = []
        for kind in kinds:
            own = [part for part in parts if kind.takes(part)]
            if own:
                self.stages.append(kind(facts, own))
                self.stages[-1].check_beside([part for part in parts if part not in own])
        self.compact = any(part.positions == "compact" for part in parts)
        listening = [part for part in parts if any(kind.takes(part) and kind.listens for kind in kinds)]
        self.signals = TowerSignals(model, self.family, listening, self._after_tower)
        self.handles: list[RemovableHandle] = []
        self.hooked: dict[str, nn.Module] = {}
        self.layered = False  # whether there are hooks on the decoder layers
        self.traces = Traces()

    # -- attach, detach ----------------------------------------------------------------------------------------

    def attach(self) -> None:
        model, family, facts = self.model, self.family, self.facts
        base, lm = family.base(model), family.language_model(model)
        owner = hooked_by(lm)
        if owner is not None and owner is not self:
            raise ValueError(
                "this model's parts are already wrapped through another model object; vtc.unwrap that one first."
            )
        # DataParallel runs copies of the model in threads of its own, whose calls are entries themselves
        shells = [shell for shell in self.around if not isinstance(shell, nn.DataParallel)]
        for rank, entry in enumerate((*shells, model, base)):
            for handle in (
                entry.register_forward_pre_hook(partial(self._open, rank), with_kwargs=True),
                entry.register_forward_hook(partial(self._check_reached, rank)),
                entry.register_forward_hook(partial(self._close, rank), always_call=True),
            ):
                self.handles.append(handle)
        self.handles.append(base.register_forward_pre_hook(self._before_base, with_kwargs=True))
        self.handles.append(lm.register_forward_pre_hook(self._before_lm, with_kwargs=True))
        self.handles.append(lm.register_forward_hook(self._after_lm, with_kwargs=True))
        for rotary in [] if family.mrope else facts.decoder.rotaries(lm):
            self.handles.append(rotary.register_forward_pre_hook(self._before_rotary, with_kwargs=True))
        if self._inside() is not None and family.companions is not None and family.companions.before:
            for i, layer in enumerate(facts.layers):  # before the stages' hooks: these see what the layer sees
                self.handles.append(layer.register_forward_pre_hook(partial(self._beside, i), with_kwargs=True))
        for stage in self.stages:
            for handle in stage.attach():  # one by one: what is there when the next one fails can be taken away again
                self.handles.append(handle)
        if any(stage.uneven for stage in self.stages):
            self._attach_layers()  # after the stages' hooks: these change what is left
        for handle in self.signals.attach():
            self.handles.append(handle)
        self.hooked = hooked_modules(model, self.handles)
        forget_graphs()

    def _attach_layers(self) -> None:
        """Hooks on every layer. Each costs a decode step some microseconds, so they are there only if layers may hold
        different rows: from the wrap on, or from when a cache comes along that another wrap has left like that."""
        with _ATTACHING:
            if self.layered:
                return
            for i, layer in enumerate(self.facts.layers):
                self.handles.append(layer.register_forward_pre_hook(partial(self._before_layer, i), with_kwargs=True))
                if self._adds_behind:
                    self.handles.append(layer.register_forward_hook(partial(self._after_layer, i), always_call=True))
            self.layered = True

    @property
    def _adds_behind(self) -> bool:
        """Whether there are hooks behind layers that add what travels with visual tokens."""
        beside = self.family.companions
        return self._inside() is not None and beside is not None and not beside.before

    def _checkpointed(self) -> bool:
        return any(x.training and getattr(x, "gradient_checkpointing", False) for x in self.facts.layers)

    def detach(self) -> None:
        for handle in self.handles:
            handle.remove()
        self.handles.clear()
        self.hooked, self.layered = {}, False
        context.pop(self)  # what an interruption left open
        self.signals.close()
        forget_graphs()

    def _inside(self) -> int | None:
        """The first decoder layer before which a stage may drop tokens; None = none does."""
        return min((i for stage in self.stages if (i := stage.first_inside()) is not None), default=None)

    # -- 1, 8: from the first hook to the last -----------------------------------------------------------------

    @uncompiled
    def _open(self, rank: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        forward: Forward | None = context.top(self)
        if forward is None or forward.done or rank <= forward.inside:  # not within it: an interruption left it open
            context.push(self, Forward(bind(module, args, kwargs), rank, rank))
        else:
            forward.inside = rank

    @uncompiled
    def _check_reached(self, rank: int, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        forward: Forward | None = context.top(self)
        if forward is None or forward.rank != rank or forward.reached:
            return
        if brought(forward.given):
            raise RuntimeError(OLD_GRAPH)

    @uncompiled
    def _close(self, rank: int, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        forward: Forward | None = context.top(self)
        if forward is not None and forward.rank == rank:
            forward.done = True
            context.pop(self)

    # -- 2: what is this batch? --------------------------------------------------------------------------------

    @uncompiled
    def _before_base(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        forward: Forward = context.top(self)
        forward.asked = True
        given = forward.given = {**forward.given, **bind(module, args, kwargs)}
        past = forward.cache
        forward.known = {id(layer) for layer in getattr(past, "layers", None) or ()}
        decoding = length_of(past) > 0
        if decoding:
            forward.trace = self.traces.of(past) or Trace()
        else:
            self.traces.keep(forward.trace, None)
        if not decoding or brought(given) or (given.get("input_ids") is None and given["inputs_embeds"].shape[1] > 1):
            forward.host = on_host(given)
            forward.prompts = find_prompts(self.family, self.model, given, forward.host, self.frame_marks)
        if not any(bool(prompt.visual.any()) for prompt in forward.prompts):
            check_inputs(self.family, self.model, given, visual=False)
            if not compressed(past):
                return  # plain text, as if the model were not wrapped
        check_sight(self.family, self.facts, given, self.compact)
        check_inputs(self.family, self.model, given, visual=True)
        if forward.prompts:
            check_in_place(self.model, self.hooked)
        if any(stage.shortens for stage in self.stages):
            check_states(self.facts.decoder, self.facts.language_model.config, forward)
        for stage in self.stages:
            stage.check(forward)

    # -- 3: the tower ------------------------------------------------------------------------------------------

    def _after_tower(self, output: Any) -> None:
        forward: Forward | None = context.top(self)
        if forward is not None:
            forward.towers.append(output)

    def _seen(self, forward: Forward) -> list[Seen]:
        """The prompts, with what the tower made of their pixels."""
        found, ran, outputs = [], iter(forward.towers), []
        for prompt in forward.prompts:
            output = prompt.encoded if prompt.encoded is not None else next(ran, None)
            outputs.append(output)
            call = unpack(output)
            grid = call.grid_thw if call is not None and call.grid_thw is not None else prompt.grid_thw
            features = self.family.features(self.model, output)
            pooled = self.family.entering(self.model, features, forward.given, prompt.modality)
            grid = grid if features is None or pooled is features else None  # what is left of a grid is none
            found.append(Seen(prompt.modality, prompt.visual, pooled, grid, call, prompt.frames))
        for stage in self.stages:
            found = stage.seen(forward, found, outputs)
        return found

    def _tower_reader(
        self, seen: list[Seen], embeds: Tensor, flow: Flow
    ) -> Callable[[Method, VisualSpan], TowerReader]:
        calls = {one.modality: one.call for one in seen}
        if len(seen) == 1:  # a family that reads videos as images
            calls = dict.fromkeys(PIXELS, seen[0].call)

        def text(row: int) -> Tensor:
            words = flow.prompt[row] & ~torch.stack([one.visual[row] for one in seen]).any(dim=0)  # [L]
            return embeds[row, upload(words.nonzero()[:, 0], embeds.device)]

        return lambda method, span: TowerReader(
            self.signals, method, (span,), calls[span.modality], text, embeds.device
        )

    # -- 4: the language model, before -------------------------------------------------------------------------

    @uncompiled
    def _before_lm(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        forward: Forward | None = context.top(self)
        embeds, cache = kwargs.get("inputs_embeds"), cache_of(kwargs)
        if forward is None or embeds is None:
            return None
        forward.reached = forward.asked
        seen, beside = self._seen(forward), CompanionRows.take(self.family.companions, kwargs)
        shown = embeds if beside is None else beside.entering(embeds)
        found = find_layout(self.family, self.model, shown, seen) if seen else None
        if found is None and not compressed(cache):
            return None
        check_handed(self.family, kwargs)
        kwargs, made = dict(kwargs), None
        if self.family.masks:
            made, kwargs["attention_mask"] = kwargs.get("attention_mask"), forward.given.get("attention_mask")
        forward.companions = None if found is None else beside
        self._begin(forward, module, kwargs, found, seen)
        flow = forward.flow
        assert flow is not None
        if flow.uneven and not self.layered:
            self._attach_layers()
            self.hooked = hooked_modules(self.model, self.handles)
            forget_graphs()
        forward.layered, part = self.layered, flow.part
        mask = flow.handed(kwargs["inputs_embeds"], made)
        if mask is None and cache is None and not self._caches(module, kwargs):
            # A mask without zeros: keeps transformers from reading gaps in the positions as packed sequences, as it
            # does where there is no cache. It asks the device whether there are any.
            mask = torch.ones(flow.rows, part.width, dtype=torch.bool, device=embeds.device)
        kwargs["attention_mask"] = mask
        rows = torch.arange(flow.rows, device=embeds.device)[:, None]
        kwargs |= {
            name: x[rows.to(x.device), part.slot.to(x.device)]
            for name in self.family.aligned
            if (x := kwargs.get(name)) is not None
        }
        if "logits_to_keep" in kwargs:  # rows of layers in which fewer are needed; all get their old places back
            kwargs["logits_to_keep"] = 0
        text = flow.text_positions(part)
        kwargs["position_ids"] = self.family.position_rows(text, part.positions) if self.family.mrope else text
        if forward.layered and torch.is_grad_enabled() and self._checkpointed():
            kwargs[CARRIED] = forward
        return args, kwargs

    @staticmethod
    def _caches(lm: nn.Module, kwargs: dict[str, Any]) -> bool:
        """Whether the language model is going to make a cache of its own."""
        config: Any = lm.config
        use = kwargs.get("use_cache")
        return bool(config.use_cache if use is None else use) and not lm.training

    def _begin(
        self, forward: Forward, lm: nn.Module, kwargs: dict[str, Any], found: Found | None, seen: list[Seen]
    ) -> None:
        """The stages' runs begin and enter, which may shorten what is in `kwargs`."""
        family, ends = self.family, None
        if found is not None:
            ends = forward.ends(torch.stack([one.visual for one in seen]).any(dim=0))
        mask = forward.host.get("attention_mask")
        flow = forward.flow = Flow(
            lm, kwargs, found, self.compact, family.axes(self.model), ends, mask, self._blocks(forward)
        )
        if found is not None:
            forward.trace = Trace(notes=[*self.signals.notes, *self._idle(found)])
            forward.trace.begin(flow)
            self.traces.keep(forward.trace, None)
            forward.tower = self._tower_reader(seen, kwargs["inputs_embeds"], flow)
            check_known(self.parts, found.layout.spans)
            for stage in self.stages:
                stage.check_spans(found.layout.spans)
        if any(reads_attention(part) for part in self.parts):
            flow.sight.record()
        forward.runs = {stage: stage.begin(forward, kwargs) for stage in self.stages}
        for run in forward.runs.values():
            run.enter(kwargs)
        flow.found = None  # its copy of the visual tokens has been read
        if forward.companions is not None:
            inside = self._inside()
            # where their number changes on the way, our hooks add them, else the language model does
            ours = inside is not None and inside <= forward.companions.last
            forward.companions.hand(kwargs, ours)
            if not ours:
                forward.companions = None

    def _blocks(self, forward: Forward) -> Blocks | None:
        """Which tokens of this forward see each other."""
        given = forward.given
        new = given["input_ids"] if given.get("inputs_embeds") is None else given["inputs_embeds"]
        return self.family.blocks(self.model, forward.host, length_of(forward.cache), new.shape[1])

    def _idle(self, found: Found) -> list[str]:
        """A sentence about each method that is for pictures or for videos only, and finds none."""
        there = {span.modality for span in found.layout.spans}
        what = {"image": "pictures", "video": "videos"}
        return [
            f"{method.title} is for {' and '.join(what[m] for m in method.modality)}, and there are only "
            f"{' and '.join(what[m] for m in sorted(there))} here: it changed nothing."
            for method in self.methods
            if not there & {*method.modality}
        ]

    # -- 5, 6: rotary embedding and layers ---------------------------------------------------------------------

    @uncompiled
    def _before_rotary(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        forward: Forward | None = context.top(self)
        flow = None if forward is None else forward.flow
        if flow is None or flow.rotated is None:
            return None
        flow.rotated = True
        if len(args) > 1:  # Gemma 3: positions, kind of layer
            return ((args[0], flow.part.positions, *args[2:]), kwargs)
        return (args, {**kwargs, "position_ids": flow.part.positions})

    @uncompiled
    def _beside(self, i: int, module: nn.Module, args: tuple[Any, ...], *given: dict[str, Any]) -> Any:
        """Before a layer, and the stages' hooks on it: rows that are added there."""
        if not given:  # another thread's forward, while this one attached the hook
            return None
        (kwargs,) = given
        forward: Forward | None = kwargs.get(CARRIED) or context.top(self)
        if forward is None or forward.companions is None:
            return None
        hidden = forward.companions.add(i, args[0] if args else kwargs["hidden_states"])
        if hidden is None:
            return None
        return ((hidden, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": hidden})

    @uncompiled
    def _before_layer(self, i: int, module: nn.Module, args: tuple[Any, ...], *given: dict[str, Any]) -> Any:
        if not given:  # another thread's forward, while this one attached the hook: its rows are even
            return None
        (kwargs,) = given
        carried: Forward | None = kwargs.get(CARRIED)
        forward: Forward | None = context.top(self) if carried is None else carried
        if forward is None or forward.flow is None:
            return None
        if carried is not None:
            kwargs = {name: value for name, value in kwargs.items() if name != CARRIED}
            if carried.done and carried.companions is not None and self._adds_behind:
                context.push(self, carried)  # computed again, for its gradients: `_after_layer` finds it, and closes it
        forward.layers += 1
        flow = forward.flow
        hidden, *others = args or (kwargs["hidden_states"],)
        if others:  # by name
            names = list(inspect.signature(module.forward).parameters)[1:]
            args, kwargs = (hidden,), {**kwargs, **dict(zip(names, others, strict=False))}
        changes = flow.for_layer(i, hidden, kwargs)
        if changes is not None:
            changes = {name: flow.along(x, i) for name, x in kwargs.items() if name in self.family.aligned} | changes
        if changes is None and carried is None and not others:
            return None
        return args, {**kwargs, **(changes or {})}

    @uncompiled
    def _after_layer(self, i: int, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        forward: Forward | None = context.top(self)
        if forward is None:
            return None
        if forward.done:
            context.pop(self)
        if forward.companions is None or not isinstance(output, Tensor):
            return None
        return forward.companions.add(i, output)

    # -- 7: the language model, after --------------------------------------------------------------------------

    @uncompiled
    def _after_lm(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        forward: Forward | None = context.top(self)
        flow, cache = None if forward is None else forward.flow, cache_of(output)
        if forward is None:
            return None
        self.traces.keep(forward.trace, cache)
        if flow is None:
            return None
        config: Any = self.facts.language_model.config
        heard = self.family.mrope or flow.rotated or self.facts.decoder.rotary(self.facts.language_model) is None
        if forward.layered:
            least = min(self.facts.depth, config.num_hidden_layers)  # fewer where a draft leaves early
            heard = forward.layers >= least
        if not heard:
            raise RuntimeError(OLD_GRAPH)
        if flow.spans:
            forward.trace.note_flow(flow)
            depth = self.facts.depth
            output.last_hidden_state = flow.restore(output.last_hidden_state, depth)
            states = getattr(output, "hidden_states", None)
            if states:  # state i is what layer i - 1 puts out
                output.hidden_states = tuple(
                    None if x is None else flow.restore(x, max(i - 1, 0)) for i, x in enumerate(states)
                )
        flow.sight.release()
        if cache is not None:
            flow.mark(cache)
        for run in forward.runs.values():
            run.leave(cache)
        if flow.spans and compressed(cache):
            settle(flow, cache)
        return output

    @property
    def trace(self) -> Trace:
        """What this thread's last prompt came to; the latest of all in a thread that has run none."""
        return self.traces.last

    def report(self) -> Report:
        return self.trace.report(self.family.language_model(self.model))


def hooked_by(module: nn.Module) -> Engine | None:
    """The engine that has hooks on this module, if any."""
    for hook in module._forward_pre_hooks.values():
        owner = getattr(hook, "__self__", None)
        if isinstance(owner, Engine):
            return owner
    return None


def bind(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments of a call by name."""
    if not args:
        return kwargs
    names = list(inspect.signature(module.forward).parameters)
    return {**dict(zip(names, args, strict=False)), **kwargs}
