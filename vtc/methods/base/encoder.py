"""EncoderMethod: base of the methods that can act inside the vision tower, between its blocks (stage `encoder`)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple

from torch import Tensor

from vtc.budget import SCHEDULES, merged_counts, token_count
from vtc.methods.base.method import Method


@dataclass(frozen=True, eq=False)
class BlockTokens:
    """What a method sees between the attention and the feed-forward part of one block, of a batch of pictures at once.

    A picture's first rows, `prefix` of them (CLS, registers, a distillation token), are none of its patches and stay.

    Attributes:
        keys: [B, T, d], the block's keys, averaged over heads, before any rotation; detached.
        size: [B, T] in fp32, how many patches are in each row.
        prefix: rows before the patches.
        gone: how many rows are to go, the same for each picture.
        block: which of the blocks that count this is, from 0. depth: how many those are.
    """

    keys: Tensor
    size: Tensor
    prefix: int
    gone: int
    block: int
    depth: int


class Joined(NamedTuple):
    """What becomes of the rows of a block.

    Attributes:
        target: LongTensor [B, T], the row that each one joins: itself if it stays, -1 if it is dropped.
        stays: LongTensor [B, M], those that stay in the order in which they go on; None = ascending.
    """

    target: Tensor
    stays: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class EncoderMethod(Method):
    """Base of methods that act between the blocks of a vision tower, or can.

    A new one overrides `join`. `keep` is then the share of the patches that is left behind the last block that counts:
    the one whose output the language model's projector reads, or the last one of a tower that is wrapped alone.

    Args:
        stage: "input", between projector and language model, or "encoder", between the blocks of the vision tower;
            None stands for "input" in a vision-language model and for "encoder" in a tower that is wrapped alone.
        schedule: at the stage "encoder", how the patches that go are spread over the blocks: equally many in each
            ("constant"), linearly fewer ("decreasing") or more ("increasing"), or an equal share of what is left in
            each ("geometric"). No block takes more than half.
        proportional: at the stage "encoder", whether a merged patch attracts as much attention as the patches in it
            (the logarithm of their number is added to its logits, in all later blocks).
        shorten: at the stage "encoder" of a vision-language model, whether the language model reads what has merged as
            one token, where each patch makes one; else it reads a copy for every patch, as where several make one.
    """

    stage: str | None = None  # pyright: ignore[reportIncompatibleVariableOverride]
    schedule: str = "constant"
    proportional: bool = True
    shorten: bool = True

    #: where the method can act
    places: ClassVar[tuple[str, ...]] = ("input", "encoder")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.stage is not None and self.stage not in self.places:
            raise ValueError(f"stage={self.stage!r} of {self.title} is not one of {', '.join(self.places)}.")
        if self.schedule not in SCHEDULES:
            raise ValueError(f"schedule={self.schedule!r} of {self.title} is not one of {', '.join(SCHEDULES)}.")

    def counts(self, total: int, depth: int) -> tuple[int, ...]:
        """Patches left behind each of the `depth` blocks that count, of `total`; ValueError if `keep` is out of reach."""
        return merged_counts(total, token_count(self.keep, total), depth, self.schedule)

    def join(self, tokens: BlockTokens) -> Joined:
        """Which rows go: `tokens.gone` of each picture's patches."""
        raise TypeError(f"{type(self).__name__} cannot act inside the vision tower: it does not define join(tokens).")


def placed(method: Method, stage: str) -> Method:
    """The method at `stage`, if it is one that may act at several and does not say where."""
    return replace(method, stage=stage) if isinstance(method, EncoderMethod) and method.stage is None else method
