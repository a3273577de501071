"""LLaVA-1.5: one square crop per image, CLIP (or SigLIP) tower, MLP projector."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from vtc.models.family import Adapter, ImageLayout, Known, square_layout
from vtc.models.tower import known_towers, tower_for, tower_type


class LlavaAdapter(Adapter):
    model_types = ("llava",)

    def check(self, model: nn.Module) -> None:
        tower = tower_type(self.tower(model))
        if tower not in known_towers("square"):
            known = ", ".join(known_towers("square"))
            raise ValueError(f"{model.config.model_type} with tower {tower!r} is not supported; with {known} it is.")
        if tower_for(self.tower(model)).has_cls and model.config.vision_feature_select_strategy != "default":
            raise ValueError(
                'vision_feature_select_strategy="full" passes the CLS token on as if it were a patch, which is not '
                'supported; set model.config.vision_feature_select_strategy = "default".'
            )

    def layout(self, model: nn.Module, features: Tensor, known: Known) -> ImageLayout:
        config: Any = model.config.vision_config
        tokens = (config.image_size // config.patch_size) ** 2
        if features.shape[0] != tokens:
            raise ValueError(f"an image has {tokens} visual tokens, but {features.shape[0]} were found together.")
        return square_layout(tokens)
