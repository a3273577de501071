"""Signals of the vision tower: hooks that read queries and keys as they pass, and reduce them to what is asked for.

Scores are computed from the projections' outputs through our own ops, so they are the same under eager, sdpa and
flash attention, and no N x N attention matrix is ever held. What a run of the tower yields travels as an item of its
output, like the features: `generate` may run the tower before the model's forward, accelerate copies what it hands
over, and a result of `vtc.encode` may be pickled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from vtc.engine import context
from vtc.engine.context import uncompiled
from vtc.engine.patch_pixels import PatchPixels
from vtc.engine.tower_blocks import visit_here
from vtc.engine.tower_call import ITEM, note, pack
from vtc.engine.tower_patches import patches_there
from vtc.engine.tower_segment import Segment
from vtc.layout import VisualSpan
from vtc.methods.base.method import Method
from vtc.models.family import Adapter, TowerCall
from vtc.models.tower import Tower, tower_for, tower_type
from vtc.signals import SIGNALS, of_place, signal_of
from vtc.transfer import upload

Pair = tuple[str, int]  # (signal of the vision tower, layer); of one that takes a number, "name=number"


def numbered(method: Method, name: str) -> str:
    """What a signal is measured as for `method`: its name, with the number that it takes."""
    return f"{name}={method.signal_number(name)!r}" if SIGNALS[name].numbered else name


@dataclass(eq=False)
class TowerRun:
    """One run of the tower in progress; `projected` holds what the projections of a layer have made."""

    call: TowerCall
    projected: dict[tuple[int, str], Tensor] = field(default_factory=dict)


class TowerSignals:
    """Watches some layers of a vision tower for the signals of some methods.

    Args:
        methods: whose signals are wanted; `notes` says where one stands in for another.
        done: called with every output of the tower.
        private: act only where a frame of `room` is open.
    """

    def __init__(
        self,
        model: nn.Module,
        adapter: Adapter,
        methods: Sequence[Method],
        done: Callable[[Any], None] | None = None,
        private: bool = False,
    ) -> None:
        self.model, self.adapter, self.done, self.methods = model, adapter, done, methods
        self.private, self.room = private, object()
        self.projecting = object()  # owner of the frame between the tower's end and the projector's
        self.notes: list[str] = []
        asked = [(method, name) for method in methods for name in of_place(method.requires(), "tower")]
        self.wanted: dict[int, list[str]] = {}  # of each layer, what is measured on its queries and keys
        self.ends: list[Pair] = []  # what is measured on the tower's output
        self.starts: list[Pair] = []  # and on its input
        self.after: dict[int, list[str]] = {}  # of each layer, what is measured on what its block puts out
        #: by layer, the queries and keys of the last run, for those who measure signals of other numbers later
        self.record: dict[int, list[Segment]] | None = None
        for signal, layer in sorted({pair for method, name in asked for pair in self.pairs(method, name)}):
            if "C" in signal_of(signal).shape:
                self.ends.append((signal, layer))
            elif signal_of(signal).pixels:
                self._check_pixels()
                self.starts.append((signal, layer))
            elif signal_of(signal).of_block:
                self.after.setdefault(layer, []).append(signal)
            else:
                self.wanted.setdefault(layer, []).append(signal)

    @property
    def tower(self) -> Any:
        return self.adapter.tower(self.model)

    @cached_property
    def facts(self) -> Tower:
        return tower_for(self.tower)

    def pairs(self, method: Method, name: str) -> list[Pair]:
        """What makes up the signal `name` for `method`."""
        last = self.adapter.feature_layer(self.model)
        if "C" in SIGNALS[name].shape:
            self._check_cls(method)
        if "L" not in SIGNALS[name].shape:
            return [(numbered(method, name), last)]
        if SIGNALS[name].of_cls and not self.facts.has_cls:
            self._note(f"{method.title}: {tower_type(self.tower)} has no CLS token, and so there are no {_said(name)}.")
            return []
        stand_in = SIGNALS[name].stand_in
        if stand_in is not None and not self.facts.has_cls:
            given, wanted = _said(stand_in), _said(name)
            self._note(f"{method.title}: {tower_type(self.tower)} has no CLS token; {given} stands in for {wanted}.")
            name = stand_in
        layers = method.tower_layers(len(self.facts.blocks(self.tower)), last)
        return [(numbered(method, name), layer) for layer in layers]

    def _note(self, note: str) -> None:
        if note not in self.notes:
            self.notes.append(note)

    def _check_pixels(self) -> None:
        """Raise ValueError if the pixels under each patch cannot be told from what the tower is given."""
        if self.facts.varies:
            why = "says of each picture how many patches are a token"
        elif self.facts.takes == "row" or self.facts.patches_given:
            why = "is given pictures of any size, padded"
        else:
            return
        titles = dict.fromkeys(method.title for method in self.methods)
        raise ValueError(
            f"{' and '.join(titles)} looks at the pixels under patches, and the vision tower of "
            f"{self.adapter.model_types[0]} {why}: choose another."
        )

    def _check_cls(self, method: Method) -> None:
        """Raise ValueError if there is no CLS token, or none that could be passed on."""
        if not self.facts.has_cls:
            why = f"{tower_type(self.tower)} has none"
        elif not self.adapter.projects_cls:
            why = f"the projector of {self.adapter.model_types[0]} takes no single token"
        else:
            return
        raise ValueError(f"{method.title} is to pass on the vision tower's CLS token, but {why}; give cls=False.")

    # -- hooks -------------------------------------------------------------------------------------------------

    def attach(self) -> Iterator[RemovableHandle]:
        tower, projector = self.tower, self.adapter.crop_projector(self.model)
        yield tower.register_forward_pre_hook(self._before_tower, with_kwargs=True)
        yield tower.register_forward_hook(self._after_tower)
        yield tower.register_forward_hook(self._close, always_call=True)
        if projector is not None:
            yield projector.register_forward_hook(self._after_projector)
        attentions = self.facts.attentions(tower) if self.wanted else []
        for layer in self.wanted:
            q, k = self.facts.projections(attentions[layer])
            yield q.register_forward_hook(partial(self._after_projection, layer, "q"), prepend=True)
            if k is not q:
                yield k.register_forward_hook(partial(self._after_projection, layer, "k"), prepend=True)
            yield attentions[layer].register_forward_hook(partial(self._after_attention, layer), with_kwargs=True)

        for layer in self.after:
            yield self.facts.blocks(tower)[layer].register_forward_hook(partial(self._after_block, layer))

    def close(self) -> None:
        """Forget what an interruption, or a run of the tower alone, left open."""
        context.pop(self)
        context.pop(self.projecting)

    # `vtc.encode` adds and removes its hooks while other threads run the tower, and torch may hand those threads' calls
    # over without the keyword arguments that a hook had asked for: hence `given`, which a call of ours has in full.

    @uncompiled
    def _before_tower(self, module: nn.Module, args: tuple[Any, ...], *given: dict[str, Any]) -> None:
        if self.private and context.top(self.room) is None:
            return
        (kwargs,) = given
        pixels = args[0] if args else kwargs.get("pixel_values", kwargs.get("hidden_states"))
        grid = self.adapter.tower_grids(module, args, kwargs)
        crops = 0 if pixels is None else (pixels.shape[0] if grid is None else len(grid))
        grid = None if grid is None else grid.cpu()  # before the tower begins: behind it, it would be waited for
        run = TowerRun(TowerCall(grid_thw=grid, crops=crops))
        if self.starts and pixels is not None:
            patches = PatchPixels(self.model, self.adapter, pixels.detach(), patches_there())
            run.call.signals.update({pair: signal_of(pair[0]).of(patches) for pair in self.starts})
        context.push(self, run)

    @uncompiled
    def _after_projection(
        self, layer: int, which: str, module: nn.Module, args: tuple[Any, ...], output: Tensor
    ) -> None:
        run: TowerRun | None = context.top(self)
        if run is not None:
            run.projected[layer, which] = output

    @uncompiled
    def _after_attention(self, layer: int, module: nn.Module, args: tuple[Any, ...], *given: Any) -> None:
        run: TowerRun | None = context.top(self)
        if run is None:
            return  # computed again for its gradients: what it says has been heard
        kwargs, _ = given
        q = run.projected.pop((layer, "q")).detach()
        k = run.projected.pop((layer, "k"), q).detach()
        visit, copies = visit_here(), None
        if visit is not None and visit.passed.rows is not None:
            # patches have merged before this block: each is read as the row that stands for it
            rows, facts, groups = visit.passed.rows, self.facts, visit.passed.budget.groups(0)
            places = rows.anchor.gather(1, rows.shown)  # and at the place where that stands
            whole = None if groups is None else groups._replace(now=groups.whole)
            kwargs = {**kwargs, **facts.with_rows(visit.given, places, facts.prefix(self.tower), whole)}
            q, k = (facts.from_rows(rows.expand(facts.as_rows(x))) for x in (q, k))
            if not visit.weighs:
                copies = rows.size.gather(1, rows.shown)  # [B, N], of packed rows for each four patches
                copies = copies.repeat_interleave(q.shape[0] // copies.shape[1], dim=1) if facts.widens else copies
        pairs = self.facts.queries_keys(module, q, k, kwargs, run.call.grid_thw)
        total = sum(q.shape[2] for q, _ in pairs)
        shared = [None] * len(pairs) if copies is None else copies.split([q.shape[2] for q, _ in pairs], dim=1)
        places = self.facts.place_channels(module)
        segments = [
            Segment(q, k, q.shape[2] / total if len(pairs) > 1 else 1.0, own, int(self.facts.has_cls), places)
            for (q, k), own in zip(pairs, shared, strict=True)
        ]
        if self.record is not None:
            self.record[layer] = segments
        for name in self.wanted[layer]:
            run.call.signals[name, layer] = self.measure(name, segments, run.call.grid_thw)

    @uncompiled
    def _after_block(self, layer: int, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        run: TowerRun | None = context.top(self)
        if run is None:
            return
        states = self.facts.states(output).detach()
        for name in self.after[layer]:
            run.call.signals[name, layer] = self.measure(name, [states], run.call.grid_thw)

    def measure(self, name: str, places: Sequence[Segment | Tensor], grid_thw: Tensor | None) -> Tensor:
        """[tokens] or [tokens, d] of all crops one after another, as the projector leaves them, without CLS."""
        signal, first = signal_of(name), 1 if self.facts.has_cls else 0
        number = () if not signal.numbered else (float(name.partition("=")[2]),)
        parts = [signal.of(place, *number)[:, first:] for place in places]
        values, mean = torch.cat(parts, dim=1) if len(parts) > 1 else parts[0], signal.fold == "mean"
        there = patches_there()
        some = {} if there is None else {"kept": there}
        values = self.facts.tokens_from_patches(self.tower, values, grid_thw, mean, **some)
        return self.adapter.merged(self.model, values, grid_thw, mean)

    @uncompiled
    def _after_tower(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        run: TowerRun | None = context.top(self)
        if run is None or not hasattr(output, "last_hidden_state"):  # a bare tuple
            return
        for signal, layer in self.ends:
            run.call.signals[signal, layer] = signal_of(signal).of(self.adapter.cls_tokens(self.model, output))
            run.call.crop_tokens = output.last_hidden_state.shape[1] - 1
        if self.adapter.remakes:
            if self.done is not None:
                self.done(output)
            return
        if ITEM in output:  # other hooks on the same tower: those of the wrap around a vtc.encode
            output[ITEM]["signals"].update(pack(run.call)["signals"])
            output[ITEM]["crop_tokens"] = output[ITEM]["crop_tokens"] or run.call.crop_tokens
        else:
            note(output, ITEM, pack(run.call), self.adapter)
        if self.done is not None:
            self.done(output)
        if self.adapter.crop_projector(self.model) is not None:
            context.push(self.projecting, output[ITEM])  # the projector runs next, when the tower's frame is closed

    @uncompiled
    def _close(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        context.pop(self)

    @uncompiled
    def _after_projector(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        item: dict[str, Any] | None = context.top(self.projecting)
        if item is not None:
            item["first"] = output[:, 0].detach()  # [crops, D]
            context.pop(self.projecting)


@dataclass(frozen=True, eq=False)
class TowerReader:
    """Reads signals of the tower and of the text, on `device`, for one span or for several equally large ones.

    Attributes:
        call: the run of the tower that the spans come from. text: row -> its text embeddings [T, D].
    """

    signals: TowerSignals
    method: Method
    spans: tuple[VisualSpan, ...]
    call: TowerCall | None
    text: Callable[[int], Tensor]
    device: torch.device

    def __call__(self, name: str) -> Tensor:
        method, row = self.method, SIGNALS[name]
        if name not in method.requires():
            raise ValueError(f"{method.title} reads the signal {name!r} without listing it in `needs`.")
        if row.place == "text":
            return row.of(self.text(self.spans[0].row))
        if row.place == "layout":
            raise ValueError(f"the {name} is not read as a signal: it is tokens.span.{name}, with tokens.span.tiles.")
        if row.place != "tower":
            raise ValueError(f"{method.title} asks for {name!r}, which is measured at the stage {row.place!r}.")
        measured = [_measured(self.call, pair) for pair in self.signals.pairs(method, name)]
        if "C" in row.shape:
            return _per_crop(measured[0], self.spans[0], self.call).to(self.device)
        alone = len(self.spans) == 1
        patch = self.spans[0].patch if alone else torch.stack([span.patch for span in self.spans])
        if not measured:  # a tower without a CLS token
            rows = (0, *patch.shape) if alone else (len(patch), 0, patch.shape[1])
            return torch.zeros(rows, device=self.device)
        values = torch.stack(measured) if "L" in row.shape else measured[0][None]  # [L, P, ...]
        values = _per_token(values, patch)  # [L, N, ...] or [L, S, N, ...]
        if "L" not in row.shape:
            return values[0].to(self.device)
        return (values if alone else values.transpose(0, 1)).to(self.device)

    @staticmethod
    def stack(readers: Sequence[TowerReader]) -> TowerReader | None:
        """A reader of the spans of several; None where they come from different runs, or read what is not of tokens."""
        one = readers[0]
        apart = not all(SIGNALS[name].together for name in one.method.requires())
        if apart or any(other.call is not one.call or other.method is not one.method for other in readers):
            return None
        return replace(one, spans=tuple(span for reader in readers for span in reader.spans))


def _said(name: str) -> str:
    """A signal's name in a sentence."""
    return name.replace("_", " ").replace("cls", "CLS")


def _measured(call: TowerCall | None, pair: Pair) -> Tensor:
    if call is None or pair not in call.signals:
        raise ValueError(
            f"the signal {pair[0]!r} of vision layer {pair[1]} is missing: the image features handed in were encoded "
            "without it; encode them on the wrapped model, or with vtc.encode(model, methods, ...)."
        )
    return call.signals[pair]


def _per_token(values: Tensor, patch: Tensor) -> Tensor:
    """Tower values [L, P, ...] -> [L, N, ...] of a span's tokens (or [L, S, N, ...]); separators (patch -1) get 0."""
    here = upload(patch.clamp(min=0), values.device)
    taken = values[:, here]
    if bool((patch >= 0).all()):  # in main memory
        return taken
    inside = upload(patch >= 0, values.device).view(1, *patch.shape, *[1] * (values.dim() - 2))
    return torch.where(inside, taken, 0.0)


def _per_crop(values: Tensor, span: VisualSpan, call: TowerCall | None) -> Tensor:
    """Tower values [crops of the run, ...] -> [C, ...] of a span's crops."""
    assert call is not None
    place = int((span.patch >= 0).nonzero()[0])
    first = int(span.patch[place]) // call.crop_tokens - int(span.crop[place])
    return values[first : first + int(span.crop.max()) + 1]
