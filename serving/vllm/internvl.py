"""InternVL in vLLM: square tiles and a thumbnail; 2 x 2 patches become a token behind the tower. A video is frames with
words between them, each of which has a share of the budget."""

# pyright: reportMissingImports=false
from __future__ import annotations

from typing import Any

from torch import Tensor
from vllm.model_executor.models.interns1 import (
    InternS1DummyInputsBuilder,
    InternS1ForConditionalGeneration,
    InternS1MultiModalProcessor,
    InternS1ProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY

from vtc.models.family import Known
from vtc.models.internvl import InternVLAdapter
from vtc.models.tower import facts_of
from vtc.serving.vllm.crops import CropsInfo
from vtc.serving.vllm.mixins import PrunedModel, ShorteningProcessor
from vtc.serving.vllm.signals import Parts

_FAMILY = InternVLAdapter()


class VtcInternVLInfo(CropsInfo, InternS1ProcessingInfo):
    """Knows how many tokens a picture has."""


class VtcInternVLProcessor(ShorteningProcessor, InternS1MultiModalProcessor):
    """Makes room for those that stay in the prompt."""


@MULTIMODAL_REGISTRY.register_processor(
    VtcInternVLProcessor, info=VtcInternVLInfo, dummy_inputs=InternS1DummyInputsBuilder
)
class VtcInternVLForConditionalGeneration(PrunedModel, InternS1ForConditionalGeneration):
    """vLLM's own, which hands over what the method makes of each picture's tokens."""

    def tower_parts(self) -> Parts:
        tower: Any = self.vision_tower
        facts = facts_of(self.config.vision_config.model_type)
        blocks = facts.blocks(tower)

        def folded(values: Tensor, mean: bool) -> Tensor:
            return _FAMILY.tokens_from_patches(self, values, mean)

        return Parts(facts, tower, blocks, len(blocks), len(blocks) - 1, folded)

    def _process_vision_input(self, image_input: Any) -> tuple[Tensor, ...]:
        modality = "image" if image_input["type"] == "pixel_values" else "video"
        with self.vtc.listening() as run:
            features = super()._process_vision_input(image_input)
        layouts = [_FAMILY.layout(self, own, Known(modality=modality)) for own in features]
        return self.compressed(features, layouts, run, modality)
