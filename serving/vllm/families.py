"""The families that run in vLLM with pruned pictures: facts that need neither torch nor vLLM."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_CLIPS = ("clip_vision_model", "siglip_vision_model")


@dataclass(frozen=True)
class Family:
    """A family of models, as the plug-in serves it.

    Attributes:
        model_type: `config.model_type` of its checkpoints. stock: the name of vLLM's own class for them.
        module: the module of `vtc.serving.vllm` that holds the plug-in's class.
        positions: of what is kept, which the language model decides: "compact", where a token's number in the row is
            its position, "original", where it has (t, h, w) positions.
        prunes: of which modalities tokens leave; videos of the others stay whole.
        towers: `model_type` of the vision towers that the plug-in knows, first that of checkpoints which do not say, as
            transformers has it.
        framed: whether words stand between a video's frames, so that it has to be known how many tokens each frame
            keeps: those of methods that choose in each frame for itself.
    """

    model_type: str
    stock: str
    module: str
    positions: str
    prunes: tuple[str, ...]
    towers: tuple[str, ...]
    framed: bool = False

    @property
    def architecture(self) -> str:
        """The name that vLLM finds the plug-in's class by."""
        return f"Vtc{self.stock}"

    @property
    def place(self) -> str:
        """ "module:class", which vLLM imports when the architecture is asked for."""
        return f"vtc.serving.vllm.{self.module}:{self.architecture}"


_BOTH = ("image", "video")
_ALL = (
    Family("llava", "LlavaForConditionalGeneration", "llava", "compact", ("image",), _CLIPS),
    Family(
        "qwen2_5_vl",
        "Qwen2_5_VLForConditionalGeneration",
        "qwen_vl",
        "original",
        _BOTH,
        ("qwen2_5_vl", "qwen2_5_vl_vision"),
    ),
    Family(
        "qwen2_vl", "Qwen2VLForConditionalGeneration", "qwen2_vl", "original", _BOTH, ("qwen2_vl", "qwen2_vl_vision")
    ),
    Family(
        "qwen3_vl",
        "Qwen3VLForConditionalGeneration",
        "qwen3_vl",
        "original",
        ("image",),  # vLLM 0.32 hands its clips to the tower as bytes, not rescaled: answers cannot be compared
        ("qwen3_vl", "qwen3_vl_vision"),
    ),
    Family(
        "llava_onevision",
        "LlavaOnevisionForConditionalGeneration",
        "llava_onevision",
        "compact",
        _BOTH,
        ("siglip_vision_model",),
    ),
    Family("internvl", "InternVLForConditionalGeneration", "internvl", "compact", _BOTH, ("internvl_vision",), True),
    Family("llava_next", "LlavaNextForConditionalGeneration", "llava_next", "compact", ("image",), _CLIPS),
)
#: `config.model_type` -> the family
FAMILIES: Mapping[str, Family] = {family.model_type: family for family in _ALL}


def tokens_of_every_picture(config: Mapping[str, Any]) -> int | None:
    """Visual tokens of a picture where all have equally many, by a model's config.json; None where it depends.

    Example: LLaVA-1.5's pictures are 336 pixels wide, 14 of which are a patch: 24 x 24 = 576.
    """
    vision = config.get("vision_config")
    if config.get("model_type") != "llava" or not isinstance(vision, Mapping):
        return None
    size, patch = vision.get("image_size"), vision.get("patch_size")
    if not isinstance(size, int) or not isinstance(patch, int) or not 0 < patch <= size:
        return None
    with_cls = config.get("vision_feature_select_strategy") == "full" and vision.get("model_type") == _CLIPS[0]
    return (size // patch) ** 2 + with_cls
