"""What the families that ship are, in words: a table that needs no torch, for lists and help.

`list_families()` says which have an adapter, those of a user's own included; the facts that models run by are the
adapters'.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass


@dataclass(frozen=True)
class FamilyInfo:
    """A family of models.

    Attributes:
        model_type: `config.model_type` of its checkpoints. title: what people call it.
        modality: "image", "video"; () = not known. tokens: how a picture becomes visual tokens.
        notes: what else a user should know, in sentences. checkpoint: one on the Hub, or one that ships.
    """

    model_type: str
    title: str
    modality: tuple[str, ...]
    tokens: str
    notes: str = ""
    checkpoint: str = ""


_BOTH = ("image", "video")
_CROPS = 'A picture is several crops to the tower: with scope="crop" each of them chooses within its share.'
_GRID = "a grid of its own size"
SHIPPED = {
    info.model_type: info
    for info in (
        FamilyInfo(
            "internvl",
            "InternVL",
            _BOTH,
            "square tiles, a thumbnail",
            f"{_CROPS} A video is a row of pictures: wrap with processor=processor, which tells what belongs together.",
            "OpenGVLab/InternVL3-1B-hf",
        ),
        FamilyInfo(
            "llava", "LLaVA-1.5", ("image",), "one square crop", "tiny-llava, which ships, is one.", "tiny-llava"
        ),
        FamilyInfo(
            "llava_next",
            "LLaVA-NeXT",
            ("image",),
            "crops, a thumbnail",
            _CROPS,
            "llava-hf/llava-v1.6-vicuna-7b-hf",
        ),
        FamilyInfo(
            "llava_next_video",
            "LLaVA-NeXT-Video",
            _BOTH,
            "crops, a thumbnail",
            _CROPS,
            "llava-hf/LLaVA-NeXT-Video-7B-hf",
        ),
        FamilyInfo(
            "llava_onevision",
            "LLaVA-OneVision",
            _BOTH,
            "crops, a thumbnail",
            f"{_CROPS} Its tower has no CLS token: methods that read one get received attention instead.",
            "llava-hf/llava-onevision-qwen2-0.5b-ov-hf",
        ),
        FamilyInfo(
            "qwen2_5_vl",
            "Qwen2.5-VL",
            _BOTH,
            _GRID,
            "Its tower has no CLS token: methods that read one get received attention instead. tiny-qwen, which ships, "
            "is one.",
            "tiny-qwen",
        ),
        FamilyInfo(
            "qwen2_vl",
            "Qwen2-VL",
            _BOTH,
            _GRID,
            "Its tower has no CLS token: methods that read one get received attention instead.",
            "Qwen/Qwen2-VL-2B-Instruct",
        ),
        FamilyInfo(
            "qwen3_vl",
            "Qwen3-VL",
            _BOTH,
            _GRID,
            "Its tower has no CLS token: methods that read one get received attention instead. Features that it adds "
            "to visual tokens in early decoder layers (DeepStack) leave with them.",
            "Qwen/Qwen3-VL-2B-Instruct",
        ),
    )
}


def family_infos() -> list[FamilyInfo]:
    """All families, by model type; those of a user's own have their adapter's first line for a title."""
    if "vtc.models.registry" not in sys.modules:  # nobody can have added one
        return [*SHIPPED.values()]
    from vtc.models.registry import list_families

    return [SHIPPED.get(model_type) or _own(model_type) for model_type in list_families()]


def _own(model_type: str) -> FamilyInfo:
    from vtc.models.registry import adapter_of

    adapter = type(adapter_of(model_type))
    title = (adapter.__dict__.get("__doc__") or adapter.__name__).strip().split("\n")[0]
    return FamilyInfo(model_type, title, (), "as its adapter says")
