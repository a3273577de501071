"""LayerMethod: base of the methods that drop tokens between decoder layers, at one layer or at several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from vtc.budget import check_keep, check_layer, counts_for_average, layer_number, scaled, token_count
from vtc.checks import check_row
from vtc.methods.base.method import Method
from vtc.signals import VisualTokens


@dataclass(frozen=True, kw_only=True)
class LayerMethod(Method):
    """Base of methods of the stage `layer`.

    Before each of `layers` the method is asked to choose among the tokens that are still there. How many it keeps
    follows the paper's schedule (`shape`), raised to the power that makes its last step `keep`, so that a larger budget
    is larger everywhere; `keeps` says it layer by layer instead.

    Args:
        keep: what is left after the last of `layers`; with `average=True`, the mean over all decoder layers. A
            fraction or a count of the original number per image.
        layers: the decoder layers before which tokens go: ints from 1 (0-based, so 2 = after two layers), or floats,
            fractions of the depth. In a model too shallow to tell two of them apart, they become one step.
        keeps: one budget per layer, counts or fractions of the original number, never growing.
        average: read `keep` as the mean over all decoder layers, the unit of several papers' tables.
    """

    layers: tuple[int | float, ...] = ()
    keeps: tuple[int | float, ...] | None = None
    average: bool = False

    stage: ClassVar[str] = "layer"
    scopes: ClassVar[tuple[str, ...]] = ("clip",)
    #: "previous": hears the layer just run; "next": the queries and keys of the layer about to run
    reads: ClassVar[str] = "next"
    #: the paper's budget after each layer, as fractions of the original number
    shape: ClassVar[tuple[float, ...]] = ()
    #: whether a step may drop every visual token
    may_drop_all: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        layers = self.layers if isinstance(self.layers, Sequence) else (self.layers,)
        if not layers:
            raise ValueError(f"{self.title} needs at least one layer in layers=.")
        object.__setattr__(self, "layers", tuple(check_layer(layer, "layers") for layer in layers))
        if self.keeps is None:
            return
        check_row(self.keeps, "keeps", "budgets: give one per layer, such as (64, 0.25)")
        object.__setattr__(self, "keeps", tuple(check_keep(keep) for keep in self.keeps))
        if len(self.keeps) != len(self.layers):
            raise ValueError(f"keeps= has {len(self.keeps)} budgets for {len(self.layers)} layers; give one per layer.")
        if self.average:
            raise ValueError("give either keeps= or average=True: keeps= already says every step.")
        for one, two in zip(self.keeps, self.keeps[1:], strict=False):
            if type(one) is type(two) and two > one:
                raise ValueError(f"keeps={self.keeps} grows: tokens that are gone do not come back.")

    def _kept_steps(self, depth: int) -> dict[int, int]:
        """Decoder layer -> which of `layers` it is; where two fall on one layer, the later."""
        found: dict[int, int] = {}
        for i, layer in enumerate(self.layers):
            number = layer_number(layer, depth, self.title)
            if found and number < max(found):
                raise ValueError(f"layers={self.layers} of {self.title} do not ascend in a model of {depth} layers.")
            found[number] = i
        return found

    def steps(self, depth: int) -> tuple[int, ...]:
        """The decoder layers (0-based) before which this method chooses, in a model of `depth` layers."""
        return tuple(self._kept_steps(depth))

    def counts(self, total: int, depth: int) -> tuple[int, ...]:
        """Visual tokens left after each step, of `total`."""
        which = self._kept_steps(depth)
        if self.keeps is not None:
            counts = [token_count(self.keeps[i], total) for i in which.values()]
            return tuple(min(counts[: n + 1]) for n in range(len(counts)))
        n = len(self.layers)
        shape = self.shape if len(self.shape) == n else tuple(0.5 ** ((i + 1) / n) for i in range(n))
        shape = tuple(shape[i] for i in which.values())
        wanted = token_count(self.keep, total)
        if self.average:
            return counts_for_average(shape, tuple(which), wanted, total, depth, self.title)
        return scaled(shape, wanted, total)

    def due(self, total: int, counts: tuple[int, ...], depth: int) -> bool:
        """Whether there may be anything to choose, for a span of `total` tokens; see `VisualTokens.counts`."""
        return True

    def count(self, tokens: VisualTokens) -> int:
        if not tokens.depth:
            return super().count(tokens)
        return min(self.counts(tokens.total, tokens.depth)[tokens.step], tokens.features.shape[0])

    def listens(self, depth: int) -> range:
        """Decoder layers whose modules' `transition` this method hears; only if it needs that signal."""
        return range(0)

    def transition(self, ratio: Tensor, cosine: Tensor, real: Tensor) -> Tensor:
        """What one module (attention or feed-forward) says about each token, [B, S]; the engine adds them up.

        Args:
            ratio, cosine: [B, S], norm of the module's output over that of its input, and the cosine between them.
            real: BoolTensor [B, S], False for padding.
        """
        raise TypeError(f"{type(self).__name__} needs 'transition', but does not define transition().")
