"""Towers of timm within transformers' wrapper, and SAM's windows: what signals read is what they attend by."""

from __future__ import annotations

import copy
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

import vtc
from tests.families import batch, model_of
from tests.listed import LISTED
from vtc.models import adapter_for, tower_for
from vtc.models.tower_timm import WrappedEva


@pytest.mark.parametrize("family", ["perception_lm", "fast_vlm"])
def test_queries_and_keys_are_those_that_timm_multiplies(family: str, monkeypatch: Any) -> None:
    model, inputs = model_of(family), batch(family, [[0], [1]])
    tower: Any = adapter_for(model).tower(model)
    facts = tower_for(tower)
    theirs: list[tuple[Tensor, Tensor]] = []
    attend = torch.nn.functional.scaled_dot_product_attention

    def spy(q: Tensor, k: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        theirs.append((q, k))
        return attend(q, k, *args, **kwargs)

    made: list[Any] = []
    handles = []
    for attention in facts.attentions(tower):
        for module in facts.projections(attention):
            handles.append(module.register_forward_hook(lambda _, args, out: made.append(out)))
        handles.append(
            attention.register_forward_hook(lambda m, args, kwargs, out: made.append((m, kwargs)), with_kwargs=True)
        )
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", spy)
    with torch.no_grad():
        model.model.get_image_features(pixel_values=inputs["pixel_values"])
    for handle in handles:
        handle.remove()
    rounds = [made[i : i + 3] for i in range(0, len(made), 3)]
    assert len(rounds) == len(facts.blocks(tower))
    last = theirs[len(theirs) - len(rounds) :]  # the stage before FastViT's last attends, too
    for (q, k, (attention, kwargs)), (queries, keys) in zip(rounds, last, strict=True):
        ((own, other),) = facts.queries_keys(attention, q, k, kwargs, None)
        assert torch.allclose(own, queries, atol=1e-6)
        assert torch.allclose(other, keys, atol=1e-6)


def test_whether_there_is_a_cls_token_is_the_towers() -> None:
    tower = adapter_for(model_of("perception_lm")).tower(model_of("perception_lm"))
    assert tower_for(tower).has_cls
    assert tower_for(tower).prefix(tower) == 1
    without = copy.deepcopy(tower)
    without.timm_model.cls_token = None
    assert not tower_for(without).has_cls
    assert isinstance(tower_for(without), WrappedEva)


def test_a_wrapped_tower_of_another_kind() -> None:
    if "gemma3n" in LISTED:
        tower = adapter_for(model_of("gemma3n")).tower(model_of("gemma3n"))
        with pytest.raises(ValueError, match="EfficientNet is convolutional: it has no patch tokens"):
            tower_for(tower)


def received(model: Any, inputs: Any, layer: int) -> Tensor:
    """[tokens] of a page, by the tower's own weights: windows, padded, put together in loops."""
    tower, found = model.model.vision_tower, []
    handle = tower.layers[layer].attn.register_forward_hook(lambda m, args, out: found.append((args, out)))
    calls: list[Any] = []
    before = tower.layers[layer].attn.register_forward_pre_hook(
        lambda m, args, kwargs: calls.append(kwargs["hidden_states"].shape), with_kwargs=True
    )
    with torch.no_grad():
        tower(inputs["pixel_values"])
    handle.remove()
    before.remove()
    ((_, (_, weights)),) = found
    (shape,) = calls  # [windows, h, w, D]
    heads, side, window = tower.config.num_attention_heads, 16, shape[1]
    across = -(-side // window)
    weights = weights.view(shape[0], heads, window * window, window * window)
    table = torch.zeros(side, side)
    for y in range(side):
        for x in range(side):
            own = weights[(y // window) * across + x // window]
            key = (y % window) * window + x % window
            table[y, x] = float(own[:, :, key].mean()) / across**2  # of all heads and queries of its window
    tokens = [table[y : y + 4, x : x + 4].sum() for y in range(0, side, 4) for x in range(0, side, 4)]
    return torch.stack(tokens)


class Layers(vtc.Method):
    """Reads every layer, and drops nothing."""

    needs: ClassVar[tuple[str, ...]] = ("received_attention", "keys", "joined_keys")
    seen: ClassVar[list[dict[str, Tensor]]] = []

    def tower_layers(self, depth: int, feature_layer: int) -> tuple[int, ...]:
        return tuple(range(depth))

    def select(self, tokens: Any) -> vtc.Selection:
        self.seen.append({name: tokens.signal(name).clone() for name in self.needs})
        return vtc.Selection.identity(tokens.total)


@pytest.mark.parametrize("window", [4, 6], ids=["windows that fit", "padded windows"])
def test_windows_of_a_page(window: int) -> None:
    config = copy.deepcopy(model_of("got_ocr2").config)
    config.vision_config.window_size = window
    torch.manual_seed(0)
    model = type(model_of("got_ocr2"))(config).eval()
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.25 if "rel_pos" in name else 0.1)
    inputs = batch("got_ocr2", [[0]])
    Layers.seen.clear()
    with vtc.wrapped(model, Layers()):
        model(**inputs)
    (seen,) = Layers.seen
    for layer in range(3):
        assert torch.allclose(seen["received_attention"][layer], received(model, inputs, layer), atol=1e-6)
    assert seen["keys"].shape == (16, 8)  # of what is in a patch alone
    assert seen["joined_keys"].shape == (3, 16, 24)
