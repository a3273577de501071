"""Forward: everything known of one forward of a wrapped model, from its first hook to its last."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from vtc.engine import context
from vtc.engine.trace import Trace
from vtc.engine.versions import cache_of

if TYPE_CHECKING:
    from vtc.engine.companions import CompanionRows
    from vtc.engine.find_prompts import Prompt
    from vtc.engine.flow import Flow
    from vtc.engine.memory_cache import Columns
    from vtc.engine.stage import Run, Stage
    from vtc.layout import VisualSpan
    from vtc.methods.base.method import Method
    from vtc.models.family import Memory

#: keyword argument by which decoder layers carry their Forward under gradient checkpointing
CARRIED = "vtc_forward"


def _nothing(method: Method, span: VisualSpan) -> Callable[[str], Tensor]:
    raise ValueError("the vision tower has not run in this forward.")


def candidates(given: Mapping[str, Any]) -> int:
    """How many of a call's last tokens are no prompt: `logits_to_keep=k` asks for the logits of k tokens, so that k - 1
    are given ones to be judged — candidates of assisted decoding, or an answer that is scored."""
    asked = given.get("logits_to_keep")
    return max(0, asked - 1) if isinstance(asked, int) and not isinstance(asked, bool) else 0


@dataclass(eq=False)
class Forward:
    """State of one forward; it ends with it.

    Attributes:
        given: what the caller passed, by name (of the whole model where that was called, else of the base model).
        rank: of the entry that opened it and will close it: 0 is the outermost module that may be called.
        inside: of the innermost one that has been entered since.
        host: what is looked at of `given` in main memory (`find_prompts.on_host`); nothing in a decode step.
        known: layers of its cache, by id, which may be used in it.
        prompts: the images and videos it brought, images first, as the tower reads them.
        towers: outputs of the vision tower's runs in this forward.
        asked: whether the base model's hook has run, which asks what this batch is. reached: whether the language
            model's has, too. layers: how many decoder layers' have. What runs as a graph compiled without hooks is
            told by these. layered: whether the decoder layers had hooks when the language model began.
        flow: its way through the language model, once that runs and there is anything to do.
        early: what stages know of it before the language model runs. runs: what they know from then on.
        companions: rows that travel beside the visual tokens and are ours to add.
        memory, columns: of a family with a memory beside its row, where the pictures of this call lie in it, and what
            the cache is going to hold of it; None = all, or there is none.
        tower: gives a method its reader of the tower's signals for a span.
        trace: what the report will say. done: it is over (recomputation for gradients comes later).
    """

    given: Mapping[str, Any]
    rank: int
    inside: int
    host: Mapping[str, Tensor] = field(default_factory=dict)
    known: set[int] = field(default_factory=set)
    prompts: list[Prompt] = field(default_factory=list)
    towers: list[Any] = field(default_factory=list)
    asked: bool = False
    reached: bool = False
    layered: bool = False
    layers: int = 0
    flow: Flow | None = None
    early: dict[Stage, Any] = field(default_factory=dict)
    runs: dict[Stage, Run] = field(default_factory=dict)
    companions: CompanionRows | None = None
    memory: Memory | None = None
    columns: Columns | None = None
    tower: Callable[[Method, VisualSpan], Callable[[str], Tensor]] = _nothing
    trace: Trace = field(default_factory=Trace)
    done: bool = False

    @staticmethod
    def of(stage: Stage, kwargs: Mapping[str, Any] | None = None) -> Forward | None:
        """The forward in progress of the engine that `stage` belongs to.

        Args:
            kwargs: of a decoder layer, which carry the forward where the layer is computed again for its gradients:
                that happens after the forward, in a thread of autograd's.
        """
        carried = None if kwargs is None else kwargs.get(CARRIED)
        if carried is not None:
            return carried
        return next((x for x in context.states() if isinstance(x, Forward) and stage in x.runs), None)

    @property
    def cache(self) -> Any:
        return cache_of(self.given)

    @property
    def candidates(self) -> int:
        return candidates(self.given)

    def ends(self, visual: Tensor) -> Tensor | None:
        """Where each row's prompt ends, LongTensor [B] in main memory; None = with the row.

        What follows is an answer: candidates of assisted decoding (see `candidates`), or, with `labels`, everything
        from the first label behind the pictures on. A prompt never ends before its pictures do.

        Args:
            visual: BoolTensor [B, L] in main memory, the visual tokens.

        Example: a row of eight tokens, v = visual

            token        t v v t t t a a
            labels       . . . . . . 7 9     (. = -100)
            ends                     6       the last token a query-aware method listens to is number 5
        """
        length = visual.shape[1]
        places = torch.arange(length)
        start = torch.where(visual, places, -1).amax(dim=1) + 1  # [B], behind the pictures; 0 without any
        ends = torch.full_like(start, length - self.candidates)
        labels = self.host.get("labels")
        if labels is None and not self.candidates:
            return None
        if labels is not None and labels.shape == visual.shape:
            judged = (labels != -100) & (places >= start[:, None])
            ends = torch.minimum(ends, torch.where(judged, places, length).amin(dim=1))
        ends = torch.where(ends > start, ends, length)
        return None if bool((ends == length).all()) else ends


class Traces:
    """The traces of a wrapped model's forwards: of each KV cache, of each thread, and the latest of all.

    A thread reads its own; one that has run nothing (the main thread beside a streamer's) reads the latest.
    """

    def __init__(self) -> None:
        self._of_cache: WeakKeyDictionary[Any, Trace] = WeakKeyDictionary()
        self._here = threading.local()
        self._latest = Trace()

    def __deepcopy__(self, memo: dict[int, Any]) -> Traces:
        return Traces()

    def __reduce__(self) -> Any:
        return Traces, ()

    def keep(self, trace: Trace, cache: Any) -> None:
        """Remember `trace` as this thread's last and as that of `cache`."""
        self._here.trace = self._latest = trace
        if cache is not None:
            self._of_cache[cache] = trace

    def of(self, cache: Any) -> Trace | None:
        """The trace of the prompt that `cache` holds."""
        return None if cache is None else self._of_cache.get(cache)

    @property
    def last(self) -> Trace:
        return getattr(self._here, "trace", self._latest)
