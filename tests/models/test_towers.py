"""Facts about vision towers, against what the towers themselves compute under eager attention."""

from __future__ import annotations

import random
import sys
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForImageTextToText
from transformers.vision_utils import get_vision_window_index

import vtc
from tests.families import FAMILIES, IMAGE, TEXT, VISION, batch, model_of
from tests.models.test_listed import TOWERS
from vtc.models import adapter_for, register_tower, tower, tower_for
from vtc.models.tower import Tower, known_towers
from vtc.models.tower_qwen import windows_of

#: a family whose tiny model has the tower
SERVES = {
    "clip_vision_model": "llava",
    "siglip_vision_model": "llava_siglip",
    "internvl_vision": "internvl",
    "qwen2_vl_vision": "qwen2_vl",
    "qwen2_5_vl_vision": "qwen2_5_vl",
    "qwen3_vl_vision": "qwen3_vl",
}


def tower_and_inputs(family: str, rows: Any, video: bool = False) -> tuple[Any, dict[str, torch.Tensor]]:
    model, inputs = model_of(family, "eager"), batch(family, rows)
    pixels, grid = ("pixel_values_videos", "video_grid_thw") if video else ("pixel_values", "image_grid_thw")
    module = adapter_for(model).tower(model)
    if grid in inputs:
        return module, {"hidden_states": inputs[pixels], "grid_thw": inputs[grid]}
    return module, {"pixel_values": inputs[pixels]}


def probabilities(monkeypatch: Any, module: Any, inputs: Any) -> tuple[list[list[Any]], list[list[Any]]]:
    """Per block: the tower's own probabilities [B, H, T, T] of each attention call, and those of the facts."""
    facts = tower_for(module)
    attentions = facts.attentions(module)
    own: list[list[Any]] = [[] for _ in attentions]
    told: list[list[Any]] = [[] for _ in attentions]
    source: Any = sys.modules[type(attentions[0]).__module__]
    eager = source.eager_attention_forward

    def spy(attention, query, key, *args, **kwargs):
        output, weights = eager(attention, query, key, *args, **kwargs)
        own[attentions.index(attention)].append(weights)
        return output, weights

    handles, outputs = [], {}
    for projection in {part for attention in attentions for part in facts.projections(attention)}:
        handles.append(projection.register_forward_hook(lambda m, args, out: outputs.update({m: out})))
    for i, attention in enumerate(attentions):

        def after(m, args, kwargs, output, i=i):
            q, k = (outputs[part] for part in facts.projections(m))
            segments = facts.queries_keys(m, q, k, kwargs, inputs.get("grid_thw"))
            told[i] += [(q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(dim=-1) for q, k in segments]
            assert facts.segments(kwargs) in (None, [q.shape[2] for q, _ in segments])

        handles.append(attention.register_forward_hook(after, with_kwargs=True))
    try:
        with monkeypatch.context() as patch, torch.no_grad():
            patch.setattr(source, "eager_attention_forward", spy)
            module(**inputs)
    finally:
        for handle in handles:
            handle.remove()
    return own, told


def agree(own: list[list[Any]], told: list[list[Any]]) -> None:
    assert len(own) == len(told) == 3
    for theirs, mine in zip(own, told, strict=True):
        assert theirs
        assert len(theirs) == len(mine)
        for a, b in zip(theirs, mine, strict=True):
            torch.testing.assert_close(b, a, atol=1e-5, rtol=0)


@pytest.mark.parametrize("rows", [[[0]], [[1, 0], [2]]], ids=["one image", "several images"])
@pytest.mark.parametrize("kind", SERVES)
def test_queries_and_keys_give_the_tower_s_own_probabilities(monkeypatch, kind, rows):
    module, inputs = tower_and_inputs(SERVES[kind], rows)
    assert module.config.model_type == kind
    agree(*probabilities(monkeypatch, module, inputs))


@pytest.mark.parametrize("kind", [kind for kind in SERVES if kind.startswith("qwen")])
def test_frames_of_a_video_do_not_see_each_other(monkeypatch, kind):
    module, inputs = tower_and_inputs(SERVES[kind], [["v0", "v1"]], video=True)
    own, told = probabilities(monkeypatch, module, inputs)
    agree(own, told)
    assert len(told[-1]) == inputs["grid_thw"][:, 0].sum()


def test_windows_of_qwen2_5(monkeypatch):
    module, inputs = tower_and_inputs("qwen2_5_vl", [[0, 1]])
    _, told = probabilities(monkeypatch, module, inputs)
    windows = 3 * 2 + 3 * 4  # of 2 x 2 tokens, in pictures of 6 x 4 and 5 x 7
    assert [len(segments) for segments in told] == [windows, windows, 2]
    assert tower_for(module).feature_layer(module) == 2
    module.fullatt_block_indexes = [1]
    try:
        assert tower_for(module).feature_layer(module) == 1
    finally:
        module.fullatt_block_indexes = [2]


def test_windows_equal_transformers():
    rng = random.Random(0)
    for _ in range(40):
        images = [[rng.choice([1, 1, 2]), 2 * rng.randint(1, 30), 2 * rng.randint(1, 30)] for _ in range(3)]
        grids = torch.tensor(images)
        want, _ = get_vision_window_index(grids, spatial_merge_size=2, window_size=112, patch_size=14)
        assert torch.equal(torch.cat(windows_of(grids, 2, 4)), want), images


def test_every_known_tower_is_tested():
    alone = {
        "dinov2",
        "dinov2_with_registers",
        "dinov3_vit",
        "pixtral",
        "siglip2_vision_model",
    }  # tests/engine/towers.py
    assert known_towers() == sorted({*SERVES, *alone, *TOWERS.values()})


@pytest.mark.parametrize("kind", SERVES)
def test_a_cls_token_is_a_parameter_of_the_tower(kind):
    model = model_of(SERVES[kind])
    module = adapter_for(model).tower(model)
    named = [name for name, _ in module.named_parameters() if name.endswith(("class_embedding", "cls_token"))]
    assert tower_for(module).has_cls == bool(named)


@pytest.mark.parametrize("kind", SERVES)
def test_one_attention_a_block(kind):
    model = model_of(SERVES[kind])
    module = adapter_for(model).tower(model)
    facts = tower_for(module)
    blocks = facts.blocks(module)
    assert len(blocks) == 3
    for block, attention in zip(blocks, facts.attentions(module), strict=True):
        assert attention in list(block.children())


@pytest.mark.parametrize("kind", SERVES)
def test_as_many_values_as_the_tower_hands_over_tokens(kind):
    """A value that all patches of a picture share is what its tokens get; tests of the signals check the order."""
    model = model_of(SERVES[kind])
    module, inputs = tower_and_inputs(SERVES[kind], [[0, 1]])
    facts, grid = tower_for(module), inputs.get("grid_thw")
    if grid is None:
        values = torch.arange(2.0)[:, None].expand(2, 36)
        assert torch.equal(facts.tokens_from_patches(module, values, None, True), values)
        return
    patches = grid.prod(dim=1)
    values = torch.arange(2.0).repeat_interleave(patches)[None]
    out = facts.tokens_from_patches(module, values, grid, True)
    assert torch.equal(out, torch.arange(2.0).repeat_interleave(patches // 4)[None])
    features = model.model.get_image_features(inputs["hidden_states"], grid, return_dict=True).pooler_output
    assert [len(x) for x in features] == (patches // 4).tolist()


def test_families_declare_what_travels_with_visual_tokens():
    declared = {family: adapter_for(model_of(family)).companions for family in FAMILIES}
    companions = declared.pop("qwen3_vl")
    assert set(declared.values()) == {None}
    assert companions is not None
    model, seen = model_of("qwen3_vl"), {}
    language = model.model.language_model
    handle = language.register_forward_pre_hook(lambda m, args, kwargs: seen.update(kwargs), with_kwargs=True)
    inputs = batch("qwen3_vl", [[0], [1]])
    try:
        model(**inputs)
    finally:
        handle.remove()
    mask, rows = seen[companions.mask], seen[companions.rows]
    assert torch.equal(mask, inputs["input_ids"] == IMAGE)
    assert [x.shape for x in rows] == [(int(mask.sum()), 32)] * 2


# -- towers that vtc does not know ---------------------------------------------------------------------------------


def llava_with_dinov2() -> Any:
    vision = {"model_type": "dinov2", **VISION}
    config = AutoConfig.for_model(
        "llava", vision_config=vision, text_config={"model_type": "llama", **TEXT}, image_token_index=IMAGE
    )
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(config, attn_implementation="eager").eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.25)
    return model


class DinoTower(Tower):
    """What a user writes: DINOv2."""

    model_types = ("dinov2",)
    has_cls = True

    def blocks(self, tower):
        return tower.encoder.layer

    def attentions(self, tower):
        return [block.attention for block in self.blocks(tower)]

    def queries_keys(self, attention, q, k, inputs, grid_thw):
        heads = attention.num_attention_heads
        queries, keys = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k))
        return [(queries, keys)]


def test_an_unknown_tower_is_refused_with_the_known_ones():
    model = llava_with_dinov2()
    known = (
        "clip_vision_model, granite_docling_vision, idefics2_vision, .*janus_vision_model, .*siglip_vision_model, .*"
    )
    message = f"llava with tower 'dinov2' is not supported; with {known} it is."
    with pytest.raises(ValueError, match=message):
        vtc.wrap(model, "divprune", keep=4)
    with pytest.raises(ValueError, match=r"Linear \(model type None\) is no vision tower"):
        tower_for(torch.nn.Linear(2, 2))


def test_an_unknown_tower_is_refused_where_a_method_reads_it():
    config = FAMILIES["internvl"].config()
    model: Any = AutoModelForImageTextToText.from_config(config)
    model.model.vision_tower.config.model_type = "someone_s_vision"
    with pytest.raises(ValueError, match=r"'someone_s_vision'\) is no vision tower that vtc knows; it knows clip"):
        vtc.wrap(model, "vtc-cls", keep=4)
    vtc.wrap(model, "divprune", keep=4)


def test_a_tower_registered_from_outside_works(monkeypatch):
    monkeypatch.setattr(tower, "_TOWERS", dict(tower._TOWERS))
    assert register_tower(DinoTower) is DinoTower
    model = llava_with_dinov2()
    module = model.model.vision_tower
    pixels = torch.randn(2, 3, 24, 24, generator=torch.Generator().manual_seed(1))
    agree(*probabilities(monkeypatch, module, {"pixel_values": pixels}))
    attentions = module(pixels, output_attentions=True).attentions
    ids = torch.tensor([[1, *[IMAGE] * 36, 7], [1, *[IMAGE] * 36, 8]])
    got = []

    class Probe(vtc.Method):
        needs = ("cls_attention",)

        def select(self, tokens):
            got.append(tokens.signal("cls_attention")[0])
            return vtc.Selection.prune(torch.arange(4), tokens.total)

    with vtc.wrapped(model, Probe()):
        model.generate(input_ids=ids, pixel_values=pixels, max_new_tokens=2)
    feature_layer = 1  # vision_feature_layer -2 of 3
    want = attentions[feature_layer].mean(dim=1)[:, 0, 1:]
    torch.testing.assert_close(torch.stack(got), want, atol=1e-5, rtol=1e-4)
