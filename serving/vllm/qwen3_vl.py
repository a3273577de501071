"""Qwen3-VL in vLLM: each token brings columns along that are added in early decoder layers (DeepStack); they go, and
are merged, with it. Videos, frames with words between them, stay whole."""

# pyright: reportMissingImports=false
from __future__ import annotations

from typing import Any

from torch import Tensor
from vllm.model_executor.models.qwen3_vl import (
    Qwen3VLDummyInputsBuilder,
    Qwen3VLForConditionalGeneration,
    Qwen3VLMultiModalProcessor,
    Qwen3VLProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY

from vtc.serving.vllm.mixins import ShorteningProcessor
from vtc.serving.vllm.positions import Media, prompt_positions
from vtc.serving.vllm.qwen_vl import PackedInfo, PackedModel


class VtcQwen3VLInfo(PackedInfo, Qwen3VLProcessingInfo):
    """Knows how many tokens stay of a picture."""


class VtcQwen3VLProcessor(ShorteningProcessor, Qwen3VLMultiModalProcessor):
    """Makes room for so many in the prompt."""


@MULTIMODAL_REGISTRY.register_processor(
    VtcQwen3VLProcessor, info=VtcQwen3VLInfo, dummy_inputs=Qwen3VLDummyInputsBuilder
)
class VtcQwen3VLForConditionalGeneration(PackedModel, Qwen3VLForConditionalGeneration):
    """vLLM's own, which hands over what the method makes of each picture's tokens, with their places."""

    def row_width(self) -> int:
        return self.visual_dim + self.multiscale_dim

    def time_steps(self, video_input: Any) -> list[float]:
        """A frame begins where the words before it end, so that its own tokens are all at its first time step."""
        return [0.0] * len(video_input["video_grid_thw"])

    def get_mrope_input_positions(self, input_tokens: list[int], mm_features: list[Any]) -> tuple[Tensor, int]:
        pictures = {one.mm_position.offset: one.mm_position.length for one in mm_features if one.modality == "image"}
        config = self.config
        frames = self._iter_mm_grid_hw(
            input_tokens,
            mm_features,
            video_token_id=config.video_token_id,
            vision_start_token_id=config.vision_start_token_id,
            vision_end_token_id=config.vision_end_token_id,
            spatial_merge_size=config.vision_config.spatial_merge_size,
        )
        media = [Media(start, pictures.get(start, whole), (1, h, w)) for start, h, w, whole in frames]
        return prompt_positions(len(input_tokens), media)
