"""LLaVA-1.5 in vLLM: square pictures, CLIP or SigLIP, one row of positions, so that kept tokens are numbered anew."""

# pyright: reportMissingImports=false
from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from vllm.config import VllmConfig
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
from vtc.serving.vllm.contract import Spec
from vtc.serving.vllm.mixins import PrunedInfo, PrunedModel, PrunedProcessor
from vtc.serving.vllm.signals import Parts, deepest, wanted_of

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


def feature_layer(config: Any) -> int:
    """The block (0-based) of the tower whose output the projector reads."""
    chosen, depth = config.vision_feature_layer, config.vision_config.num_hidden_layers
    layers = chosen if isinstance(chosen, list | tuple) else [chosen]
    return max(max(layer % (depth + 1) for layer in layers) - 1, 0)  # hidden_states[i] is the output of block i - 1


@contextmanager
def built_to(config: Any, blocks: int | None) -> Iterator[None]:
    """Within, vLLM builds so many blocks of a tower; None = none of those behind the features, as it does by itself.

    It goes by which layer the features are taken from, and by nothing else.
    """
    chosen = config.vision_feature_layer
    config.vision_feature_layer = chosen if blocks is None else blocks
    try:
        yield
    finally:
        config.vision_feature_layer = chosen


class ClipModel(PrunedModel):
    """Of families whose tower is CLIP or SigLIP, as LLaVA reads it."""

    def build(self, spec: Spec, vllm_config: VllmConfig, prefix: str) -> None:
        config = vllm_config.model_config.hf_config
        depth, layer = config.vision_config.num_hidden_layers, feature_layer(config)
        facts = facts_of(config.vision_config.model_type)
        if facts.has_cls and config.vision_feature_select_strategy != "default":
            raise ValueError(
                f"vision_feature_select_strategy={config.vision_feature_select_strategy!r} passes the CLS token on as "
                'if it were a patch, which vtc does not serve: it serves "default".'
            )
        last = deepest(wanted_of(spec.method, facts, depth, layer))
        with built_to(config, last + 1 if last > layer else None):
            super().build(spec, vllm_config, prefix)

    def tower_parts(self) -> Parts:
        vision, tower = self.config.vision_config, self.vision_tower
        blocks = tower.vision_model.encoder.layers
        return Parts(facts_of(vision.model_type), tower, blocks, vision.num_hidden_layers, feature_layer(self.config))

    def _image_pixels_to_features(self, vision_tower: Any, pixel_values: Any) -> Any:
        parts = self.vtc.taps.parts
        if len(parts.blocks) == parts.feature_layer + 1:
            return super()._image_pixels_to_features(vision_tower, pixel_values)
        return vision_tower(
            pixel_values,
            select_layers=[parts.feature_layer + 1],
            feature_select_strategy=self.config.vision_feature_select_strategy,
        )


@MULTIMODAL_REGISTRY.register_processor(VtcLlavaProcessor, info=VtcLlavaInfo, dummy_inputs=LlavaDummyInputsBuilder)
class VtcLlavaForConditionalGeneration(ClipModel, LlavaForConditionalGeneration):
    """vLLM's own, which hands over what the method makes of each picture's tokens."""

    hf_to_vllm_mapper = LlavaForConditionalGeneration.hf_to_vllm_mapper | TOWER_NAMES

    def _process_image_input(self, image_input: Any) -> tuple[Tensor, ...]:
        with self.vtc.listening() as run:
            features: Any = super()._process_image_input(image_input)  # [B, N, D]
        return self.compressed(features, [square_layout(features.shape[1])] * len(features), run)
