"""LLaVA-NeXT in vLLM."""

# pyright: reportMissingImports=false
from __future__ import annotations

from vllm.model_executor.models.llava import LlavaDummyInputsBuilder
from vllm.model_executor.models.llava_next import (
    LlavaNextForConditionalGeneration,
    LlavaNextMultiModalProcessor,
    LlavaNextProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY

from vtc.models.llava_next import LlavaNextAdapter
from vtc.serving.vllm.crops import CropsInfo, CropsModel
from vtc.serving.vllm.llava import TOWER_NAMES
from vtc.serving.vllm.mixins import ShorteningProcessor


class VtcLlavaNextInfo(CropsInfo, LlavaNextProcessingInfo):
    """Knows how many tokens a picture has."""


class VtcLlavaNextProcessor(ShorteningProcessor, LlavaNextMultiModalProcessor):
    """Makes room for those that stay in the prompt."""


@MULTIMODAL_REGISTRY.register_processor(
    VtcLlavaNextProcessor, info=VtcLlavaNextInfo, dummy_inputs=LlavaDummyInputsBuilder
)
class VtcLlavaNextForConditionalGeneration(CropsModel, LlavaNextForConditionalGeneration):
    """vLLM's own, which hands over what the method makes of each picture's tokens."""

    adapter = LlavaNextAdapter()
    hf_to_vllm_mapper = LlavaNextForConditionalGeneration.hf_to_vllm_mapper | TOWER_NAMES
