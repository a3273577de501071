"""Every listed family, at every stage: the oracle, and what a method that cannot work there is told."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import vtc
from tests.engine.test_oracle import equal_to_oracle
from tests.engine.test_oracle_inside import equal_to_oracle as equal_inside
from tests.families import EVERY, batch, model_of
from tests.listed import LISTED
from tests.sampling import NOT_KNOWN
from tests.sweep import refused
from vtc.models.decoder import decoder_for
from vtc.models.families import SHIPPED

MIXED: Any = [[0], [1, 2], []]
#: by the first layer that attends, and the last two that do: 0, and 1 and 2 of three, where all do
STAGES: dict[str, Callable[[tuple[int, ...]], Any]] = {
    "input": lambda _: vtc.DivPrune(keep=0.3),
    "input, compact": lambda _: vtc.DivPrune(keep=0.3, positions="compact"),
    "merge": lambda _: vtc.ToMe(keep=0.3),
    "layer": lambda attending: vtc.FastV(keep=0.4, layers=(attending[0] + 1,)),
    "layer, compact": lambda attending: vtc.PyramidDrop(keep=0.2, layers=attending[-2:], positions="compact"),
    "cache": lambda _: vtc.H2O(keep=0.4),
}
#: what methods inside the language model are told that cannot be there
INSIDE = {
    "gemma3n": "hand on several states of each token",
    "mllama": r"works at stage '(layer|cache)', and the visual tokens of mllama stand in no row of its language model",
}
VIDEOS = [name for name, family in LISTED.items() if family.videos is not None]


def made(family: str, stage: str) -> Any:
    lm = model_of(family).get_decoder()
    return STAGES[stage](decoder_for(lm).attending(lm.config))


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("family", LISTED)
def test_oracle(family: str, stage: str) -> None:
    compare = equal_to_oracle if stage in ("input", "input, compact", "merge") else None
    method = made(family, stage)
    where = next((name for name in ("layer", "cache") if stage.startswith(name)), "input")
    if where not in SHIPPED[family].stages:
        with pytest.raises(ValueError, match=INSIDE[family]):
            vtc.wrap(model_of(family), method)
        return
    if compare is not None:
        report = compare(family, "sdpa", MIXED, "left", method)
    else:
        report = equal_inside(family, method, (MIXED, "left"))
    assert report.tokens_in >= 3 * 16
    assert (report.tokens_out < report.tokens_in) == (stage != "cache")


@pytest.mark.parametrize("stage", ["input", "layer"])
@pytest.mark.parametrize("family", VIDEOS)
def test_videos(family: str, stage: str) -> None:
    rows: Any = [["v0"], ["v1", "v2"], []]
    if stage == "input":
        report = equal_to_oracle(family, "sdpa", rows, "left", made(family, stage))
    else:
        report = equal_inside(family, made(family, stage), (rows, "left"))
    assert {span.modality for span in report.spans} == {"video"}
    assert len(report.spans) == 3


@pytest.mark.parametrize("family", LISTED)
def test_everything_kept_is_the_plain_model(family: str) -> None:
    model, inputs = model_of(family), batch(family, MIXED)
    plain = model(**inputs).logits
    with vtc.wrapped(model, "divprune", keep=1.0):
        assert model(**inputs).logits.equal(plain)


#: families by what is known of their towers: read by signals; cut to some patches; merged between its blocks
SQUARES = {"vipllava", "video_llava", "janus", "deepseek_vl"}
SIGLIP = {"gemma3", "paligemma", "aya_vision", "cohere2_vision"}
#: those whose towers pack pictures as Qwen's do: all of them, and those that are cut
PACKED = {
    *("qwen3_vl_moe", "qwen3_5", "qwen3_5_moe", "cosmos3_omni", "qwen3_omni_moe_thinker", "hyperclovax_vision_v2"),
}
GLM = {"glm4v", "glm46v", "glm4v_moe", "glmga"}
#: single crops, several of which may make a picture
CROPS = {"idefics3", "smolvlm", "ovis2"}
APART = {"glm_ocr", "cosmos3_edge", "qwen2_5_omni_thinker", "kimi_k25", "hunyuan_vl", "paddleocr_vl"}
APART |= {"video_llama_3"}
APART |= {"mistral3", "lighton_ocr", "lfm2_vl", "ernie4_5_vl_moe", "granite_docling", "granite4_vision"}
#: whose towers attend in a way of their own, by no interface of transformers'
PAGES = {"got_ocr2", "pp_chart2table", "perception_lm", "fast_vlm"}
KNOWN: dict[str, tuple[str, set[str]]] = {
    "read": ("visionzip", SQUARES | SIGLIP | PACKED | GLM | CROPS | APART | PAGES | {"qianfan_ocr"}),
    "before": ("pixelprune", SQUARES | SIGLIP | PACKED | GLM | {"idefics3", "smolvlm"}),
    "inside": (
        "tome(stage=encoder)",
        SQUARES
        | SIGLIP
        | PACKED
        | GLM
        | CROPS
        | {"qianfan_ocr", "ernie4_5_vl_moe", "aria", "idefics2", "perception_lm", "granite4_vision"},
    ),
}
#: the towers of those that are read
TOWERS = {
    "vipllava": "clip_vision_model",
    "video_llava": "clip_vision_model",
    "janus": "janus_vision_model",
    "deepseek_vl": "siglip_vision_model",
    "mistral3": "pixtral",
    "lighton_ocr": "pixtral",
    "qwen3_vl_moe": "qwen3_vl_moe_vision",
    "lfm2_vl": "siglip2_vision_model",
    "qwen3_5": "qwen3_5_vision",
    "qwen3_5_moe": "qwen3_5_moe_vision",
    "qianfan_ocr": "qianfan_ocr_vision",
    **dict.fromkeys(("glm4v", "glm46v", "glmga"), "glm4v_vision"),
    "glm4v_moe": "glm4v_moe_vision",
    "glm_ocr": "glm_ocr_vision",
    "ernie4_5_vl_moe": "ernie4_5_vl_moe_vision",
    "paddleocr_vl": "paddleocr_vl_vision",
    "video_llama_3": "video_llama_3_vision",
    "ovis2": "ovis2_vision",
    "aria": "idefics3_vision",
    "idefics2": "idefics2_vision",
    "got_ocr2": "got_ocr2_vision",
    "pp_chart2table": "pp_chart2table_vision",
    **dict.fromkeys(("perception_lm", "fast_vlm"), "timm_wrapper"),
    "idefics3": "idefics3_vision",
    "smolvlm": "smolvlm_vision",
    "granite_docling": "granite_docling_vision",
    "cosmos3_omni": "qwen3_vl_vision",
    "cosmos3_edge": "cosmos3_edge_vision",
    "hyperclovax_vision_v2": "qwen2_5_vl_vision",
    "qwen2_5_omni_thinker": "qwen2_5_omni_vision_encoder",
    "qwen3_omni_moe_thinker": "qwen3_omni_moe_vision_encoder",
    "kimi_k25": "kimi_k25_vision",
    "hunyuan_vl": "hunyuan_vl_vision",
    **dict.fromkeys((*SIGLIP, "granite4_vision"), "siglip_vision_model"),
}


@pytest.mark.parametrize("how", KNOWN)
@pytest.mark.parametrize("family", LISTED)
def test_methods_of_the_tower(family: str, how: str) -> None:
    """They are right where its tower is known, and refuse the others."""
    method, known = KNOWN[how]
    model, inputs = model_of(family), batch(family, [[0], [1, 2]])
    if family in known:
        found = vtc.check(model, method, 0.5, inputs=inputs, show=None)
        assert found.ok, found
        # attention as signals read it is the tower's own; timm's: test_tower_timm.py
        assert found.of("tower").ok is (None if TOWERS[family] == "timm_wrapper" else True)
        assert model.config.vision_config.model_type == TOWERS[family]
        return
    with pytest.raises(ValueError, match=NOT_KNOWN), vtc.wrapped(model, method, keep=0.5):
        model(**inputs)


def test_pixels_of_pictures_that_are_padded() -> None:
    method = vtc.VFlowOpt(keep=0.4, threshold=1.0, alpha=0.1, cell=2.0, r2=0.8)
    with pytest.raises(ValueError, match=r"looks at the pixels under patches, .* of mistral3 is given pictures of any"):
        vtc.wrap(model_of("mistral3"), method)
    assert vtc.check(model_of("mistral3"), "tome(stage=encoder)", 0.5, inputs=batch("mistral3", [[0]]), show=None).ok


#: grid, number of tokens and number of crops of a family's picture 1
ARRANGED: dict[str, tuple[tuple[int, int, int], int, int]] = {
    **dict.fromkeys(("vipllava", "video_llava", "janus", "deepseek_vl", "ovis2"), ((1, 6, 6), 36, 1)),
    **dict.fromkeys(("fast_vlm", "idefics3", "smolvlm"), ((1, 4, 4), 16, 1)),
    **dict.fromkeys(("got_ocr2", "qianfan_ocr"), ((1, 4, 4), 48, 3)),
    "perception_lm": ((1, 4, 4), 32, 2),
    **dict.fromkeys(("mistral3", "lighton_ocr"), ((1, 5, 7), 35, 1)),
    **dict.fromkeys(("glm4v", "glm46v", "glm4v_moe", "glm_ocr", "ernie4_5_vl_moe"), ((1, 5, 7), 35, 1)),
    **dict.fromkeys(("paddleocr_vl", "video_llama_3", "qwen3_vl_moe"), ((1, 5, 7), 35, 1)),
    **dict.fromkeys(("qwen3_5", "qwen3_5_moe"), ((1, 5, 7), 35, 1)),
    "lfm2_vl": ((1, 5, 6), 30, 1),
    **dict.fromkeys(("minicpmv4_6", "exaone4_5", "nemotron_h_omni"), ((1, 5, 7), 35, 1)),
    "emu3": ((1, 8, 8), 72, 1),  # a word at the end of each row
    "aria": ((1, 1, 20), 20, 1),
    **dict.fromkeys(("glmga", "cosmos3_omni", "cosmos3_edge", "hyperclovax_vision_v2"), ((1, 5, 7), 35, 1)),
    **dict.fromkeys(("qwen2_5_omni_thinker", "qwen3_omni_moe_thinker", "kimi_k25"), ((1, 5, 7), 35, 1)),
    "pp_chart2table": ((1, 4, 4), 48, 3),
    "granite_docling": ((1, 4, 4), 16, 1),
    "hunyuan_vl": ((1, 5, 7), 42, 1),  # one at the end of each row, one before and one behind
    "deepseek_ocr2": ((1, 1, 289), 289, 1),
    "idefics2": ((1, 1, 16), 16, 1),
    "deepseek_vl_hybrid": ((1, 6, 6), 36, 1),
    **dict.fromkeys(("gemma3", "gemma3n", "aya_vision", "cohere2_vision"), ((1, 4, 4), 16, 1)),
    "gemma4": ((1, 5, 7), 35, 1),
    "paligemma": ((1, 8, 8), 64, 1),
    "granite4_vision": ((1, 4, 10), 60, 4),  # a thumbnail, and three tiles side by side
    "step3p7": ((1, 4, 4), 25, 2),
    "molmo2": ((1, 3, 9), 36, 2),
    "mllama": ((1, 4, 4), 68, 4),
}
#: how many tokens stand for no place
ENDS = {"emu3": 8, "hunyuan_vl": 7, "granite4_vision": 4, "mllama": 4}


@pytest.mark.parametrize("family", LISTED)
def test_arrangement(family: str) -> None:
    """How a picture's tokens lie: its own patches, 2 x 2 of which make a token; or crops of one size."""
    model = model_of(family)
    with vtc.wrapped(model, "random", keep=1.0):
        model(**batch(family, [[1]]))
        (span,) = model._vtc_engine.trace.spans
    grid, tokens, crops = ARRANGED[family]
    assert (span.grid, span.tokens) == (grid, tokens)
    assert len({number for number in span.crop.tolist() if number >= 0}) == crops
    assert int(span.separators.sum()) == ENDS.get(family, 0)


def test_where_nobody_knows_the_grid() -> None:
    """Aria's tokens are learned queries: no place in the picture, no patch of the tower."""
    model, inputs = model_of("aria"), batch("aria", MIXED)
    with vtc.wrapped(model, "pool", keep=0.25), refused(model, "works on the grid of a picture.*divprune", True):
        model(**inputs)
    assert vtc.list_families() == sorted({name.removesuffix("_siglip") for name in EVERY})


#: families that are given whole pictures, and mix none of their neighbours: (rows, columns) of the tokens of picture 0
WHOLE = {
    **dict.fromkeys(("vipllava", "video_llava", "janus", "deepseek_vl", "ovis2"), (6, 6)),
    **dict.fromkeys(("qianfan_ocr", "idefics3", "smolvlm"), (4, 4)),
    **dict.fromkeys(("mistral3", "lighton_ocr"), (6, 4)),
}


@pytest.mark.parametrize("family", [name for name in WHOLE if name in LISTED])
def test_a_token_of_the_default_family_is_where_its_pixels_are(family: str) -> None:
    """DefaultAdapter.layout: of the tokens, that of the cell whose pixels change changes most."""
    model, inputs = model_of(family), batch(family, [[0]])
    vision = {name: x for name, x in inputs.items() if name.startswith(("pixel", "image_sizes"))}
    with torch.no_grad(), vtc.wrapped(model, "random", keep=1.0):
        model(**inputs)
        span = vtc.report(model).spans[0]
        rows, columns = WHOLE[family]
        assert span.grid == (1, rows, columns)
        before = features(model, vision)
        for row, column in ((0, 1), (rows - 1, 0), (2, columns - 1)):
            pixels = vision["pixel_values"].clone()
            h, w = pixels.shape[-2] // rows, pixels.shape[-1] // columns
            pixels[..., row * h : (row + 1) * h, column * w : (column + 1) * w] += 3.0
            after = features(model, vision | {"pixel_values": pixels})
            assert int((after - before).norm(dim=-1).argmax()) == row * columns + column


def features(model: Any, vision: Any) -> torch.Tensor:
    layer = getattr(model.config, "vision_feature_layer", -1)
    made = model.model.get_image_features(**vision, vision_feature_layer=layer, return_dict=True).pooler_output
    return made[0]
