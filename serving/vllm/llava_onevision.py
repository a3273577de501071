"""LLaVA-OneVision in vLLM: as LLaVA-NeXT, with large mosaics scaled down, and videos."""

# pyright: reportMissingImports=false
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from vllm.config import VllmConfig
from vllm.model_executor.models.llava_onevision import (
    LlavaOnevisionDummyInputsBuilder,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionMultiModalProcessor,
    LlavaOnevisionProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY

from vtc.models.family import Known
from vtc.models.llava_next import LlavaOnevisionAdapter
from vtc.serving.vllm.crops import CropsInfo, CropsModel
from vtc.serving.vllm.llava import TOWER_NAMES
from vtc.serving.vllm.mixins import ShorteningProcessor

#: how vLLM cuts pictures, whatever the checkpoint says
ASPECT = "anyres_max_9"


class VtcLlavaOnevisionInfo(CropsInfo, LlavaOnevisionProcessingInfo):
    """Knows how many tokens a picture or video has."""


class VtcLlavaOnevisionProcessor(ShorteningProcessor, LlavaOnevisionMultiModalProcessor):
    """Makes room for those that stay in the prompt."""


@MULTIMODAL_REGISTRY.register_processor(
    VtcLlavaOnevisionProcessor, info=VtcLlavaOnevisionInfo, dummy_inputs=LlavaOnevisionDummyInputsBuilder
)
class VtcLlavaOnevisionForConditionalGeneration(CropsModel, LlavaOnevisionForConditionalGeneration):
    """vLLM's own, which hands over what the method makes of each picture's or video's tokens."""

    adapter = LlavaOnevisionAdapter()
    hf_to_vllm_mapper = LlavaOnevisionForConditionalGeneration.hf_to_vllm_mapper | TOWER_NAMES

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        given = vllm_config.model_config.hf_config.vision_aspect_ratio
        if given != ASPECT:
            raise ValueError(
                f"this model cuts pictures as {given}, and vLLM cuts those of all LLaVA-OneVision as {ASPECT}: their "
                "tokens would not be the model's own."
            )
        super().__init__(vllm_config=vllm_config, prefix=prefix)

    def _process_video_pixels(self, inputs: Any) -> list[Tensor]:
        with self.vtc.listening() as run:
            features: Sequence[Tensor] = [own.flatten(0, -2) for own in super()._process_video_pixels(inputs)]
        layouts = [self.adapter.layout(self, own, Known(modality="video")) for own in features]
        return [*self.compressed(features, layouts, run, "video")]
