"""Encoded: image features and signals of one run of the vision tower, to be used by many prompts."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling

from vtc.engine import Engine
from vtc.models.base import TowerCall
from vtc.tap import ATTRIBUTE


class Encoded:
    """Features of some images, ready for `generate` or `forward` (transformers >= 5.18)."""

    def __init__(self, engine: Engine, output: Any, call: TowerCall, grids: dict[str, Tensor]) -> None:
        model: Any = engine.model
        adapter = engine.adapter
        self._output, self._call, self._grids = output, call, grids
        self._pieces: list[list[Tensor]] = [[piece] for piece in output.pooler_output]
        if adapter.joins_pieces:
            raise ValueError(f"vtc.encode does not know which tiles of {model.config.model_type} belong to one image.")
        self._tokens: list[int] = []
        self._crops: list[int] = []
        for image, (features,) in enumerate(self._pieces):
            layout = adapter.layout(model, features, image, call.grid_thw)
            self._tokens.append(layout.tower_tokens)
            self._crops.append(layout.crops)
        self._deepstack: list[Any] | None = getattr(output, "deepstack_features", None)

    def __len__(self) -> int:
        return len(self._pieces)

    def take(self, images: Sequence[int]) -> dict[str, Any]:
        """Keyword arguments for `generate`/`forward`: the images of a batch in reading order, repeats allowed."""
        for image in images:
            if not 0 <= image < len(self):
                raise IndexError(f"image {image} is outside the {len(self)} encoded ones.")
        output: Any = BaseModelOutputWithPooling(pooler_output=[self._pieces[i][0] for i in images])  # type: ignore[arg-type]
        if self._deepstack is not None:
            output.deepstack_features = [[layer[i] for i in images] for layer in self._deepstack]
        grid = self._call.grid_thw
        call = TowerCall(
            grid_thw=None if grid is None else grid[list(images)],
            crops=sum(self._crops[i] for i in images),
            signals={
                key: torch.cat([part[i] for i in images])
                for key, value in self._call.signals.items()
                for part in [value.split(self._tokens)]
            },
        )
        setattr(output, ATTRIBUTE, call)
        return {"mm_encoder_outputs": {"image": output}, **{k: v[list(images)] for k, v in self._grids.items()}}


def encode_with(engine: Engine, vision_inputs: dict[str, Any]) -> Encoded:
    """Run `get_image_features` of the engine's model under the engine's tap; the model may be wrapped otherwise."""
    model: Any = engine.model
    if "mm_encoder_outputs" not in inspect.signature(type(model).forward).parameters:
        raise RuntimeError("vtc.encode needs transformers >= 5.18, whose models take mm_encoder_outputs.")
    if vision_inputs.get("pixel_values") is None:
        raise ValueError("pass pixel_values=..., as the processor returned them.")
    accepted = inspect.signature(engine.adapter.base(model).get_image_features).parameters
    inputs = {name: value for name, value in vision_inputs.items() if name in accepted}
    engine.tap.attach()
    try:
        with torch.no_grad():
            output = engine.adapter.base(model).get_image_features(**inputs, return_dict=True)
    finally:
        engine.tap.detach()
    grids = {k: v for k, v in vision_inputs.items() if k == "image_grid_thw"}
    return Encoded(engine, output, getattr(engine.tap.latest, ATTRIBUTE), grids)
