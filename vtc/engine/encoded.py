"""Encoded: features and signals of one run of the vision tower over images or videos, for many prompts."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from vtc.engine.find_layout import Looks, layouts_of
from vtc.engine.tower_call import ITEM, ROWS_ITEM, pack
from vtc.models.family import Adapter, TowerCall
from vtc.signals import signal_of


class Encoded:
    """Features of some images, or of some videos, ready for `generate` or `forward` (transformers >= 5.18)."""

    def __init__(
        self,
        model: nn.Module,
        adapter: Adapter,
        output: Any,
        call: TowerCall,
        grids: dict[str, Tensor],
        pieces: list[int],
        modality: str = "image",
        runs: list[int] | None = None,
    ) -> None:
        self.modality = modality
        self._runs = runs or [1] * len(pieces)  # unbroken rows of tokens that each image or video is written as
        self._stacked = isinstance(output.pooler_output, Tensor)
        self._call, self._grids = call, grids
        self._deepstack: list[Any] | None = getattr(output, "deepstack_features", None)
        self._rows: Tensor | None = output[ROWS_ITEM]["rows"] if ROWS_ITEM in output else None
        rest = list(output.pooler_output)
        self._features: list[list[Tensor]] = []  # per image: one [N, D], or one per tile
        for count in pieces:
            self._features.append(rest[:count])
            rest = rest[count:]
        whole = [torch.cat(own).flatten(0, -2) for own in self._features]
        looks = Looks.of(adapter, model, whole, call)
        layouts = layouts_of(adapter, model, whole, looks, call.grid_thw, call, [modality] * len(whole))
        if layouts is None:
            raise ValueError("the vision inputs do not belong together: pass what one call of the processor returned.")
        self._tokens = [layout.tower_tokens for layout in layouts]
        self._crops = [layout.crops for layout in layouts]

    def __len__(self) -> int:
        return len(self._features)

    @staticmethod
    def join(parts: Sequence[Encoded]) -> Encoded:
        """Several runs over pictures of one modality by one model, for the same methods, as if they had been one."""
        joined, calls = copy(parts[0]), [part._call for part in parts]
        joined._features = [features for part in parts for features in part._features]
        joined._tokens = [count for part in parts for count in part._tokens]
        joined._crops = [count for part in parts for count in part._crops]
        joined._runs = [count for part in parts for count in part._runs]
        joined._grids = {name: torch.cat([part._grids[name] for part in parts]) for name in parts[0]._grids}
        joined._rows = _cat([part._rows for part in parts])
        if parts[0]._deepstack is not None:
            stacks = [part._deepstack or [] for part in parts]
            joined._deepstack = [[x for layer in layers for x in layer] for layers in zip(*stacks, strict=True)]
        joined._call = replace(
            calls[0],
            grid_thw=_cat([call.grid_thw for call in calls]),
            first=_cat([call.first for call in calls]),
            signals={key: torch.cat([call.signals[key] for call in calls]) for key in calls[0].signals},
        )
        return joined

    @property
    def size(self) -> int:
        """Bytes of what is held."""
        held = [x for own in self._features for x in own] + list(self._call.signals.values())
        held += [x for layer in self._deepstack or [] for x in layer]
        return sum(x.numel() * x.element_size() for x in held)

    def take(self, images: Sequence[int]) -> dict[str, Any]:
        """Keyword arguments for `generate`/`forward`: the images of a batch in reading order, repeats allowed."""
        for image in images:
            if not 0 <= image < len(self):
                raise IndexError(f"image {image} is outside the {len(self)} encoded ones.")
        features: Any = [piece for i in images for piece in self._features[i]]
        from transformers.modeling_outputs import BaseModelOutputWithPooling

        output: Any = BaseModelOutputWithPooling(pooler_output=torch.stack(features) if self._stacked else features)
        if self._deepstack is not None:
            output["deepstack_features"] = [[layer[i] for i in images] for layer in self._deepstack]
        if self._rows is not None:
            output[ROWS_ITEM] = {"rows": self._pick(self._rows, self._tokens, images)}
        call = TowerCall(
            grid_thw=self._pick(self._call.grid_thw, self._crops, images),  # a grid for each that the tower was given
            crops=sum(self._crops[i] for i in images),
            pictures=tuple(i for i in images for _ in range(self._runs[i])),
            first=self._pick(self._call.first, self._crops, images),
            crop_tokens=self._call.crop_tokens,
            signals={key: self._pick(x, self._sizes(*key), images) for key, x in self._call.signals.items()},
        )
        output[ITEM] = pack(call)
        return {"mm_encoder_outputs": {self.modality: output}, **{k: v[list(images)] for k, v in self._grids.items()}}

    def _sizes(self, signal: str, layer: int) -> list[int]:
        """How many rows of a signal are each image's."""
        return self._crops if "C" in signal_of(signal).shape else self._tokens

    @staticmethod
    def _pick(values: Any, sizes: list[int], images: Sequence[int]) -> Any:
        """Rows of `values` that belong to the given images, image i having `sizes[i]` of them."""
        if values is None:
            return None
        parts = values.split(sizes)
        return torch.cat([parts[i] for i in images])


def _cat(tensors: list[Tensor | None]) -> Tensor | None:
    known = [x for x in tensors if x is not None]
    return torch.cat(known) if known else None
