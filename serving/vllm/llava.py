"""LLaVA-1.5 in vLLM: square pictures, CLIP or SigLIP, one row of positions, so that kept tokens are numbered anew."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from vllm.model_executor.models.llava import (
    LlavaDummyInputsBuilder,
    LlavaForConditionalGeneration,
    LlavaMultiModalProcessor,
    LlavaProcessingInfo,
)
from vllm.model_executor.models.utils import WeightsMapper
from vllm.multimodal import MULTIMODAL_REGISTRY

from vtc.models.family import square_layout
from vtc.models.tower import facts_of
from vtc.serving.vllm.mixins import PrunedInfo, PrunedModel, PrunedProcessor
from vtc.serving.vllm.signals import Parts

#: checkpoints saved by transformers 5 name parts of the tower without the module around them, which vLLM has
TOWER_NAMES = WeightsMapper(
    orig_to_new_prefix={
        f"vision_tower.{part}.": f"vision_tower.vision_model.{part}."
        for part in ("embeddings", "pre_layrnorm", "encoder", "post_layernorm", "head")
    }
)


class VtcLlavaInfo(PrunedInfo, LlavaProcessingInfo):
    """Knows how many tokens stay of a picture."""

    fixed = True

    def get_num_image_tokens(self, *, image_width: int, image_height: int) -> int:
        return self.vtc.count(super().get_num_image_tokens(image_width=image_width, image_height=image_height))

    def most_tokens(self) -> int:
        side = self.get_vision_encoder_info().get_image_size()
        return super().get_num_image_tokens(image_width=side, image_height=side)


class VtcLlavaProcessor(PrunedProcessor, LlavaMultiModalProcessor):
    """Makes room for so many in the prompt, as vLLM's own does."""


class ClipModel(PrunedModel):
    """Of families whose tower is CLIP or SigLIP, as LLaVA reads it."""

    def tower_parts(self) -> Parts:
        config: Any = self.config  # type: ignore[attr-defined]
        tower: Any = self.vision_tower  # type: ignore[attr-defined]
        depth, chosen = config.vision_config.num_hidden_layers, config.vision_feature_layer
        layers = chosen if isinstance(chosen, list | tuple) else [chosen]
        last = max(layer % (depth + 1) for layer in layers)  # hidden_states[i] is the output of block i - 1
        facts = facts_of(config.vision_config.model_type)
        return Parts(facts, tower, tower.vision_model.encoder.layers, depth, max(last - 1, 0))


@MULTIMODAL_REGISTRY.register_processor(VtcLlavaProcessor, info=VtcLlavaInfo, dummy_inputs=LlavaDummyInputsBuilder)
class VtcLlavaForConditionalGeneration(ClipModel, LlavaForConditionalGeneration):
    """vLLM's own, which hands over what the method makes of each picture's tokens."""

    hf_to_vllm_mapper = LlavaForConditionalGeneration.hf_to_vllm_mapper | TOWER_NAMES

    def _process_image_input(self, image_input: Any) -> tuple[Tensor, ...]:
        with self.vtc.listening() as run:
            features: Any = super()._process_image_input(image_input)  # [B, N, D]
        chosen = self.vtc.choose(features, [square_layout(features.shape[1])] * len(features), run)
        return tuple(selection.apply(own) for selection, own in zip(chosen, features, strict=True))
