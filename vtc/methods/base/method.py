"""Method: what every compression method is. The base owns the budget and the order; a method only chooses."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from inspect import get_annotations
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from vtc.budget import check_keep, token_count
from vtc.methods.base.index import Paper
from vtc.selection import Selection
from vtc.signals import VisualTokens, check_signals, stacked
from vtc.stages import check_stage

POSITIONS = ("original", "compact")


@dataclass(frozen=True, kw_only=True)
class Method:
    """Base class of all methods: a frozen dataclass that turns `VisualTokens` into a `Selection`.

    A new method overrides `score(tokens) -> [N]` (the base keeps the highest) or `select(tokens) -> Selection`.
    Giving the class a `name` registers it. Class attributes declare what it is; the engine and the tables read them.

    Args:
        keep: float in (0, 1] = fraction of each image's visual tokens, int = count per image.
        positions: "original" (each kept token keeps its position id) or "compact" (renumbered); None stands for
            `positions_default`.
        scope: what is chosen among before the language model: "clip", all tokens of an image or video; "frame", each
            frame of a video for itself; "crop", also each crop of an any-resolution image (what the vision tower saw as
            one picture). Each has a share of the budget in proportion to its tokens. None stands for `scope_default`.
    """

    keep: int | float = 0.25
    positions: str | None = None
    scope: str | None = None

    name: ClassVar[str] = ""
    stage: ClassVar[str] = "input"
    needs: ClassVar[tuple[str, ...]] = ()
    query_aware: ClassVar[bool] = False
    #: whether exactly `keep` tokens stay; a field or a property of this name answers where options decide
    exact_count: ClassVar[bool] = True
    merges: ClassVar[bool] = False
    trained: ClassVar[bool] = False
    #: whether outputs that are made of several tokens come after those that stay as they are; False = all in order
    appends: ClassVar[bool] = False
    #: whether it treats a picture or video that has its prompt to itself (`VisualTokens.alone`) in another way
    heeds_others: ClassVar[bool] = False
    #: whether `score` takes several spans of one size at once: its signals then have one more dimension in front, and
    #: so has what it returns
    stacks: ClassVar[bool] = False
    modality: ClassVar[tuple[str, ...]] = ("image", "video")
    #: model types that alone can run it; () = whatever vtc wraps
    only: ClassVar[tuple[str, ...]] = ()
    positions_default: ClassVar[str] = "original"
    scopes: ClassVar[tuple[str, ...]] = ("clip", "frame", "crop")
    scope_default: ClassVar[str] = "clip"
    #: options that name a file, or a folder
    files: ClassVar[tuple[str, ...]] = ()
    paper: ClassVar[Paper | None] = None

    def __init_subclass__(cls, **kwargs: object) -> None:
        super().__init_subclass__(**kwargs)
        check_signals(cls.needs, cls.__name__)
        if "score" in cls.__dict__ and "stacks" not in cls.__dict__:
            cls.stacks = False  # the parent's promise was about its own score
        own = get_annotations(cls)
        for field in fields(Method):  # `keep = 64` means the field, too: dataclasses would ignore it
            if field.name in cls.__dict__ and field.name not in own:
                cls.__annotations__ = own = {**own, field.name: field.type}
        check_stage(cls.__name__, cls.stage or "input", {base.__name__ for base in cls.__mro__})
        if cls.__dict__.get("name"):
            from vtc.methods.base.registry import register

            register(cls)

    def __post_init__(self) -> None:
        object.__setattr__(self, "keep", check_keep(self.keep))
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type == "bool" and not isinstance(value, bool):
                raise ValueError(f"{field.name}={value!r} of {self.title} is neither True nor False.")
        if self.positions is None:
            object.__setattr__(self, "positions", self.positions_default)
        if self.positions not in POSITIONS:
            raise ValueError(f'positions={self.positions!r} is not one of "original", "compact".')
        if self.scope is None:
            object.__setattr__(self, "scope", self.scope_default)
        if self.scope not in self.scopes:
            raise ValueError(f"scope={self.scope!r} is not one of {', '.join(self.scopes)}.")

    def __str__(self) -> str:
        """`name(option=value, ...)`, which `vtc.resolve` reads; where there is no such form, as `repr`."""
        from vtc.methods.base.serial import as_text

        try:
            return as_text(self)
        except TypeError:
            return repr(self)

    def as_dict(self) -> dict[str, Any]:
        """This method for a JSON file: its name, and all options, as later versions may have other defaults.

        Raises:
            TypeError: with one sentence; its class has no registered name, or an option holds a live object.
        """
        from vtc.methods.base.serial import as_dict

        return as_dict(self)

    def cache_key(self) -> str:
        """One string for caches of compressed pictures: with equal keys the same is kept of the same picture.

        It holds the version of vtc, the name, and all options, those too that were left at their defaults; a file of
        weights or numbers stands by what is in it. Beside it a cache has to know the model, the picture and, of methods
        that are `query_aware`, the text. Of several methods the keys stand one after another.

        Raises:
            TypeError: with one sentence; its class has no registered name, or an option holds a live object.
        """
        from vtc.methods.base.serial import cache_key

        return cache_key(self)

    @classmethod
    def from_dict(cls, written: Mapping[str, Any]) -> Self:
        """The method that `as_dict` wrote, found by its name.

        Raises:
            ValueError, TypeError: with one sentence; an unknown format, name or option, or a method of another class.
        """
        from vtc.methods.base.serial import from_dict

        method = from_dict(written)
        if not isinstance(method, cls):
            raise TypeError(f"{written['name']!r} is no {cls.__name__}: read it with vtc.Method.from_dict.")
        return method

    @property
    def title(self) -> str:
        """The name to show: the registered one, or the class's."""
        return self.name or type(self).__name__

    def parts(self) -> tuple[Method, ...]:
        """The methods of one stage each that make up this one; itself, unless a paper combines several stages."""
        return (self,)

    @property
    def changes_tower(self) -> bool:
        """Whether patches leave or merge before the vision tower or inside it, which then runs for it alone."""
        return any(part.stage in ("pixels", "encoder") for part in self.parts())

    def keeps_all(self) -> bool:
        """Whether `keep=1.0` leaves everything as it is; not where something else than the budget decides, too."""
        return True

    def requires(self) -> tuple[str, ...]:
        """Signals this instance asks for; `needs` unless an option changes it."""
        return self.needs

    def tower_layers(self, depth: int, feature_layer: int) -> tuple[int, ...]:
        """Layers (0-based, of `depth`) of the vision tower whose attention this method reads.

        `feature_layer` is the layer whose output the projector reads: 22 of CLIP-L's 24 in LLaVA-1.5.
        """
        return (feature_layer,)

    def signal_number(self, name: str) -> float:
        """The number that this method wants the signal `name` with, of signals that take one."""
        raise TypeError(f"{type(self).__name__} reads {name!r}, which takes a number: define signal_number(name).")

    def check_model(self, model_type: str, width: int) -> None:
        """Raise ValueError with one sentence if this method cannot serve such a model; asked when it is wrapped.

        Args:
            model_type: of its config. width: of the language model's embeddings.
        """

    def check_checkpoint(self, model_type: str, fingerprint: Callable[[], str]) -> None:
        """Raise ValueError with one sentence if this method holds numbers that were found for another model; asked when
        it is wrapped.

        Args:
            model_type: of its config. fingerprint: () -> what tells it from others, see `vtc.models.fingerprint`.
        """

    @classmethod
    def completed(cls, options: dict[str, Any]) -> dict[str, Any]:
        """The options that a method is to be made with, those filled in that follow from others."""
        return options

    def module_flops(self, tokens_in: int, tokens_out: int, width: int) -> int:
        """FLOPs of the method's own learned module on one span, multiply-adds counted twice; 0 = it has none."""
        return 0

    def count(self, tokens: VisualTokens) -> int:
        """How many outputs `keep` asks for; fractions refer to the uncompressed span."""
        if tokens.budget is not None:
            return min(tokens.budget, tokens.features.shape[0])
        return min(token_count(self.keep, tokens.total), tokens.features.shape[0])

    def score(self, tokens: VisualTokens) -> Tensor:
        """Importance of each token, [N]; the highest are kept."""
        raise TypeError(f"{type(self).__name__} has no score(tokens): it defines select(tokens) instead.")

    def select(self, tokens: VisualTokens) -> Selection:
        """Choose: [N, D] features -> Selection. By default the `count` highest scores, in their original order."""
        return self._highest(tokens, self.score(tokens))

    def _highest(self, tokens: VisualTokens, score: Tensor) -> Selection:
        """The `count` highest of `score` [N], in their original order."""
        n = tokens.features.shape[0]
        if score.shape != (n,):
            raise ValueError(
                f"score(tokens) returned shape {tuple(score.shape)}; expected one number per token, [{n}]."
            )
        return Selection.prune(top_k(score, self.count(tokens)), n, ascending=True)

    def select_many(self, many: Sequence[VisualTokens]) -> list[Selection]:
        """`select` for every span of a batch; a method that can choose for all of them at once overrides this, or says
        that its `score` `stacks`."""
        scores = type(self).select is Method.select
        together = stacked(many) if len(many) > 1 and self.stacks and scores else None
        if together is None:
            return [self.select(tokens) for tokens in many]
        n, score = many[0].features.shape[0], self.score(together)
        if score.shape != (len(many), n):
            given, wanted = tuple(score.shape), (len(many), n)
            raise ValueError(f"score(tokens) of {self.title}, which stacks, returned shape {given}; expected {wanted}.")
        return [Selection.prune(kept, n, ascending=True) for kept in top_k(score, self.count(many[0]))]


def rest_of(kept: Tensor, total: int) -> Tensor:
    """Ascending indices of those of `total` tokens that are not among `kept` [M]: LongTensor [total - M]."""
    taken = torch.zeros(total, dtype=torch.uint8, device=kept.device).index_fill_(0, kept, 1)
    return taken.argsort(stable=True)[: total - len(kept)]  # their number is known: nothing is counted on the device


def top_k(score: Tensor, k: int) -> Tensor:
    """Ascending indices of the k highest of `score` [N], or of each row of [..., N]; ties go to the lowest index, NaN
    counts as lowest."""
    score = score.detach().float()
    if score.device.type == "cpu" and score.dim() == 1 and 0 < k < len(score):  # a GPU would have to be waited for
        found = (score > score.topk(k + 1, sorted=False).values.min()).nonzero()[:, 0]
        if len(found) == k:  # neither a tie to break, nor NaN
            return found
    # upwards, as that puts NaN last
    return score.neg().argsort(dim=-1, stable=True)[..., :k].sort(dim=-1).values
