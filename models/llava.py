"""LLaVA-1.5: one square crop per image, CLIP (or SigLIP) tower, MLP projector."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vtc.layout import VisualSpan
from vtc.models.family import Adapter, ImageLayout, Known, square_layout
from vtc.models.pixtral import PixtralAdapter
from vtc.models.tower import known_towers, tower_for, tower_type


class LlavaAdapter(Adapter):
    model_types = ("llava",)
    projects_cls = True

    def of(self, model: nn.Module) -> Adapter:
        return _ON_PIXTRAL if tower_type(self.tower(model)) == "pixtral" else self

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

    def cls_tokens(self, model: nn.Module, output: Any) -> Tensor:
        config: Any = model.config
        chosen = config.vision_feature_layer
        layers = chosen if isinstance(chosen, list | tuple) else [chosen]
        states = torch.cat([output.hidden_states[layer][:, 0] for layer in layers], dim=-1)  # [crops, W]
        # `forward`, not a call: hooks on the projector are for the patches
        return self.base(model).multi_modal_projector.forward(states)

    def one_patch_each(self, model: nn.Module, span: VisualSpan) -> bool:
        return True

    def layout(self, model: nn.Module, features: Tensor, known: Known) -> ImageLayout:
        config: Any = model.config.vision_config
        tokens = (config.image_size // config.patch_size) ** 2
        if features.shape[0] != tokens:
            raise ValueError(f"an image has {tokens} visual tokens, but {features.shape[0]} were found together.")
        return square_layout(tokens)


class PixtralLlavaAdapter(PixtralAdapter):
    """Pixtral-12B, which transformers has as a LLaVA: one patch makes a token."""

    model_types = ("llava",)


_ON_PIXTRAL = PixtralLlavaAdapter()
