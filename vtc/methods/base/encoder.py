"""Bases of the methods that can act inside the vision tower, between its blocks (stage `encoder`)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from numbers import Integral
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from vtc.budget import SCHEDULES, merged_counts, token_count
from vtc.checks import check_number
from vtc.methods.base.method import Method
from vtc.selection import Selection
from vtc.signals import VisualTokens


@dataclass(frozen=True, eq=False)
class BlockTokens:
    """What a method sees between the attention and the feed-forward part of one block, of a batch of pictures at once.

    A picture's first rows, `prefix` of them (CLS, registers, a distillation token), are none of its patches and stay.

    Attributes:
        keys: [B, T, d], the block's keys, averaged over heads, before any rotation; detached.
        size: [B, T] in fp32, how many patches are in each row.
        prefix: rows before the patches. has_cls: whether the first of them is a CLS token.
        gone: how many rows are to go, the same for each picture; of packed rows LongTensor [B], of each.
        lengths: LongTensor [B], how many rows each has, in towers whose rows are packed; what fills up the others is to
            be left alone. There a "picture" is a window, or a frame where there are none, and a "patch" the 2 x 2 that
            make a token. None = all have T.
        total: patches of a picture.
        block: number of the block. depth: how many blocks count.
        attention: () -> queries and keys [B, H, T, d] as the attention multiplies them, and the scale of the products.
        pictures: () -> the patches that are left of each picture, as methods of other stages see them.
    """

    keys: Tensor
    size: Tensor
    prefix: int
    has_cls: bool
    gone: int | Tensor
    total: int
    block: int
    depth: int
    attention: Callable[[], tuple[Tensor, Tensor, float]]
    pictures: Callable[[], list[VisualTokens]]
    lengths: Tensor | None = None


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
    """Base of methods that act between the blocks of a vision tower, or can; see MergingMethod and DroppingMethod.

    A new one defines `counts_to` and `join`. `keep` is then the share of the patches that is left behind the last block
    that counts: the one whose output the projector reads, or the last one of a tower that is wrapped alone. Where
    patches have left before the tower, it is still a share of the whole picture.

    Args:
        stage: "input", between projector and language model, or "encoder", between the blocks of the vision tower;
            None stands for "input" in a vision-language model and for "encoder" in a tower that is wrapped alone.
        shorten: at the stage "encoder" of a vision-language model, whether the language model reads what has merged as
            one token, and what was dropped not at all, where each patch makes a token; else it reads something for
            every patch, as it does where several patches make one.
    """

    stage: str | None = None  # pyright: ignore[reportIncompatibleVariableOverride]
    shorten: bool = True

    #: where the method can act
    places: ClassVar[tuple[str, ...]] = ("input", "encoder")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.stage is not None and self.stage not in self.places:
            raise ValueError(f"stage={self.stage!r} is not one of {', '.join(self.places)}.")

    def counts(self, total: int, depth: int) -> tuple[int, ...]:
        """Patches left behind each of `depth` blocks that count, of `total`; ValueError if `keep` is out of reach."""
        return self.counts_to(token_count(self.keep, total), total, depth)

    def counts_to(self, last: int, total: int, depth: int) -> tuple[int, ...]:
        """The same where `last` are to be left."""
        raise TypeError(f"{type(self).__name__} does not define counts_to(last, total, depth).")

    def join(self, tokens: BlockTokens) -> Joined:
        """Which rows go: `tokens.gone` of each picture's patches."""
        raise TypeError(f"{type(self).__name__} cannot act inside the vision tower: it does not define join(tokens).")

    def check_depth(self, depth: int) -> None:
        """Raise ValueError if it cannot act in a tower of which `depth` blocks count."""

    @property
    def packs(self) -> bool:
        """Whether `join` heeds `lengths`, in towers whose rows are packed."""
        return False

    @property
    def weighs(self) -> bool:
        """Whether a row attracts as much attention as the patches in it, in the blocks behind the one it merged in."""
        return False

    def hears(self, block: int, depth: int) -> tuple[tuple[str, int], ...]:
        """What `pictures` of the tokens of a block have to read: signals of the tower, and of which block."""
        return ()


@dataclass(frozen=True, kw_only=True)
class MergingMethod(EncoderMethod):
    """Base of methods that merge some patches in every block.

    Args:
        schedule: at the stage "encoder", how the patches that go are spread over the blocks: equally many in each
            ("constant"), linearly fewer ("decreasing") or more ("increasing"), or an equal share of what is left in
            each ("geometric"). No block takes more than half.
        proportional: at the stage "encoder", whether a merged patch attracts as much attention as the patches in it
            (the logarithm of their number is added to its logits, in all later blocks).
    """

    schedule: str = "constant"
    proportional: bool = True
    merges = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.schedule not in SCHEDULES:
            raise ValueError(f"schedule={self.schedule!r} is not one of {', '.join(SCHEDULES)}.")

    @property
    def weighs(self) -> bool:
        return self.proportional

    def counts_to(self, last: int, total: int, depth: int) -> tuple[int, ...]:
        return merged_counts(total, last, depth, self.schedule)


@dataclass(frozen=True, kw_only=True)
class DroppingMethod(EncoderMethod):
    """Base of methods that choose among patches once, and may do so inside the vision tower.

    There `select` sees the hidden states of a block after its attention, and of the tower's signals those of the blocks
    so far. What is dropped attends to nothing and is attended to by nobody in later blocks; the tower hands over, in
    its place, what has become of the patch that stayed and was most like it (cosine of keys).

    Args:
        block: at the stage "encoder", where to drop: an int (0-based) or a fraction in [0, 1) of the blocks that count.
    """

    block: int | float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        what = "a block's number (an int), or a share of the blocks in [0, 1) (a float)"
        whole = isinstance(self.block, Integral)
        check_number(self.block, "block", 0, below=None if whole else 1, integer=whole, what=what)
        foreign = [name for name in self.requires() if name not in ("cls_attention", "received_attention", "keys")]
        if self.stage == "encoder" and foreign:
            raise ValueError(f"{self.title} reads {foreign[0]!r}, which is not known inside the vision tower.")

    def at(self, depth: int) -> int:
        """The block behind whose attention patches go, of `depth` that count."""
        number = int(self.block) if isinstance(self.block, Integral) else int(self.block * depth)
        if number >= depth:
            raise ValueError(f"block={self.block} of {self.title}: only blocks 0 to {depth - 1} of this tower count.")
        return number

    def check_depth(self, depth: int) -> None:
        self.at(depth)

    def counts_to(self, last: int, total: int, depth: int) -> tuple[int, ...]:
        at = self.at(depth)
        return (total,) * at + (last,) * (depth - at)

    def hears(self, block: int, depth: int) -> tuple[tuple[str, int], ...]:
        if block != self.at(depth):
            return ()
        layers = self.tower_layers(depth, block)
        return tuple((name, layer) for name in self.requires() for layer in (layers if name != "keys" else (block,)))

    def join(self, tokens: BlockTokens) -> Joined:
        chosen = self.select_many(tokens.pictures())
        rows = torch.stack([_stays(one) for one in chosen]) + tokens.prefix
        own = torch.arange(tokens.keys.shape[1], device=rows.device).repeat(len(rows), 1)
        kept = torch.zeros_like(own, dtype=torch.bool).scatter_(1, rows, True)
        kept[:, : tokens.prefix] = True
        return Joined(torch.where(kept, own, -1))


def _stays(selection: Selection) -> Tensor:
    if selection.merges:
        raise ValueError("a method that drops patches inside the vision tower returned a Selection that merges some.")
    return selection.anchor


def placed(method: Method, stage: str) -> Method:
    """The method at `stage`, if it is one that may act at several and does not say where."""
    return replace(method, stage=stage) if isinstance(method, EncoderMethod) and method.stage is None else method
