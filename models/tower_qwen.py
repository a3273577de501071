"""The vision towers of Qwen2-VL, Qwen2.5-VL, Qwen3-VL and Qwen3.5: pictures of any size, packed into one row."""

from __future__ import annotations

from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from vtc.models.tower import Groups, Packing, Tower
from vtc.transfer import upload


class QwenTower(Tower):
    """Rotary positions, frames that do not see each other, 2 x 2 patches merged into a token at its end."""

    model_types = ("qwen2_vl_vision",)
    takes = "packed"

    def packing(self, tower: Any) -> Packing:
        config = tower.config
        return Packing(config.spatial_merge_size, getattr(config, "temporal_patch_size", 1), config.patch_size)

    def blocks(self, tower: Any) -> Any:
        return tower.blocks

    def attentions(self, tower: Any) -> list[Any]:
        return [block.attn for block in self.blocks(tower)]

    def projections(self, attention: Any) -> tuple[nn.Module, nn.Module]:
        return attention.qkv, attention.qkv

    # -- between its blocks: 2 x 2 patches that make a token stay together ------------------------------------------

    widens = True

    def as_rows(self, x: Tensor) -> Tensor:
        return x.view(1, len(x) // 4, -1)  # as they lie, four patches of a token follow each other

    def from_rows(self, x: Tensor) -> Tensor:
        return x.reshape(x.shape[1] * 4, -1)

    def groups(self, tower: Any, kwargs: dict[str, Any]) -> list[int]:
        return [length // 4 for length in self.segments(kwargs) or []]

    def metric(self, attention: Any, k: Tensor) -> Tensor:
        keys = k.view(len(k), 3, attention.num_heads, -1)[:, 1]
        return keys.unflatten(0, (-1, 4)).mean(dim=(1, 2))[None]

    def with_rows(self, kwargs: dict[str, Any], anchor: Tensor, prefix: int, groups: Groups | None) -> dict[str, Any]:
        assert groups is not None
        whole, now = ([0, *accumulate(sizes)] for sizes in groups)
        moved = {4 * before: 4 * after for before, after in zip(whole, now, strict=True)}
        bounds = kwargs["cu_seqlens"]
        new = torch.tensor([moved[end] for end in bounds.tolist()], dtype=bounds.dtype)
        tables = tuple(x.unflatten(0, (-1, 4))[anchor[0]].flatten(0, 1) for x in kwargs["position_embeddings"])
        return {**kwargs, "cu_seqlens": upload(new, bounds.device), "position_embeddings": tables}

    # Its attention takes no mask. A channel more in each half of a head, which the rotary tables leave alone, holds 1
    # in queries and the bias in keys; values have nothing there.

    def joints(self, attention: Any) -> tuple[nn.Module, nn.Module]:
        return attention.qkv, attention.proj

    def check_bias(self, tower: Any) -> None:
        """Whatever it attends by multiplies queries and keys."""

    def with_bias(self, attention: Any, kwargs: dict[str, Any], bias: Tensor) -> dict[str, Any]:
        cos, sin = kwargs["position_embeddings"]
        return {**kwargs, "position_embeddings": (_two_more(cos, 1.0), _two_more(sin, 0.0))}

    def widened(self, attention: Any, output: Tensor, bias: Tensor) -> Tensor:
        wide = _two_more(output.view(len(output), 3, attention.num_heads, -1), 0.0)  # [R, 3, H, d + 2]
        middle = wide.shape[-1] // 2 - 1
        wide[:, 0, :, middle] = 1.0
        wide[:, 1, :, middle] = (bias.flatten().repeat_interleave(4) / attention.scaling)[:, None].to(wide)
        return wide.flatten(1)

    def narrowed(self, attention: Any, x: Tensor) -> Tensor:
        first, second = x.unflatten(-1, (attention.num_heads, -1)).chunk(2, dim=-1)
        return torch.cat([first[..., :-1], second[..., :-1]], dim=-1).flatten(-2)

    # -- as signals read its attention -------------------------------------------------------------------------------

    def segments(self, inputs: dict[str, Any]) -> list[int] | None:
        return inputs["cu_seqlens"].diff().tolist()

    def queries_keys(
        self, attention: Any, q: Tensor, k: Tensor, inputs: dict[str, Any], grid_thw: Tensor | None
    ) -> list[tuple[Tensor, Tensor]]:
        t = q.shape[0]  # patches of all images, packed; q and k are the same fused projection [t, 3 * H * d]
        queries, keys, _ = q.view(t, 3, attention.num_heads, -1).unbind(1)  # [t, H, d]
        cos, sin = (x.float().unsqueeze(1) for x in inputs["position_embeddings"])  # [t, 1, d]
        assert grid_thw is not None
        lengths: Any = [h * w for t, h, w in grid_thw.tolist() for _ in range(t)]  # patches of each frame
        if len(lengths) != len(inputs["cu_seqlens"]) - 1 or sum(lengths) != t:  # within windows, or patches are gone
            lengths = self.segments(inputs)
        packed = [rotated_patches(x.float(), cos, sin).transpose(0, 1).split(lengths, dim=1) for x in (queries, keys)]
        return [(a.unsqueeze(0), b.unsqueeze(0)) for a, b in zip(*packed, strict=True)]

    def cut_to(self, tower: Any, grid_thw: Tensor, kept: Tensor) -> dict[str, Tensor]:
        from transformers.vision_utils import get_vision_position_ids

        merge = tower.spatial_merge_size
        positions = get_vision_position_ids(grid_thw, merge)
        return {
            "cu_seqlens": _boundaries(_left(kept, _frames(grid_thw, merge)), merge**2),
            "position_ids": positions[kept.repeat_interleave(merge**2)],
        }

    def stretches(self, tower: Any, grid_thw: Tensor, kept: Tensor) -> list[list[int]]:
        merge = tower.spatial_merge_size
        lengths = [merge**2 * n for n in _left(kept, _frames(grid_thw, merge))]
        return [lengths] * len(self.blocks(tower))

    def tokens_from_patches(
        self, tower: Any, values: Tensor, grid_thw: Tensor | None, mean: bool, kept: Tensor | None = None
    ) -> Tensor:
        assert grid_thw is not None
        merged = tower.spatial_merge_size**2
        groups = values.unflatten(1, (-1, merged))  # [1, N, 4, ...], N tokens that are there
        sizes = (grid_thw.prod(dim=1) // merged).cpu()  # [images], tokens of each
        if kept is not None:
            sizes = torch.stack([own.sum() for own in kept.split(sizes.tolist())])
        if mean:
            tokens = groups.mean(dim=2)
        else:  # all images of a call are one packed row; an image's attention must not depend on its neighbours
            share = (sizes / sizes.sum()).repeat_interleave(sizes)  # [N]
            tokens = groups.sum(dim=2) / upload(share.to(groups.dtype), groups.device)
        order = self.order(tower, grid_thw)
        if order is not None:
            order = order if kept is None else _ranked(order, kept)
            tokens = tokens[:, upload(order.argsort(), tokens.device)]
        if kept is None:
            return tokens
        at = upload(kept.nonzero()[:, 0], tokens.device)
        return tokens.new_zeros(1, len(kept), *tokens.shape[2:]).index_copy(1, at, tokens)


class Qwen3Tower(QwenTower):
    """Learned positions, resampled to each picture's grid, are added to the patches."""

    model_types = ("qwen3_vl_vision", "qwen3_vl_moe_vision", "qwen3_5_vision", "qwen3_5_moe_vision")
    mean = deviation = (0.5, 0.5, 0.5)

    def cut_to(self, tower: Any, grid_thw: Tensor, kept: Tensor) -> dict[str, Tensor]:
        from transformers.vision_utils import get_vision_interpolation_indices_and_weights

        merge = tower.spatial_merge_size
        patches = kept.repeat_interleave(merge**2)
        indices, weights = get_vision_interpolation_indices_and_weights(
            grid_thw, tower.num_grid_per_side, tower.interpolation_mode, tower.interpolation_align_corners, merge
        )
        cut = {"interp_indices": indices[patches], "interp_weights": weights[patches]}
        return {**super().cut_to(tower, grid_thw, kept), **cut}


class Qwen25Tower(QwenTower):
    """Most blocks attend within windows: patches are permuted window by window until the merger."""

    model_types = ("qwen2_5_vl_vision",)

    def check(self, tower: Any) -> None:
        if 0 in tower.fullatt_block_indexes:
            raise ValueError("the first block of this tower attends to everything, and later ones within windows.")

    def feature_layer(self, tower: Any) -> int:
        return max(tower.fullatt_block_indexes)

    def order(self, tower: Any, grid_thw: Tensor) -> Tensor | None:
        return torch.cat(self._windows(tower, grid_thw))

    def cut_to(self, tower: Any, grid_thw: Tensor, kept: Tensor) -> dict[str, Tensor]:
        windows = self._windows(tower, grid_thw)
        order = torch.cat(windows)
        cut = {
            "window_index": _ranked(order, kept),
            "cu_window_seqlens": _boundaries(_left(kept[order], list(map(len, windows))), tower.spatial_merge_size**2),
        }
        return {**super().cut_to(tower, grid_thw, kept), **cut}

    def stretches(self, tower: Any, grid_thw: Tensor, kept: Tensor) -> list[list[int]]:
        windows = self._windows(tower, grid_thw)
        own = [tower.spatial_merge_size**2 * n for n in _left(kept[torch.cat(windows)], list(map(len, windows)))]
        frames = super().stretches(tower, grid_thw, kept)
        return [frame if i in tower.fullatt_block_indexes else own for i, frame in enumerate(frames)]

    def _windows(self, tower: Any, grid_thw: Tensor) -> list[Tensor]:
        window = tower.window_size // tower.spatial_merge_size // tower.patch_size
        return windows_of(grid_thw, tower.spatial_merge_size, window)


def windows_of(grid_thw: Tensor, merge: int, window: int) -> list[Tensor]:
    """LongTensors: the tokens of each window, window by window, over all images."""
    parts, start = [], 0
    for t, h, w in grid_thw.tolist():
        h, w = h // merge, w // merge
        index = torch.arange(t * h * w).view(t, h, w) + start
        for frame in index:
            parts += [cell.flatten() for band in frame.split(window, dim=0) for cell in band.split(window, dim=1)]
        start += t * h * w
    return parts


def _frames(grid_thw: Tensor, merge: int) -> list[int]:
    """How many tokens each frame has."""
    return [h * w // merge**2 for t, h, w in grid_thw.tolist() for _ in range(t)]


def _left(kept: Tensor, lengths: list[int]) -> list[int]:
    """How many tokens are left of stretches of so many, if only those `kept` [N] are there. Stretches of which nothing
    is left are no stretches: attention kernels cannot take empty ones.

    Example: of stretches of 3, 2 and 1 tokens 1 0 1 / 0 0 / 1 stay: 2, 1.
    """
    return [n for own in kept.split(lengths) if (n := int(own.sum()))]


def _boundaries(lengths: list[int], unit: int) -> Tensor:
    """IntTensor [S + 1]: where stretches of so many tokens, `unit` patches each, begin and end in a packed row."""
    return torch.tensor([0, *accumulate(unit * n for n in lengths)], dtype=torch.int32)


def _ranked(order: Tensor, kept: Tensor) -> Tensor:
    """An order of all tokens, LongTensor [N], as one of those that are `kept` [N]: the number of each among them.

    Example: order 2 0 3 1, of which 0, 2 and 3 are kept: 1 0 2.
    """
    return (kept.cumsum(0) - 1)[order[kept[order]]]


def _two_more(x: Tensor, value: float) -> Tensor:
    """[..., d] with a channel of `value` behind each half: [..., d + 2]."""
    first, second = (torch.nn.functional.pad(half, (0, 1), value=value) for half in x.chunk(2, dim=-1))
    return torch.cat([first, second], dim=-1)


def rotated_patches(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of x [t, H, d] with cos, sin [t, 1, d]."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin
