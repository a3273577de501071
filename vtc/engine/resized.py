"""Pictures that are made smaller before a tower of packed patches: their pixels, tokens, and the prompt's positions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vtc.engine.plan import Places
from vtc.models.family import GRIDS, SECONDS
from vtc.models.tower import Packing
from vtc.transfer import upload

if TYPE_CHECKING:
    from vtc.engine.forward import Forward
    from vtc.engine.stage import Facts


@dataclass(frozen=True, eq=False)
class Piece:
    """One picture or video in one row of a batch, all in main memory.

    Attributes:
        index: LongTensor [N], where its placeholders are. kept: LongTensor [M], which of these stand for the small one.
        number: of the picture or video among those of its modality, as the tower saw them.
    """

    row: int
    modality: str
    number: int
    index: Tensor
    kept: Tensor


@dataclass(frozen=True, eq=False)
class Resized:
    """What became of a forward's pictures.

    Attributes:
        pieces: in reading order, row by row.
        grids: by modality (grids as the processor made them, small ones), each LongTensor [pictures, 3] of patches in
            main memory.
    """

    pieces: list[Piece]
    grids: dict[str, tuple[Tensor, Tensor]]

    @property
    def sizes(self) -> tuple[int, int]:
        """Tokens of all pictures as they came, and of the small ones."""
        return sum(len(one.index) for one in self.pieces), sum(len(one.kept) for one in self.pieces)

    def places(self, device: torch.device) -> Places:
        """Where all placeholders are."""
        sizes = tuple(len(one.index) for one in self.pieces)
        rows = torch.tensor([one.row for one in self.pieces]).repeat_interleave(torch.tensor(sizes))
        at = torch.stack([rows, torch.cat([one.index for one in self.pieces])])
        return Places(tuple(one.row for one in self.pieces), sizes, upload(at, device))

    def left(self, rows: int, length: int) -> Tensor:
        """BoolTensor [B, L] in main memory: placeholders that stand for nothing."""
        left = torch.zeros(rows, length, dtype=torch.bool)
        for one in self.pieces:
            left[one.row, one.index] = True
            left[one.row, one.index[one.kept]] = False
        return left


def kept_of(whole: Sequence[int], small: Sequence[int], merge: int) -> Tensor:
    """LongTensor [M]: which of a picture's tokens stand for those of its small grid: the last ones of each frame.

    Example: two frames of 2 x 3 tokens each that become 1 x 2: tokens 4 and 5, and 10 and 11.
    """
    frame, own = (thw[1] * thw[2] // merge**2 for thw in (whole, small))
    return torch.arange(whole[0] * frame).view(whole[0], frame)[:, frame - own :].flatten()


def repacked(
    pixels: Tensor, whole: Sequence[Sequence[int]], small: Sequence[Sequence[int]], packing: Packing
) -> Tensor:
    """Packed patches [P, C * T * p * p] of pictures of grids `whole`, (t, h, w) in patches, resized to grids `small`.

    A patch holds T frames of p x p pixels, and merge x merge of them that become a token follow each other.
    """
    own = pixels.split([math.prod(thw) for thw in whole])
    return torch.cat([x if a == b else _resized(x, a, b, packing) for x, a, b in zip(own, whole, small, strict=True)])


def _resized(x: Tensor, whole: Sequence[int], small: Sequence[int], packing: Packing) -> Tensor:
    merge, frames, side = packing
    t, h, w = whole
    cells = x.view(t, h // merge, w // merge, merge, merge, -1, frames, side, side)
    picture = cells.permute(0, 6, 5, 1, 3, 7, 2, 4, 8).reshape(t * frames, -1, h * side, w * side)
    size = small[1] * side, small[2] * side
    done = torch.nn.functional.interpolate(picture.float(), size=size, mode="bicubic", antialias=True).to(x.dtype)
    cells = done.view(t, frames, -1, small[1] // merge, merge, side, small[2] // merge, merge, side)
    return cells.permute(0, 3, 6, 4, 7, 2, 1, 5, 8).reshape(math.prod(small), -1)


def small_positions(
    facts: Facts, title: str, forward: Forward, given: Tensor | None, left: Tensor, resized: Resized
) -> tuple[Tensor, Tensor]:
    """Positions of the whole prompt's tokens as if it were one for the small pictures.

    Args:
        title: of the method that makes them smaller.
        given: positions that the language model was handed, None = consecutive ones.
        left: BoolTensor [B, L] in main memory, placeholders that are left over.

    Returns:
        [3, B, L]; LongTensor [B], how far down what follows the prompt moves.
    """
    host, more = forward.host, forward.given
    types, ids = host.get("mm_token_type_ids"), host["input_ids"]
    if not facts.family.typed:
        types = torch.zeros_like(ids)
    device = more["input_ids"].device if given is None else given.device
    told = isinstance(more.get("position_ids"), Tensor)
    if types is None or not (told or any(more.get(GRIDS[modality]) is not None for modality in resized.grids)):
        gone = upload(left, device).cumsum(dim=1)  # the model counts visual tokens like words
        base = torch.arange(left.shape[1], device=device).expand(3, *left.shape) if given is None else given[-3:]
        return base - gone, gone[:, -1]
    types = torch.nn.functional.pad(types, (0, ids.shape[1] - types.shape[1]))
    real = host["attention_mask"].bool() if "attention_mask" in host else torch.ones_like(ids, dtype=torch.bool)
    orders = {m: [one.number for one in resized.pieces if one.modality == m] for m in resized.grids}
    whole, small = ({m: grids[i][orders[m]] for m, grids in resized.grids.items()} for i in (0, 1))
    seconds = _seconds(forward, orders.get("video", []))
    before = facts.family.prompt_positions(facts.model, ids, types, real, whole, seconds)
    if told and bool((more["position_ids"][-3:].cpu() - before)[:, real].any()):
        raise ValueError(
            f"{title} numbers a prompt anew as the model itself does, and position_ids are other "
            "than that: leave them out."
        )
    stays = real & ~left
    width = int(stays.sum(dim=1).max())
    order = stays.to(torch.uint8).argsort(dim=1, stable=True)[:, -width:]  # what stays, on the right
    there = stays.gather(1, order)
    after = facts.family.prompt_positions(
        facts.model, ids.gather(1, order), types.gather(1, order), there, small, seconds
    )
    order = order.expand(3, -1, -1)
    new = before.scatter(2, order, torch.where(there, after, before.gather(2, order)))
    ends = [torch.where(valid, own, -1).amax(dim=(0, 2)) for own, valid in ((before, real), (after, there))]
    return upload(new, device), upload(ends[0] - ends[1], device)


def _seconds(forward: Forward, order: Sequence[int]) -> Tensor | None:
    """Seconds per time step of the videos `order`, where the processor told."""
    seconds = next((forward.given[name] for name in SECONDS if forward.given.get(name) is not None), None)
    if seconds is None or not order:
        return None
    seconds = torch.as_tensor(seconds).cpu()
    return seconds if len(seconds) == len(order) else seconds[list(order)]
