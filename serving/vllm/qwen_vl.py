"""Qwen2.5-VL in vLLM: pictures and videos of any size, packed into one row; kept tokens keep their (t, h, w)."""

# pyright: reportMissingImports=false
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from vllm.model_executor.models.qwen2_5_vl import (
    Qwen2_5_VLDummyInputsBuilder,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLMultiModalProcessor,
    Qwen2_5_VLProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY

from vtc.models.tower import facts_of, type_of
from vtc.serving.vllm.mixins import PrunedInfo, ShorteningProcessor
from vtc.serving.vllm.mrope import MRoPEModel
from vtc.serving.vllm.pruning import grid_layout
from vtc.serving.vllm.signals import Parts, Run


class PackedInfo(PrunedInfo):
    """Of families whose pictures are of any size. What vLLM asks for one picture's tokens stays the whole picture's: it
    looks for the longest clip by it, and would never find one if all clips had as many."""

    def get_max_image_tokens(self) -> int:
        return self.vtc.count(self.most_tokens())

    def get_max_video_tokens(self, seq_len: int, mm_counts: Any) -> int:
        whole: int = super().get_max_video_tokens(seq_len, mm_counts)
        return self.vtc.count(whole) if "video" in self.vtc.prunes else whole

    def most_tokens(self) -> int:
        return super().get_max_image_tokens()


class PackedModel(MRoPEModel):
    """Of families whose tower is given packed rows and grids."""

    def tower_parts(self) -> Parts:
        tower: Any = self.visual
        facts = facts_of(str(type_of(self.config.vision_config)))
        return Parts(facts, tower, tower.blocks, len(tower.blocks), facts.feature_layer(tower))

    def _process_image_input(self, image_input: Any) -> tuple[Tensor, ...]:
        grids = image_input["image_grid_thw"]
        with self.vtc.listening(grids.cpu()) as run:
            features = super()._process_image_input(image_input)
        return self._pruned("image", features, grids.tolist(), [1.0] * len(grids), run)

    def _process_video_input(self, video_input: Any) -> tuple[Tensor, ...]:
        grids = video_input["video_grid_thw"]
        with self.vtc.listening(grids.cpu()) as run:
            features = super()._process_video_input(video_input)
        return self._pruned("video", features, grids.tolist(), self.time_steps(video_input), run)

    def time_steps(self, video_input: Any) -> list[float]:
        """Of each video, positions per time step."""
        seconds, per_second = (
            video_input.get("second_per_grid_ts"),
            getattr(self.config.vision_config, "tokens_per_second", 1.0),
        )
        if seconds is None:
            return [per_second] * len(video_input["video_grid_thw"])
        return [step * per_second for step in seconds.flatten().tolist()]

    def _pruned(
        self, modality: str, features: Sequence[Tensor], grids: list[list[int]], steps: list[float], run: Run
    ) -> tuple[Tensor, ...]:
        """What is kept of each picture or video, [M, D + columns].

        Args:
            features: [N, D] of each, or more columns of what travels beside them. grids: of patches.
            steps: positions per time step.
        """
        merge: int = self.visual.spatial_merge_size
        width: int = self.config.text_config.hidden_size
        sizes = [(t, h // merge, w // merge) for t, h, w in grids]
        seen = [own[:, :width] for own in features]
        chosen = self.vtc.choose(seen, [grid_layout(size) for size in sizes], run, modality)
        kept = [
            torch.cat([selection.apply(own), selection.combine(whole[:, width:])], dim=1)
            if whole.shape[1] > width
            else selection.apply(own)
            for selection, own, whole in zip(chosen, seen, features, strict=True)
        ]
        return tuple(
            self.with_places(rows, selection, size, step)
            for rows, selection, size, step in zip(kept, chosen, sizes, steps, strict=True)
        )


class VtcQwen2_5_VLInfo(PackedInfo, Qwen2_5_VLProcessingInfo):
    """Knows how many tokens stay of a picture, a video."""


class VtcQwen2_5_VLProcessor(ShorteningProcessor, Qwen2_5_VLMultiModalProcessor):
    """Makes room for so many in the prompt."""


@MULTIMODAL_REGISTRY.register_processor(
    VtcQwen2_5_VLProcessor, info=VtcQwen2_5_VLInfo, dummy_inputs=Qwen2_5_VLDummyInputsBuilder
)
class VtcQwen2_5_VLForConditionalGeneration(PackedModel, Qwen2_5_VLForConditionalGeneration):
    """vLLM's own, which hands over what the method makes of each picture's tokens, with their places."""
