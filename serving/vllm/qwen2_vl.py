"""Qwen2-VL in vLLM: as Qwen2.5-VL, whose tower has windows besides."""

# pyright: reportMissingImports=false
from __future__ import annotations

from vllm.model_executor.models.qwen2_vl import (
    Qwen2VLDummyInputsBuilder,
    Qwen2VLForConditionalGeneration,
    Qwen2VLMultiModalProcessor,
    Qwen2VLProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY

from vtc.serving.vllm.mixins import ShorteningProcessor
from vtc.serving.vllm.qwen_vl import PackedInfo, PackedModel


class VtcQwen2VLInfo(PackedInfo, Qwen2VLProcessingInfo):
    """Knows how many tokens stay of a picture, a video."""


class VtcQwen2VLProcessor(ShorteningProcessor, Qwen2VLMultiModalProcessor):
    """Makes room for so many in the prompt."""


@MULTIMODAL_REGISTRY.register_processor(
    VtcQwen2VLProcessor, info=VtcQwen2VLInfo, dummy_inputs=Qwen2VLDummyInputsBuilder
)
class VtcQwen2VLForConditionalGeneration(PackedModel, Qwen2VLForConditionalGeneration):
    """vLLM's own, which hands over what the method makes of each picture's tokens, with their places."""
