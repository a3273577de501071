"""Models that no adapter knows: each is refused with a sentence that is true of it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForImageTextToText, PreTrainedModel

import vtc
from tests.families import FAMILIES, TEXT, VISION, model_of
from vtc.models.unsupported import REASONS, why_unsupported

VQ = dict(embed_dim=8, num_embeddings=16, latent_channels=8, z_channels=8, base_channels=32, channel_multiplier=[1])
AUDIO = dict(d_model=16, encoder_layers=1, encoder_attention_heads=2, encoder_ffn_dim=16)


def made(name: str, config: Any) -> Any:
    return getattr(transformers, name)._from_config(config)


def text_model() -> Any:
    return made("LlamaForCausalLM", AutoConfig.for_model("llama", **TEXT))


def text_part_of_a_vlm() -> Any:
    return made("Gemma3ForCausalLM", AutoConfig.for_model("gemma3_text", **TEXT, head_dim=8))


def chameleon(name: str = "ChameleonForConditionalGeneration") -> Any:
    vocabulary = {"<image>": 3, **{f"IMGIMG{c}Z": 10 + i for i, c in enumerate("ABCD")}}
    return made(name, AutoConfig.for_model("chameleon", vq_config=VQ, vocabulary_map=vocabulary, **TEXT))


def clip() -> Any:
    vision, text = {**VISION, "projection_dim": 16}, {**TEXT, "projection_dim": 16}
    config = AutoConfig.for_model("clip", vision_config=vision, text_config=text, projection_dim=16)
    return made("CLIPModel", config)


def audio() -> Any:
    config = AutoConfig.for_model("qwen2_audio", audio_config=AUDIO, text_config={"model_type": "qwen2", **TEXT})
    return made("Qwen2AudioForConditionalGeneration", config)


def video() -> Any:
    return made("VideoMAEModel", AutoConfig.for_model("videomae", **VISION, num_frames=2))


def time_series() -> Any:
    return made(
        "PatchTSTModel",
        AutoConfig.for_model("patchtst", d_model=8, num_attention_heads=2, ffn_dim=8, num_hidden_layers=1),
    )


ALONE = "is a vision model without a language model, and its vision tower is none that vtc knows."
NO_ADAPTER = (
    r"is of no listed family: try it with family=\"auto\", and prove it with vtc.check, or write an adapter "
    r"\(docs/extend/family.md shows how\)."
)
UNSUPPORTED = {
    "a text model": (text_model, r"LlamaForCausalLM \('llama'\) is a text-only model: it has no visual tokens."),
    "a text part": (text_part_of_a_vlm, r"Gemma3ForCausalLM \('gemma3_text'\) is a text-only model: it has no visual"),
    "another text part": (
        lambda: model_of("qwen2_vl").model.language_model,
        r"Qwen2VLTextModel \('qwen2_vl_text'\) is a text-only model",
    ),
    "chameleon": (chameleon, r"ChameleonForConditionalGeneration \('chameleon'\) turns pictures into words inside its"),
    "without a head": (
        lambda: chameleon("ChameleonModel"),
        r"ChameleonModel \('chameleon'\) does not generate text",
    ),
    "speech": (audio, r"'qwen2_audio'\) reads audio and text, neither images nor videos: it has no visual tokens."),
    "time series": (time_series, r"'patchtst'\) reads time, neither images nor videos: it has no visual tokens."),
    "videos alone": (video, rf"VideoMAEModel \('videomae'\) {ALONE}"),
    "no transformers model": (
        lambda: torch.nn.Linear(2, 2),
        r"Linear is none of transformers' models \(it has no config.model_type\): docs/extend/family.md",
    ),
}


@pytest.mark.parametrize("kind", UNSUPPORTED)
def test_the_sentence_is_true_of_the_model(kind):
    build, sentence = UNSUPPORTED[kind]
    with pytest.raises(ValueError, match=rf"{sentence}.* `vtc families` lists those"):
        vtc.wrap(build(), "divprune", keep=4)


@pytest.mark.parametrize("model_type", REASONS)
def test_what_no_adapter_can_help(model_type):
    """Said of any model of that type, without one being built: their defaults are large."""
    if model_type not in CONFIG_MAPPING:
        pytest.skip("this transformers has no such model")
    stand_in = type("SomeModel", (torch.nn.Module,), {"config": SimpleNamespace(model_type=model_type)})()
    assert model_type not in vtc.list_families()
    assert why_unsupported(stand_in) == f"SomeModel ({model_type!r}) {REASONS[model_type]}."


@pytest.mark.skipif(not transformers.__version__.startswith("5.24"), reason="said of transformers 5.24")
def test_llama_4_fails_by_itself():
    """Where this no longer holds, it is to be listed, or its sentence changed."""
    sizes = {"image_size": 32, "vision_output_dim": 32, "projector_input_dim": 32, "projector_output_dim": 32}
    text = {**TEXT, "head_dim": 8, "num_local_experts": 4, "intermediate_size_mlp": 48, "attention_chunk_size": 1024}
    config = AutoConfig.for_model(
        "llama4", vision_config={**VISION, **sizes, "intermediate_size": 96}, text_config=text, image_token_index=2
    )
    model = made("Llama4ForConditionalGeneration", config)
    with pytest.raises(AttributeError, match="image_outputs"):
        model(input_ids=torch.tensor([[1, *[2] * 16, 7]]), pixel_values=torch.zeros(1, 3, 32, 32))
    with pytest.raises(ValueError, match=r"fails by itself in transformers 5\.24.* `vtc families` lists"):
        vtc.wrap(model, "divprune", keep=4)


TOWERS = {
    "clip": clip,
    "clip tower": lambda: model_of("llava").model.vision_tower,
    "siglip tower": lambda: model_of("llava_siglip").model.vision_tower,
    "internvl tower": lambda: model_of("internvl").model.vision_tower,
    "qwen2 tower": lambda: model_of("qwen2_vl").model.visual,
    "qwen2.5 tower": lambda: model_of("qwen2_5_vl").model.visual,
    "qwen3 tower": lambda: model_of("qwen3_vl").model.visual,
}


@pytest.mark.parametrize("kind", TOWERS)
def test_a_vision_tower_takes_only_methods_that_act_inside_of_it(kind):
    model = TOWERS[kind]()
    with pytest.raises(
        ValueError, match=r"divprune works at the stage 'input', and a vision tower alone has the stage"
    ):
        vtc.wrap(model, "divprune", keep=4)
    vtc.unwrap(vtc.wrap(model, "tome", keep=0.5))


def test_a_model_from_elsewhere_is_not_taken_for_a_text_model():
    """A class that does not say what it reads inherits "text" from transformers."""

    class Foreign(PreTrainedModel):
        config_class = type(AutoConfig.for_model("llama"))

    with pytest.raises(ValueError, match=rf"Foreign \(model type 'llama'\) {NO_ADAPTER}"):
        vtc.wrap(Foreign(AutoConfig.for_model("llama", **TEXT)), "divprune", keep=4)

    class Declared(Foreign):
        input_modalities = "text"

    with pytest.raises(ValueError, match=r"Declared \('llama'\) is a text-only model"):
        vtc.wrap(Declared(AutoConfig.for_model("llama", **TEXT)), "divprune", keep=4)


def test_a_part_of_a_known_family_is_refused():
    with pytest.raises(ValueError, match=r"wrap the whole model .* not a part of it \(LlavaModel\)"):
        vtc.wrap(model_of("llava").model, "divprune", keep=4)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("layers of the kind chunked", {"layer_types": ["chunked_attention"] * 3}),
    ],
)
def test_language_models_that_leave_tokens_out_by_themselves(kind, options):
    config = FAMILIES["llava"].config()
    model: Any = AutoModelForImageTextToText.from_config(config)
    for name, value in options.items():
        setattr(model.model.language_model.config, name, value)
    with pytest.raises(ValueError, match=f"the language model of this llava .*{kind}"):
        vtc.wrap(model, "divprune", keep=4)
