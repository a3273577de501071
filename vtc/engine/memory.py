"""MemoryEngine: models whose visual tokens stand in a memory beside the row, which some layers attend to.

Hook by hook, where it differs from `Engine`:

2. the base model: where in the memory the pictures of the call are going to lie;
4. the language model, before: the memory is a batch of rows of its own, without a word between its tokens. What is no
   picture's leaves, methods choose among the rest as they would in any row, and the language model is handed what is
   left, with the columns of its mask that belong to it;
7. the language model, after: the KV cache is told which columns it holds (`memory_cache.py`).

Text is never touched: not its rows, its positions, its masks or its own layers' cache. A memory that loses nothing is
handed on as it came.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from vtc.engine import context
from vtc.engine.context import uncompiled
from vtc.engine.engine import Engine, bind
from vtc.engine.find_layout import Found, Seen, find_layout
from vtc.engine.find_prompts import on_host
from vtc.engine.flow import Flow
from vtc.engine.forward import Forward
from vtc.engine.kv_cache import check_cache, compressed
from vtc.engine.memory_cache import Columns, columns_of, hold, whole_of
from vtc.engine.plan import Places, Plan
from vtc.engine.refuse import check_inputs, check_known
from vtc.engine.trace import Trace, cost_of
from vtc.engine.versions import cache_of, length_of
from vtc.engine.wrappers import check_in_place
from vtc.methods.base.encoder import placed
from vtc.methods.base.method import Method
from vtc.models.cross import MemoryAdapter
from vtc.models.family import Memory
from vtc.models.registry import adapter_for
from vtc.reports import Report, RowReport
from vtc.selection import Selection
from vtc.transfer import upload


def check_methods(model: nn.Module, adapter: MemoryAdapter, methods: Sequence[Method]) -> None:
    """Refuse, at wrap, methods that look for visual tokens in the row, or compare them with words."""
    config: Any = model.config
    for part in (part for method in methods for part in placed(method, "input").parts()):
        stage = placed(part, "input").stage
        if stage in ("pixels", "encoder"):
            raise ValueError(
                f"{part.title} works at stage {stage!r}, and {type(adapter.tower(model)).__name__} is no vision tower "
                "that vtc knows: use a method of the stage 'input' (divprune, say)."
            )
        if stage != "input":
            raise ValueError(
                f"{part.title} works at stage {stage!r}, and the visual tokens of {config.model_type} stand in no row "
                "of its language model, but in a memory beside it: use a method of the stage 'input' (divprune, say)."
            )
        if "text" in part.requires():
            raise ValueError(
                f"{part.title} compares visual tokens with the embeddings of words, and those of {config.model_type} "
                "are only made to be attended to, not to lie among its words: choose a method that does not, such as "
                "divprune."
            )


class MemoryFlow(Flow):
    """One memory, [B, M, D], as a batch of rows that is shortened before the language model, once.

    Example: a row of two pictures, of two tokens and of one, with room for two each (. = padding); of the first picture
    the first token is dropped:

        column                    0 1 2 3
        memory                    a b c .
        part.slot, at first       0 1 2         without padding
        part.slot, in the end       1 2         = the columns that are left
    """

    def __init__(self, lm: nn.Module, states: Tensor, found: Found) -> None:
        super().__init__(lm, {"inputs_embeds": states}, found, compact=False, axes=0)
        self.rotated = None  # what the language model rotates is its text

    def without_padding(self, states: Tensor, visual: Tensor) -> Tensor:
        """The memory [B, M, D] with nothing but visual tokens in it, [B, R, D].

        Args:
            visual: BoolTensor [B, M] in main memory.
        """
        if bool(visual.all()):
            return states
        assert self.places is not None
        rows, length = visual.shape
        every = torch.stack([torch.arange(rows).repeat_interleave(length), torch.arange(length).repeat(rows)])
        places = Places(tuple(range(rows)), (length,) * rows, upload(every, self.device))
        stay = [upload(own.nonzero()[:, 0], self.device) for own in visual]
        plan = Plan.of(rows, length, places, [Selection.prune(own, length, ascending=True) for own in stay])
        plan = replace(plan, outputs=replace(plan.outputs, rows=self.places.rows, sizes=self.places.sizes))
        nothing = torch.zeros(rows, dtype=torch.long, device=self.device)
        return self.leave_out(states, plan, self.part.positions, nothing)

    def shortened(self, short: Tensor) -> tuple[Tensor, Columns]:
        """What methods have made of the memory, `short` [B, S, D], without anything in what fills up shorter rows: a
        row of no picture then sees nothing at all, as it does alone; and which columns those are."""
        slot, valid = self.part.slot, self.part.valid
        if valid is None:
            return short, Columns(slot, self.length, False)
        short = short.masked_fill(~valid.to(short.device)[..., None], 0)
        return short, Columns(torch.where(valid, slot, -1), self.length, True)


@dataclass
class MemoryTrace(Trace):
    """The trace of a prefill with a memory.

    Attributes:
        text: words of each row in this prefill. beside: columns of the memory that the plain model has for each row.
    """

    text: list[int] = field(default_factory=list)
    beside: list[int] = field(default_factory=list)

    def report(self, language_model: nn.Module) -> Report:
        if not self.rows_kept:
            return Report(notes=self._notes())
        cost, texts, full = cost_of(language_model), self.text, self.beside
        kept = self.rows_kept[-1][1].tolist() if self.history else full
        rows, layers = range(len(texts)), range(cost.layers)

        def each(account: Any, memory: list[int]) -> list[list[int]]:
            return [[account(i, texts[b], memory=memory[b]) for b in rows] for i in layers]  # [layers][B]

        def both(account: Any) -> tuple[list[list[int]], list[list[int]]]:
            return each(account, full), each(account, kept)

        flops, held = both(cost.layer_flops), both(cost.layer_kv_bytes)
        left = sum(chosen.tokens_out for chosen in self.selections)
        return Report(
            spans=self._spans(),
            stages=[stage.report() for stage in self.stages],
            tokens_by_layer=[left] * cost.layers,
            flops_by_layer=[(sum(a), sum(b)) for a, b in zip(*flops, strict=True)],
            kv_bytes_by_layer=[(sum(a), sum(b)) for a, b in zip(*held, strict=True)],
            head_flops=len(texts) * cost.head_flops(),
            rows=[self._of(b, cost.head_flops(), flops, held) for b in rows],
            notes=self._notes(),
        )

    def _of(self, row: int, head: int, flops: tuple[Any, Any], held: tuple[Any, Any]) -> RowReport:
        """The account of one batch row, of those [layers][B] before and after."""
        mine = [
            (span.tokens, chosen.tokens_out)
            for span, chosen in zip(self.spans, self.selections, strict=True)
            if span.row == row
        ]
        before, after = (sum(counts) for counts in zip(*mine, strict=True)) if mine else (0, 0)
        costs = tuple(head + sum(own[row] for own in layers) for layers in flops)
        sizes = tuple(sum(own[row] for own in layers) for layers in held)
        return RowReport(before, after, after, (costs[0], costs[1]), (sizes[0], sizes[1]))


class MemoryEngine(Engine):
    """Compression of one model with a memory beside its row; see `Engine`."""

    family: MemoryAdapter

    def __init__(
        self,
        model: nn.Module,
        methods: tuple[Method, ...],
        processor: Any = None,
        around: tuple[nn.Module, ...] = (),
        family: str | None = None,
    ) -> None:
        adapter: Any = adapter_for(model, family)
        check_methods(model, adapter, methods)
        super().__init__(model, methods, processor, around, family)
        self.compact = False  # what stands in a memory has no position to be renumbered
        self.crossing = adapter.crossing(model)

    # -- 2: what is this batch? --------------------------------------------------------------------------------

    @uncompiled
    def _before_base(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        forward: Forward = context.top(self)
        forward.asked = True
        given = forward.given = {**forward.given, **bind(module, args, kwargs)}
        past = forward.cache
        forward.known = {id(layer) for layer in getattr(past, "layers", None) or ()}
        if length_of(past) > 0:
            forward.trace = self.traces.of(past) or Trace()
        else:
            self.traces.keep(forward.trace, None)
        if given.get(self.family.states) is not None:
            raise ValueError(
                f"{self.family.states} came without their pictures, so vtc cannot tell which of them are visual "
                "tokens: hand in pixel_values, as the processor returned them."
            )
        if given.get("pixel_values") is None:
            if not compressed(past):
                check_inputs(self.family, self.model, given, visual=False)
            return
        check_cache(past, self.facts.attending)
        check_in_place(self.model, self.hooked)
        forward.host = on_host(given)
        forward.memory = self.family.memory(self.model, given)
        for stage in self.stages:
            stage.check(forward)

    # -- 4: the language model, before -------------------------------------------------------------------------

    @uncompiled
    def _before_lm(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        forward: Forward | None = context.top(self)
        if forward is None:
            return None
        forward.reached = forward.asked
        cache, states, bias = cache_of(kwargs), kwargs.get(self.family.states), kwargs.get(self.family.bias)
        held = columns_of(cache, self.crossing)
        if states is None and held is None:
            return None
        kwargs, columns = dict(kwargs), held
        if states is not None:
            made = self._shortened(forward, module, states)
            if made is None and held is None:
                return None  # all of it is there
            rows = forward.memory.rows if forward.memory is not None else len(states)
            short, new = made or (states, Columns.all(rows, states.shape[:-1].numel() // rows, states.device))
            earlier = held or whole_of(cache, self.crossing, rows, states.device)
            columns = new if earlier is None else earlier.then(new)
            kwargs[self.family.states], forward.columns = short, columns
        assert columns is not None
        kwargs[self.family.bias] = columns.seen(bias, cache.layers[self.crossing[0]].keys if states is None else states)
        return args, kwargs

    def _shortened(self, forward: Forward, lm: nn.Module, states: Tensor) -> tuple[Tensor, Columns] | None:
        """What methods leave of a memory [B * pictures * tiles, tokens, D]: [B, S, D], and which columns these are;
        None = everything."""
        memory: Memory | None = forward.memory
        if memory is None or not memory.pictures:
            return None
        states = states.reshape(memory.rows, memory.length, -1)
        pooled = [states[row, first : first + tokens] for row, first, tokens in memory.pictures]
        seen = [Seen("image", memory.visual, pooled)]
        found = find_layout(self.family, self.model, states, seen)
        assert found is not None
        check_known(self.parts, found.layout.spans)
        for stage in self.stages:
            stage.check_spans(found.layout.spans)
        flow = forward.flow = MemoryFlow(lm, states, found)
        flow.known = forward.known  # layers of the text's own cache
        trace = forward.trace = MemoryTrace(notes=[*self.signals.notes, *self._idle(found)])
        trace.begin(flow)
        trace.text, trace.beside = self._words(forward), [memory.whole(row) for row in range(memory.rows)]
        self.traces.keep(trace, None)
        given = {"inputs_embeds": flow.without_padding(states, memory.visual)}
        forward.tower = self._tower_reader(seen, given["inputs_embeds"], flow)
        forward.runs = {stage: stage.begin(forward, given) for stage in self.stages}
        for run in forward.runs.values():
            run.enter(given)
        flow.found = None
        return flow.shortened(given["inputs_embeds"]) if flow.history else None

    def _words(self, forward: Forward) -> list[int]:
        """How many words each row of a prefill has, padding left out."""
        given, mask = forward.given, forward.host.get("attention_mask")
        new = given["input_ids"] if given.get("inputs_embeds") is None else given["inputs_embeds"]
        rows, length = new.shape[:2]
        if mask is None or mask.dim() != 2:
            return [length] * rows
        return (mask[:, -length:] != 0).sum(dim=1).tolist()

    # -- 7: the language model, after --------------------------------------------------------------------------

    @uncompiled
    def _after_lm(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        forward: Forward | None = context.top(self)
        if forward is None:
            return None
        cache = cache_of(output)
        self.traces.keep(forward.trace, cache)
        if forward.flow is not None:
            forward.trace.note_flow(forward.flow)
        if cache is not None and forward.columns is not None:
            hold(cache, self.crossing, forward.columns, self.facts.attending[0])
        for run in forward.runs.values():
            run.leave(cache)
        return None
