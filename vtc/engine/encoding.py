"""Encoding: run the vision tower once, with the signals of some methods, for many prompts."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vtc.engine import context
from vtc.engine.encoded import Encoded
from vtc.engine.find_layout import pieces_of, videos_of
from vtc.engine.tower_call import PIXEL_ITEM, unpack
from vtc.engine.tower_signals import TowerSignals
from vtc.methods.base.method import Method
from vtc.methods.base.pixels import PixelMethod
from vtc.models import adapter_for
from vtc.models.family import GRIDS, PIXELS, SECONDS, Adapter
from vtc.signals import of_place, signal_of


def encode_with(
    model: Any, methods: Sequence[Method], vision_inputs: dict[str, Any], family: str | None = None
) -> Encoded:
    """Run `get_image_features` under hooks of its own, for the signals of `methods`; the model may be wrapped."""
    return _encode(model, _listening(model, methods, family), vision_inputs)


def signals_of(model: Any, methods: Sequence[Method]) -> frozenset[tuple[str, int]]:
    """What a run of the vision tower measures for `methods`, (signal, layer): one run serves those with the same."""
    signals = _listening(model, methods)
    measured = [*signals.wanted.items(), *signals.after.items()]
    layers = {(name, layer) for layer, names in measured for name in names}
    return frozenset({*layers, *signals.ends, *signals.starts})


class Remeasured:
    """A run of the vision tower whose signals are measured anew where methods want them with another number.

    Args:
        method: of which all signals are measured that any of those methods reads.
    """

    def __init__(self, model: Any, method: Method, vision_inputs: dict[str, Any]) -> None:
        self._signals = _listening(model, [method])
        self._signals.record = {}
        self._encoded = _encode(model, self._signals, vision_inputs)

    def of(self, method: Method) -> Encoded:
        """The run with the signals of `method`."""
        call, signals = self._encoded._call, self._signals
        assert signals.record is not None
        asked = [(part, row) for part in method.parts() for row in of_place(part.requires(), "tower")]
        for name, layer in {pair for part, row in asked for pair in signals.pairs(part, row)} - call.signals.keys():
            for old in [pair for pair in call.signals if signal_of(pair[0]) is signal_of(name)]:
                del call.signals[old]
            call.signals[name, layer] = signals.measure(name, signals.record[layer], call.grid_thw)
        return self._encoded

    @property
    def size(self) -> int:
        """Bytes of what is held."""
        held = [x for segments in (self._signals.record or {}).values() for s in segments for x in (s.q, s.k)]
        return self._encoded.size + sum(x.numel() * x.element_size() for x in held)


def _listening(model: Any, methods: Sequence[Method], family: str | None = None) -> TowerSignals:
    parts = [part for method in methods for part in method.parts()]
    for part in parts:
        if isinstance(part, PixelMethod):
            raise ValueError(f"{part.title} acts before the vision tower: what it has encoded cannot be made smaller.")
    return TowerSignals(model, adapter_for(model, family), parts, private=True)


def _encode(model: Any, signals: TowerSignals, vision_inputs: dict[str, Any]) -> Encoded:
    from vtc.media.prompts import as_named

    adapter, vision_inputs = signals.adapter, as_named(vision_inputs)
    if not adapter.apart:
        family = getattr(model.config, "model_type", "this model")
        raise ValueError(
            f"vtc.encode does not know how the features of {family} lie together: hand in pixels, not features."
        )
    if "mm_encoder_outputs" not in inspect.signature(type(model).forward).parameters:
        raise RuntimeError("vtc.encode needs transformers >= 5.18, whose models take mm_encoder_outputs.")
    given = [m for m, name in PIXELS.items() if vision_inputs.get(name) is not None]
    if len(given) != 1:
        wrong = "both" if given else "neither"
        raise ValueError(
            f"pass pixel_values=... or pixel_values_videos=..., as the processor returned them; got {wrong}."
        )
    modality = given[0]
    features = getattr(adapter.base(model), f"get_{modality}_features")
    accepted = inspect.signature(features).parameters
    inputs = {name: value for name, value in vision_inputs.items() if name in accepted}
    handles = []
    context.push(signals.room, True)  # the hooks are for this call only: other threads may be running the tower, too
    try:
        for handle in signals.attach():
            handles.append(handle)
        with torch.no_grad():
            output = features(**inputs, return_dict=True)
    finally:
        context.pop(signals.room)
        for handle in handles:
            handle.remove()
    output.pooler_output = adapter.entering(model, adapter.features(model, output), vision_inputs, modality)
    grids = {k: v for k, v in vision_inputs.items() if k in (GRIDS[modality], *SECONDS)}
    runs = _frames(model, adapter, vision_inputs.get("input_ids"), modality)
    pieces = runs or _pieces(model, adapter, output.pooler_output, vision_inputs.get("input_ids"), modality)
    call = unpack(output)
    assert call is not None
    if PIXEL_ITEM in output:
        raise ValueError(
            "this model is wrapped with a method that makes pictures smaller: unwrap it before vtc.encode."
        )
    return Encoded(model, adapter, output, call, grids, pieces, modality, runs)


def _frames(model: nn.Module, adapter: Adapter, input_ids: Tensor | None, modality: str) -> list[int] | None:
    """How many frames, or parts of them, make up each video, of families that hand these out one by one."""
    if modality != "video" or input_ids is None:
        return None
    ids = input_ids.cpu()
    visual = ids == adapter.token_id(model, modality)
    frames = adapter.frame_numbers(ids, visual)
    return None if frames is None else [len(own.runs) for own in videos_of(pieces_of(visual.nonzero(), None), frames)]


def _pieces(model: nn.Module, adapter: Adapter, features: Any, input_ids: Tensor | None, modality: str) -> list[int]:
    """How many of the features' entries make up each image: one, but for families that hand out tiles."""
    if not adapter.joins(modality):
        return [1] * len(features)
    if input_ids is None:
        raise ValueError("this family cuts images into tiles: pass input_ids=, too, so that vtc sees where images end.")
    visual = (input_ids == adapter.token_id(model, modality)).int()
    edges = torch.nn.functional.pad(visual, (1, 1)).diff(dim=1)  # +1 where an image starts, -1 after its end
    lengths = (edges == -1).nonzero()[:, 1] - (edges == 1).nonzero()[:, 1]
    pieces = (lengths // len(features[0])).tolist()
    if sum(pieces) != len(features):
        raise ValueError(
            "this family hands out the features of all pictures of a row together, which vtc.encode cannot take apart."
        )
    return pieces
