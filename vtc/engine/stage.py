"""Stage: one place on a token's way at which methods act. The engine loops over stages and names none of them.

A stage is made at `wrap` and holds nothing of a forward; what it knows of one forward lives in the Run that `begin`
returns. A file in `stages/` is a stage; so is any subclass elsewhere: making the class registers it.

The calls, in order:

    wrap      Stage(facts, methods)        refuses what the model or the methods cannot do
              attach() -> handles          hooks of its own; they find their Run by `Forward.of(self)`
    forward   check(forward)               before any compute, with what the caller brought
              seen(forward, ...)           what the vision tower made: may be that of other pictures than were brought
              begin(forward, kwargs)       the language model is about to run, nothing has been dropped: a Run
              Run.enter(kwargs)            may shorten the embeddings in `kwargs`
              Run.leave(cache)             the language model has run
"""

from __future__ import annotations

import pkgutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from vtc.layout import VisualSpan
from vtc.methods.base.method import Method
from vtc.models.decoder import Decoder, decoder_for
from vtc.models.family import Adapter
from vtc.selection import Selection
from vtc.stages import register_stage
from vtc.transfer import download_all

if TYPE_CHECKING:
    from vtc.engine.find_layout import Seen
    from vtc.engine.forward import Forward

_STAGES: list[type[Stage]] = []


@dataclass(frozen=True, eq=False)
class Facts:
    """A wrapped model and where its parts are."""

    model: nn.Module
    family: Adapter

    @property
    def language_model(self) -> Any:
        """The language model without its head."""
        return self.family.language_model(self.model)

    @property
    def decoder(self) -> Decoder:
        """What is known of how its layers attend."""
        return decoder_for(self.language_model)

    @property
    def layers(self) -> Any:
        """The decoder layers."""
        return self.decoder.layers(self.language_model)

    @property
    def whole(self) -> tuple[int, ...]:
        """The decoder layers whose cache holds the whole conversation."""
        return self.decoder.whole(self.language_model.config)

    @property
    def depth(self) -> int:
        """The number of decoder layers."""
        return len(self.layers)

    @property
    def attending(self) -> tuple[int, ...]:
        """Those of them that keep rows in the KV cache; all, but for models with recurrent layers."""
        return self.decoder.attending(self.language_model.config)

    def only_some(self, method: Method) -> list[str]:
        """What the report says of a method of the KV cache, where some layers do not hold the whole conversation."""
        if len(self.whole) == self.depth:
            return []
        some = f"{method.title} acts in the {len(self.whole)} of {self.depth} decoder layers that"
        if len(self.whole) < len(self.attending):
            return [f"{some} see the whole conversation; the others hold what their window reaches."]
        return [
            f"{some} attend; the others keep no token of their own, or a state of one size, of which nothing can be "
            "left out."
        ]


class Run:
    """One forward as a stage sees it; the base does nothing."""

    def __init__(self, stage: Any, forward: Forward) -> None:
        assert forward.flow is not None  # runs begin when it has
        self.stage, self.forward, self.flow = stage, forward, forward.flow

    def enter(self, kwargs: dict[str, Any]) -> None:
        """Before the language model: `kwargs` are its keyword arguments, to be changed in place."""

    def leave(self, cache: Any) -> None:
        """After the language model; `cache` is the KV cache it filled, None without one."""


def checked(
    method: Method, selections: Sequence[Selection], sizes: Sequence[int], may_be_empty: bool = False
) -> list[Selection]:
    """The same selections, if they fit together and the spans of `sizes` tokens: ValueError if not.

    To look at what somebody else's method returns, the device is waited for once. Our own methods choose by `top_k` and
    the like, which cannot return what does not fit, and are held to it by the tests of every method.
    """
    for selection, size in zip(selections, sizes, strict=True):
        if selection.tokens_in != size:
            raise ValueError(
                f"{method.title} returned a Selection of {selection.tokens_in} tokens for {size}: its total is the "
                "number of tokens that the method was given, len(tokens.features)."
            )
    names = [getattr(type(method), name).__module__ for name in ("select", "select_many")]
    if all(name.startswith("vtc.methods.") for name in names):
        empty = any(selection.tokens_out == 0 for selection in selections) and not may_be_empty
        return [selection.check() for selection in selections] if empty else list(selections)
    numbers = iter(download_all([x for s in selections for x in ((s.anchor,) if s.pruned else (s.anchor, s.source))]))
    for selection in selections:
        anchor = next(numbers)
        if selection.pruned:
            Selection.prune(anchor, selection.tokens_in).check(may_be_empty)
        else:
            weight = torch.empty(selection.weight.shape)
            Selection(anchor, next(numbers), weight).check(may_be_empty)
    return list(selections)


def in_order(selections: Sequence[Selection], own: Sequence[bool]) -> list[Selection]:
    """Outputs in the order of their places, but for those spans that are to keep their `own` order."""
    if all(own):
        return list(selections)
    ordered = Selection.sort_all(selections)
    return [given if kept else new for given, new, kept in zip(selections, ordered, own, strict=True)]


def identical(selections: Sequence[Selection]) -> bool:
    """Whether nothing changes; looked at only where no span is to lose a token."""
    if any(selection.tokens_out < selection.tokens_in for selection in selections):
        return False
    return all(selection.is_identity for selection in selections)


class Stage:
    """Base of stages.

    A subclass sets `name` (what methods call it), `order` (by which stages follow each other; pixels is 5, input 20,
    layer 30, cache 40) and, if its methods have a base class of their own, that one's name as `base`; it overrides what
    it needs.
    """

    name: ClassVar[str] = ""
    order: ClassVar[int] = 0
    base: ClassVar[str] = "Method"
    #: whether it makes of several tokens what a Selection says; else a method that merges is refused
    can_merge: ClassVar[bool] = True
    #: whether, after it, decoder layers may hold different rows, so that each has to be handed its own mask
    uneven: ClassVar[bool] = True
    #: whether, under it, rows of a batch may become unequally long
    shortens: ClassVar[bool] = True
    #: whether its methods are told the vision tower's signals when that has run
    listens: ClassVar[bool] = True
    run: ClassVar[type[Run]] = Run

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if cls.__dict__.get("name"):
            register_stage(cls.name, cls.order, cls.base)
            same = [(one.__module__, one.__qualname__) == (cls.__module__, cls.__qualname__) for one in _STAGES]
            _STAGES[:] = [one for one, made_again in zip(_STAGES, same, strict=True) if not made_again]
            _STAGES.append(cls)

    @classmethod
    def takes(cls, method: Method) -> bool:
        """Whether this stage runs `method`."""
        return method.stage == cls.name

    def __init__(self, facts: Facts, methods: Sequence[Any]) -> None:
        self.facts, self.methods = facts, tuple(methods)
        for method in self.methods:
            if method.merges and not self.can_merge:
                raise ValueError(
                    f"{method.title} merges tokens, which the stage {self.name!r} cannot: it only drops them; use a "
                    "method that prunes there, or one that merges at another stage."
                )

    def check_beside(self, others: Sequence[Method]) -> None:
        """Raise ValueError, at `wrap`, if this stage's methods cannot work beside `others`, those of other stages."""

    def first_inside(self) -> int | None:
        """The first decoder layer before which tokens may go; None = none do."""
        return None

    def attach(self) -> Iterator[RemovableHandle]:
        """Register hooks of its own, one after the other."""
        yield from ()

    def check(self, forward: Forward) -> None:
        """Raise ValueError, before any compute, if this forward cannot be right under this stage."""

    def seen(self, forward: Forward, seen: list[Seen], outputs: list[Any]) -> list[Seen]:
        """What is known of the pictures, of each modality; `outputs` are the tower's, None where there is none."""
        return seen

    def check_spans(self, spans: Sequence[VisualSpan]) -> None:
        """The same, before the language model runs, once it is known how many tokens each picture has."""

    def begin(self, forward: Forward, kwargs: dict[str, Any]) -> Run:
        """What this stage knows of one forward; `kwargs` are the language model's, before any stage has acted."""
        return self.run(self, forward)


def stages() -> list[type[Stage]]:
    """Every stage there is, in the order in which a token meets them."""
    package = import_module("vtc.engine.stages")
    for module in pkgutil.iter_modules(package.__path__):
        import_module(f"{package.__name__}.{module.name}")
    return sorted(_STAGES, key=lambda stage: stage.order)
