"""Checkpoints as files: which class loads one, one that is not in transformers' format, and what old processors leave
out."""

from __future__ import annotations

from typing import Any

from vtc.models.tower import facts_of, known_towers

#: keys of configurations that repositories of their own write, and transformers takes for nothing or for defaults
_FOREIGN = ("mm_vision_tower", "mm_projector_type", "llm_config")


def check_format(place: str) -> None:
    """Raise ValueError, in one sentence, if a checkpoint's configuration is in another format than transformers'.

    A configuration of the original LLaVA is read as one of transformers' with default sizes: it would load, wrongly.
    """
    from transformers import CONFIG_MAPPING, PreTrainedConfig

    said, _ = PreTrainedConfig.get_config_dict(place)
    kind = said.get("model_type")
    foreign = next((key for key in _FOREIGN if key in said), None)
    if foreign is None and "auto_map" in said and kind not in CONFIG_MAPPING:
        foreign = "auto_map"
    if foreign is not None:
        raise ValueError(
            f"{place!r} is in the format of its own repository ({foreign} in its config.json), not in transformers': "
            "use its conversion, whose name ends in -hf or -HF."
        )


def class_for(place: str) -> Any:
    """The auto class that loads a checkpoint: the first that has a model for its configuration."""
    import transformers as hf

    config = hf.AutoConfig.from_pretrained(place)
    every = (getattr(hf, name, None) for name in ("AutoModelForImageTextToText", "AutoModelForMultimodalLM"))
    classes = [one for one in every if one is not None]
    return next((one for one in classes if type(config) in one._model_mapping), classes[0])


def complete(processor: Any, config: Any) -> list[str]:
    """Fill in what the processor of an old checkpoint does not say; what is to be said of that, in sentences.

    LLaVA's processors write as many placeholders as the tower has patches, and CLS tokens that stay: without these two
    numbers transformers fails in a division, or in the middle of the model. Without a pad token no batch can be made.
    """
    filled = [*_placeholders(processor, config), *_told(processor), *_padding(getattr(processor, "tokenizer", None))]
    _tiles(processor, config)
    said = []
    if filled:
        said.append(f"does not say everything; filled in: {', '.join(filled)}.")
    if not getattr(processor, "chat_template", None):
        said.append("has no chat template: questions are asked as USER: ... ASSISTANT:, which it may not have learnt.")
    return said


def _placeholders(processor: Any, config: Any) -> list[str]:
    vision = getattr(config, "vision_config", None)
    kind = getattr(vision, "model_type", None)
    if vision is None or not hasattr(processor, "num_additional_image_tokens") or kind not in known_towers("square"):
        return []
    wanted = {
        "patch_size": getattr(vision, "patch_size", None),
        "vision_feature_select_strategy": getattr(config, "vision_feature_select_strategy", None),
        "num_additional_image_tokens": int(facts_of(str(kind)).has_cls),
    }
    filled = []
    for name, value in wanted.items():
        had = getattr(processor, name, None)
        if value is not None and (had is None or (name == "num_additional_image_tokens" and had < value)):
            setattr(processor, name, value)
            filled.append(f"{name}={value!r}")
    return filled


def _told(processor: Any) -> list[str]:
    """Cosmos 3 Edge's processor has what its model and its own prompts need, and hands it out only on request."""
    if type(processor).__name__ != "Cosmos3EdgeProcessor" or processor.return_mm_token_type_ids:
        return []
    processor.return_mm_token_type_ids = True
    processor.videos_kwargs = {"return_metadata": True}
    return ["return_mm_token_type_ids=True", "return_metadata=True"]


def _tiles(processor: Any, config: Any) -> None:
    """Mllama's processor has no word for how large patches are, which `vtc.downsample` counts tokens by: no fault of
    the checkpoint's, and nothing to be said about."""
    if type(processor).__name__ == "MllamaProcessor" and not hasattr(processor, "patch_size"):
        processor.patch_size = config.vision_config.patch_size


def _padding(tokenizer: Any) -> list[str]:
    """Padding is masked: any token will do."""
    if tokenizer is None or tokenizer.pad_token is not None:
        return []
    tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)
    return [f"pad_token={tokenizer.pad_token!r}"]
