"""What the families that ship are, in words: a table that needs no torch, for lists and help.

`list_families()` says which have an adapter, those of a user's own included; the facts that models run by are the
adapters'.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

#: where a token may leave, in the order in which it meets them
EVERY_STAGE = ("pixels", "encoder", "input", "layer", "cache")


@dataclass(frozen=True)
class FamilyInfo:
    """A family of models.

    Attributes:
        model_type: `config.model_type` of its checkpoints. title: what people call it.
        modality: "image", "video"; () = not known. tokens: how a picture becomes visual tokens.
        notes: what else a user should know, in sentences. checkpoint: one on the Hub, or one that ships.
        stages: at which methods run on it. read: whether methods can read its tower's attention and keys.
        grid: whether it is known where in the picture its tokens lie. listed: whether the default family carries it.
    """

    model_type: str
    title: str
    modality: tuple[str, ...]
    tokens: str
    notes: str = ""
    checkpoint: str = ""
    stages: tuple[str, ...] = EVERY_STAGE
    read: bool = True
    grid: bool = True
    listed: bool = False


_BOTH = ("image", "video")
_CROPS = 'A picture is several crops to the tower: with scope="crop" each of them chooses within its share.'
_GRID = "a grid of its own size"
_WRITTEN = (
    FamilyInfo(
        "internvl",
        "InternVL",
        _BOTH,
        "square tiles, a thumbnail",
        f"{_CROPS} A video is a row of pictures: wrap with processor=processor, which tells what belongs together.",
        "OpenGVLab/InternVL3-1B-hf",
    ),
    FamilyInfo("llava", "LLaVA-1.5", ("image",), "one square crop", "tiny-llava, which ships, is one.", "tiny-llava"),
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
        stages=("encoder", "input", "layer", "cache"),
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


_PACKED, _INSIDE = "a grid of its own size", ("input", "layer", "cache")
_SQUARE, _TILES = "one square crop", "square tiles"
_NO_CLS = "Its tower has no CLS token: methods that read one get received attention instead."
_BESIDE = "Pictures that follow each other without a word between them are one to a budget."


def _carried(
    model_type: str,
    title: str,
    tokens: str,
    notes: str = "",
    checkpoint: str = "",
    video: bool = False,
    stages: tuple[str, ...] = _INSIDE,
    read: bool = False,
    grid: bool = True,
) -> FamilyInfo:
    """A family that the default one carries."""
    modality = _BOTH if video else ("image",)
    return FamilyInfo(model_type, title, modality, tokens, notes, checkpoint, stages, read, grid, True)


_WINDOW = (
    "Some layers attend within a window, which counts the tokens of the conversation, dropped ones, too; cache methods "
    "act in the others."
)
_LISTED = (
    _carried(
        "aria",
        "Aria",
        "learned queries",
        "A token lies nowhere in the picture: methods that work on the grid refuse it.",
        "rhymes-ai/Aria",
        stages=("encoder", *_INSIDE),
        grid=False,
    ),
    _carried(
        "deepseek_vl",
        "DeepSeek-VL",
        _SQUARE,
        _NO_CLS,
        "deepseek-community/deepseek-vl-1.3b-chat",
        stages=EVERY_STAGE,
        read=True,
    ),
    _carried(
        "aya_vision",
        "Aya Vision",
        _TILES,
        f"Tiles have words between them: each is a picture with a budget of its own. {_NO_CLS} {_WINDOW}",
        "CohereLabs/aya-vision-8b",
        stages=EVERY_STAGE,
        read=True,
    ),
    _carried(
        "cohere2_vision",
        "Command A Vision",
        _TILES,
        f"Tiles have words between them: each is a picture with a budget of its own. {_NO_CLS} {_WINDOW}",
        "CohereLabs/command-a-vision-07-2025",
        stages=EVERY_STAGE,
        read=True,
    ),
    _carried(
        "gemma3",
        "Gemma 3",
        _SQUARE,
        f"A picture's tokens see each other. {_NO_CLS} {_WINDOW}",
        "google/gemma-3-4b-it",
        stages=EVERY_STAGE,
        read=True,
    ),
    _carried(
        "gemma3n",
        "Gemma 3n",
        _SQUARE,
        f"Its tower is convolutional; methods between decoder layers refuse it. {_WINDOW}",
        "google/gemma-3n-E2B-it",
        stages=("input", "cache"),
    ),
    _carried(
        "gemma4",
        "Gemma 4",
        _PACKED,
        f"In larger models a picture's tokens see each other. {_WINDOW}",
        "google/gemma-4-E2B-it",
        video=True,
    ),
    _carried(
        "paligemma",
        "PaliGemma",
        _SQUARE,
        f"The picture and the prompt see each other. {_NO_CLS}",
        "google/paligemma2-3b-mix-224",
        stages=EVERY_STAGE,
        read=True,
    ),
    _carried("emu3", "Emu3", "words of a codebook", checkpoint="Emu3-community/Emu3-Chat-hf"),
    _carried(
        "ernie4_5_vl_moe",
        "ERNIE-4.5-VL",
        _PACKED,
        f"{_NO_CLS} Two frames of a video become one.",
        "baidu/ERNIE-4.5-VL-28B-A3B-PT",
        video=True,
        stages=("encoder", *_INSIDE),
        read=True,
    ),
    _carried("exaone4_5", "EXAONE 4.5", _PACKED, checkpoint="LGAI-EXAONE/EXAONE-4.5-33B", video=True),
    _carried(
        "fast_vlm",
        "FastVLM",
        _SQUARE,
        f"Its tower is convolutional but for its last stages, the last of which is read. {_NO_CLS}",
        "KamilaMila/FastVLM-7B",
        read=True,
    ),
    _carried(
        "glm46v",
        "GLM-4.6V",
        _PACKED,
        _NO_CLS,
        checkpoint="zai-org/GLM-4.6V-Flash",
        video=True,
        stages=EVERY_STAGE,
        read=True,
    ),
    _carried(
        "glm4v",
        "GLM-4.1V",
        _PACKED,
        _NO_CLS,
        checkpoint="zai-org/GLM-4.1V-9B-Thinking",
        video=True,
        stages=EVERY_STAGE,
        read=True,
    ),
    _carried(
        "glm4v_moe",
        "GLM-4.5V",
        _PACKED,
        _NO_CLS,
        checkpoint="zai-org/GLM-4.5V",
        video=True,
        stages=EVERY_STAGE,
        read=True,
    ),
    _carried("glm_ocr", "GLM-OCR", _PACKED, _NO_CLS, checkpoint="zai-org/GLM-OCR", video=True, read=True),
    _carried("got_ocr2", "GOT-OCR 2", _TILES, f"{_BESIDE} {_NO_CLS}", "stepfun-ai/GOT-OCR-2.0-hf", read=True),
    _carried(
        "idefics3",
        "Idefics 3",
        _TILES,
        f"{_NO_CLS} Crops stand apart, between words: each is a picture with a budget of its own.",
        "HuggingFaceM4/Idefics3-8B-Llama3",
        stages=EVERY_STAGE,
        read=True,
    ),
    _carried(
        "smolvlm",
        "SmolVLM",
        _TILES,
        f"{_NO_CLS} Crops stand apart, between words: each is a picture with a budget of its own.",
        "HuggingFaceTB/SmolVLM2-2.2B-Instruct",
        stages=EVERY_STAGE,
        read=True,
    ),
    _carried(
        "janus",
        "Janus",
        _SQUARE,
        f"{_NO_CLS} Pictures that it draws are not compressed.",
        "deepseek-community/Janus-Pro-1B",
        stages=EVERY_STAGE,
        read=True,
    ),
    _carried("lighton_ocr", "LightOnOCR", _PACKED, _NO_CLS, "lightonai/LightOnOCR-1B-1025", read=True),
    _carried(
        "mistral3", "Mistral Small 3", _PACKED, _NO_CLS, "mistralai/Mistral-Small-3.1-24B-Instruct-2503", read=True
    ),
    _carried(
        "ovis2",
        "Ovis 2",
        _TILES,
        f"{_NO_CLS} Tiles have indicator tokens between them: each is a picture with a budget of its own.",
        "thisisiron/Ovis2-1B-hf",
        stages=("encoder", *_INSIDE),
        read=True,
    ),
    _carried("paddleocr_vl", "PaddleOCR-VL", _PACKED, _NO_CLS, checkpoint="PaddlePaddle/PaddleOCR-VL", read=True),
    _carried(
        "perception_lm",
        "PerceptionLM",
        _TILES,
        _BESIDE,
        "facebook/Perception-LM-1B",
        video=True,
        stages=("encoder", *_INSIDE),
        read=True,
    ),
    _carried(
        "qianfan_ocr",
        "Qianfan-OCR",
        _TILES,
        checkpoint="baidu/Qianfan-OCR",
        stages=("encoder", *_INSIDE),
        read=True,
    ),
    _carried(
        "qwen3_vl_moe",
        "Qwen3-VL, experts",
        _PACKED,
        _NO_CLS,
        "Qwen/Qwen3-VL-30B-A3B-Instruct",
        video=True,
        stages=EVERY_STAGE,
        read=True,
    ),
    _carried(
        "video_llama_3",
        "VideoLLaMA 3",
        _PACKED,
        f"{_NO_CLS} Videos of which its processor leaves tokens out lie on no grid: methods that read the tower refuse "
        "these.",
        "lkhl/VideoLLaMA3-2B-Image-HF",
        video=True,
        read=True,
    ),
    _carried(
        "video_llava",
        "Video-LLaVA",
        _SQUARE,
        "Frames of a video bring their CLS token along, and lie on no grid.",
        "LanguageBind/Video-LLaVA-7B-hf",
        video=True,
        stages=EVERY_STAGE,
        read=True,
    ),
    _carried("vipllava", "VIP-LLaVA", _SQUARE, checkpoint="llava-hf/vip-llava-7b-hf", stages=EVERY_STAGE, read=True),
)
_RECURRENT = "Methods of the KV cache act in the layers that attend; the others keep a state of one size."
_HYBRID = (
    _carried(
        "lfm2_vl",
        "LFM2-VL",
        _PACKED,
        f"Convolutions in most layers. {_RECURRENT} Tiles stand apart, between words: each is a picture with a budget "
        "of its own.",
        "LiquidAI/LFM2-VL-1.6B",
        read=True,
    ),
    _carried(
        "minicpmv4_6",
        "MiniCPM-V 4.6",
        _PACKED,
        f"Linear attention in three layers of four. {_RECURRENT} Slices of a picture stand apart, between words: each "
        "is a picture with a budget of its own. Frames of a video that are cut into slices lie on no grid.",
        "openbmb/MiniCPM-V-4.6",
        video=True,
    ),
    _carried(
        "nemotron_h_omni",
        "Nemotron 3 Omni",
        _PACKED,
        f"State spaces, experts and a few layers that attend, without positions. {_RECURRENT} Two frames of a video "
        "become one.",
        "nvidia/Nemotron-3-Nano-Omni-30B-A3B-Reasoning-BF16",
        video=True,
    ),
    _carried(
        "qwen3_5",
        "Qwen3.5",
        _PACKED,
        f"Linear attention in three layers of four. {_RECURRENT} {_NO_CLS}",
        "Qwen/Qwen3.5-9B",
        video=True,
        stages=EVERY_STAGE,
        read=True,
    ),
    _carried(
        "qwen3_5_moe",
        "Qwen3.5, experts",
        _PACKED,
        f"Linear attention in three layers of four. {_RECURRENT} {_NO_CLS}",
        "Qwen/Qwen3.5-35B-A3B",
        video=True,
        stages=EVERY_STAGE,
        read=True,
    ),
)
_HEARS = (
    f"{_NO_CLS} Of the whole model it is the part .thinker, which is what to wrap; sounds stay what they are, "
    "between the pictures."
)
_MORE = (
    _carried("cosmos3_edge", "Cosmos 3 Edge", _PACKED, _NO_CLS, "nvidia/Cosmos3-Edge", video=True, read=True),
    _carried(
        "cosmos3_omni",
        "Cosmos 3",
        _PACKED,
        _NO_CLS,
        "nvidia/Cosmos3-Nano",
        video=True,
        stages=EVERY_STAGE,
        read=True,
    ),
    _carried(
        "deepseek_ocr2",
        "DeepSeek-OCR 2",
        "learned queries",
        "A token lies nowhere in the picture: methods that work on the grid refuse it.",
        "deepseek-community/DeepSeek-OCR-2",
        grid=False,
    ),
    _carried(
        "deepseek_vl_hybrid",
        "DeepSeek-VL 7B",
        _SQUARE,
        "SigLIP sees a picture, and SAM a larger one: a token is made of what both say of its place.",
        "deepseek-community/deepseek-vl-7b-chat",
    ),
    _carried("glmga", "GLM (glmga)", _PACKED, _NO_CLS, video=True, stages=EVERY_STAGE, read=True),
    _carried(
        "granite_docling",
        "Granite Docling",
        _TILES,
        f"{_NO_CLS} Crops stand apart, between words: each is a picture with a budget of its own.",
        "ibm-granite/granite-for-docling-500m",
        read=True,
    ),
    _carried(
        "hunyuan_vl",
        "HunyuanOCR",
        _PACKED,
        f"{_NO_CLS} Tokens have four positions: place, column, line, number of the picture.",
        "tencent/HunyuanOCR",
        read=True,
    ),
    _carried(
        "hyperclovax_vision_v2",
        "HyperCLOVA X",
        _PACKED,
        _NO_CLS,
        "naver-hyperclovax/HyperCLOVAX-SEED-Think-32B",
        video=True,
        stages=EVERY_STAGE,
        read=True,
    ),
    _carried(
        "kimi_k25",
        "Kimi K2.5",
        _PACKED,
        f"{_NO_CLS} The frames of a video, or of a part of one, become one; its KV cache has a latent for all heads.",
        "moonshotai/Kimi-K2.6",
        video=True,
        read=True,
    ),
    _carried(
        "idefics2",
        "Idefics 2",
        "learned queries",
        "A token lies nowhere in the picture: methods that work on the grid refuse it.",
        "HuggingFaceM4/idefics2-8b",
        stages=("encoder", *_INSIDE),
        grid=False,
    ),
    _carried("pp_chart2table", "PP-Chart2Table", _TILES, _NO_CLS, "PaddlePaddle/PP-Chart2Table_safetensors", read=True),
    _carried(
        "qwen2_5_omni_thinker",
        "Qwen2.5-Omni",
        _PACKED,
        _HEARS,
        "Qwen/Qwen2.5-Omni-7B",
        video=True,
        read=True,
    ),
    _carried(
        "qwen3_omni_moe_thinker",
        "Qwen3-Omni",
        _PACKED,
        _HEARS,
        "Qwen/Qwen3-Omni-30B-A3B-Instruct",
        video=True,
        stages=EVERY_STAGE,
        read=True,
    ),
)
_LATE = (
    _carried(
        "granite4_vision",
        "Granite 4 Vision",
        "crops, a thumbnail",
        f"{_CROPS} {_NO_CLS} Features that it adds to visual tokens before decoder layers leave with them.",
        "ibm-granite/granite-vision-4.1-4b",
        stages=("encoder", *_INSIDE),
        read=True,
    ),
    _carried(
        "step3p7",
        "Step 3.7",
        "square tiles, a thumbnail",
        f"Tiles have words between them, and share a picture's budget. {_WINDOW}",
        "stepfun-ai/Step-3.7-Flash",
    ),
    _carried(
        "molmo2",
        "Molmo 2",
        "crops, a thumbnail",
        "All that is visual of a prompt sees itself, one picture the other, and frames of a video each other.",
        "allenai/Molmo2-8B",
        video=True,
    ),
)
_CROSS = (
    _carried(
        "mllama",
        "Llama 3.2 Vision",
        _TILES,
        "Visual tokens stand in a memory beside the row, which some decoder layers attend to: methods act on it before "
        "the language model, and keys and values are made of what is left. Each tile has a CLS token in front; "
        "room for tiles that a picture does not fill is no visual token, and leaves with the first one that does.",
        "meta-llama/Llama-3.2-11B-Vision-Instruct",
        stages=("input",),
    ),
)
_ALL = (*_WRITTEN, *_LISTED, *_HYBRID, *_MORE, *_LATE, *_CROSS)
SHIPPED = {info.model_type: info for info in sorted(_ALL, key=lambda info: info.model_type)}


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
