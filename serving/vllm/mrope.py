"""Models whose language model has (t, h, w) positions: kept tokens keep their own (`positions` says how)."""

# pyright: reportMissingImports=false
from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vtc.selection import Selection
from vtc.serving.vllm.mixins import PrunedModel
from vtc.serving.vllm.positions import COLUMNS, Media, offsets, packed, prompt_positions, unpacked

if TYPE_CHECKING:
    from vllm.multimodal.inputs import MultiModalFeatureSpec


class MRoPEModel(PrunedModel):
    """Hands each kept token's place along with it, and adds it to the positions when the token is about to be read.

    Nothing is remembered from one step of the engine to the next: what a step reads of a picture, the whole or a chunk,
    comes out of vLLM's cache of pictures together with its places.
    """

    #: [T, 3] of the step whose embeddings have been made and whose forward comes next; None = nothing to add
    _ahead: Tensor | None = None

    def with_places(self, rows: Tensor, selection: Selection, grid: tuple[int, int, int], step: float) -> Tensor:
        """Kept rows [M, D] with the places of their anchors behind them."""
        return packed(rows, offsets(grid, step).to(rows.device)[selection.anchor])

    def get_mrope_input_positions(
        self, input_tokens: list[int], mm_features: list[MultiModalFeatureSpec]
    ) -> tuple[Tensor, int]:
        ordered = sorted(mm_features, key=lambda feature: feature.mm_position.offset)
        grids: Any = self.iter_mm_grid_thw(ordered)
        media = [
            Media(start, feature.mm_position.length, (t, h, w), step)
            for feature, (start, t, h, w, step) in zip(ordered, grids, strict=True)
        ]
        return prompt_positions(len(input_tokens), media)

    def embed_input_ids(
        self,
        input_ids: Tensor,
        multimodal_embeddings: Sequence[Tensor] | None = None,
        *,
        is_multimodal: Tensor | None = None,
    ) -> Tensor:
        if multimodal_embeddings:
            multimodal_embeddings = self._look_ahead(input_ids, multimodal_embeddings, is_multimodal)
        return super().embed_input_ids(input_ids, multimodal_embeddings, is_multimodal=is_multimodal)

    def row_width(self) -> int:
        """Columns of a row without its place."""
        return self.config.text_config.hidden_size

    def _look_ahead(self, input_ids: Tensor, rows: Sequence[Tensor], here: Tensor | None) -> list[Tensor]:
        """`rows` without their places, which the next forward adds."""
        if self._ahead is not None:
            raise RuntimeError(
                "vLLM has run a step with pictures past vtc's forward, which would have set their positions: set "
                'cudagraph_mode to "PIECEWISE" or "NONE" in --compilation-config.'
            )
        width = self.row_width()
        # prompt embeddings of a request's own stand where text does
        parts = [
            unpacked(own) if own.shape[1] == width + COLUMNS else (own, own.new_zeros(len(own), 3).long())
            for own in rows
        ]
        ahead = torch.zeros(len(input_ids), 3, dtype=torch.long, device=input_ids.device)
        ahead[here] = torch.cat([places for _, places in parts])
        self._ahead = ahead
        return [features for features, _ in parts]

    def forward(self, input_ids: Any, positions: Tensor, *args: Any, **kwargs: Any) -> Any:
        ahead, self._ahead = self._ahead, None
        if ahead is not None:
            # in place: a captured graph reads them where they are, and vLLM writes them anew for every step
            positions[:, : len(ahead)] += ahead.T
        return super().forward(input_ids, positions, *args, **kwargs)
