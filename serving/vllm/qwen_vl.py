"""Qwen2.5-VL in vLLM: pictures and videos of any size, packed into one row; kept tokens keep their (t, h, w)."""

# pyright: reportMissingImports=false
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from vllm.model_executor.models.qwen2_5_vl import (
    Qwen2_5_VLDummyInputsBuilder,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLMultiModalProcessor,
    Qwen2_5_VLProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY

from vtc.models.tower import facts_of
from vtc.serving.vllm.mixins import PrunedInfo, PrunedProcessor, shortened
from vtc.serving.vllm.mrope import MRoPEModel
from vtc.serving.vllm.signals import Parts


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
        facts = facts_of(self.config.vision_config.model_type)
        return Parts(facts, tower, tower.blocks, len(tower.blocks), facts.feature_layer(tower))

    def _process_image_input(self, image_input: Any) -> tuple[Tensor, ...]:
        grids = image_input["image_grid_thw"]
        with self.vtc.listening(grids.cpu()) as run:
            features = super()._process_image_input(image_input)
        return self._pruned("image", features, grids.tolist(), [1.0] * len(grids), run)

    def _process_video_input(self, video_input: Any) -> tuple[Tensor, ...]:
        grids, seconds = video_input["video_grid_thw"], video_input.get("second_per_grid_ts")
        with self.vtc.listening(grids.cpu()) as run:
            features = super()._process_video_input(video_input)
        per_second = getattr(self.config.vision_config, "tokens_per_second", 1.0)
        steps = [1.0] * len(grids) if seconds is None else seconds.flatten().tolist()
        return self._pruned("video", features, grids.tolist(), [step * per_second for step in steps], run)

    def _pruned(
        self, modality: str, features: Sequence[Tensor], grids: list[list[int]], steps: list[float], run: Any
    ) -> tuple[Tensor, ...]:
        """What is kept of each picture or video, [M, D + columns].

        Args:
            grids: of patches. steps: positions per time step.
        """
        merge: int = self.visual.spatial_merge_size
        sizes = [(t, h // merge, w // merge) for t, h, w in grids]
        chosen = self.vtc.choose(features, sizes, run, modality)
        return tuple(
            self.with_places(selection.apply(own), selection, size, step)
            for selection, own, size, step in zip(chosen, features, sizes, steps, strict=True)
        )


class VtcQwen2_5_VLInfo(PackedInfo, Qwen2_5_VLProcessingInfo):
    """Knows how many tokens stay of a picture, a video."""


class VtcQwen2_5_VLProcessor(PrunedProcessor, Qwen2_5_VLMultiModalProcessor):
    """Makes room for so many in the prompt."""

    def _get_prompt_updates(self, *args: Any, **kwargs: Any) -> Any:
        return shortened(super()._get_prompt_updates(*args, **kwargs), self.info.vtc)


@MULTIMODAL_REGISTRY.register_processor(
    VtcQwen2_5_VLProcessor, info=VtcQwen2_5_VLInfo, dummy_inputs=Qwen2_5_VLDummyInputsBuilder
)
class VtcQwen2_5_VLForConditionalGeneration(PackedModel, Qwen2_5_VLForConditionalGeneration):
    """vLLM's own, which hands over what the method makes of each picture's tokens, with their places."""
