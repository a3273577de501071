"""A real processor of every family of `tests.listed`: its own image processor, and a tokenizer of single words.

Chat templates say in our words what those of the checkpoints say: who speaks, where pictures stand, what ends a turn.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import transformers as hf

from tests.listed_processor_parts import PACKED, PAGE, SQUARE, TILE, Chat, tokenizer_of
from tests.listed_processors_late import LATE
from tests.listed_processors_more import MORE
from tests.tiny_parts import END, IMAGE, START, VIDEO

FILM_START, FILM_END = 6, 7
#: four frames, of 40 and of 24 pixels a side at most
FRAMES: Any = tuple({**PACKED, "size": {"shortest_edge": 16 * 16, "longest_edge": 4 * n * n}} for n in (40, 24))
#: two frames of that size, as GLM's count them
PAIRS: Any = {**PACKED, "size": {"shortest_edge": 2 * 16 * 16, "longest_edge": 2 * 48 * 48}, "temporal_patch_size": 2}


def _llava(chat: Chat, size: int, patch: int, select: str, cls: int) -> Any:
    edge = {"height": size, "width": size}
    return hf.LlavaProcessor(
        hf.CLIPImageProcessor(size={"shortest_edge": size}, crop_size=edge),
        tokenizer_of({"<image>": IMAGE}),
        patch_size=patch,
        num_additional_image_tokens=cls,
        vision_feature_select_strategy=select,
        chat_template=chat.template,
    )


def _video_llava() -> Any:
    sizes: Any = {"size": {"shortest_edge": 24}, "crop_size": SQUARE}
    return hf.VideoLlavaProcessor(
        hf.VideoLlavaImageProcessor(**sizes),
        hf.VideoLlavaVideoProcessor(**sizes),
        tokenizer_of({"<image>": IMAGE, "<video>": VIDEO}),
        patch_size=4,
        vision_feature_select_strategy="default",
        chat_template=Chat("USER:", "ASSISTANT:", "<image>\n", " ", "<video>\n").template,
    )


def _pixtral(merge: int = 2) -> Any:
    return hf.PixtralProcessor(
        hf.PixtralImageProcessor(size={"longest_edge": 48}),
        tokenizer_of({"[IMG]": IMAGE, "[IMG_BREAK]": START, "[IMG_END]": END}),
        patch_size=4,
        spatial_merge_size=merge,
        chat_template=Chat("[INST]", "[/INST]", "[IMG]", "</s>").template,
    )


def _lighton() -> Any:
    names = {"image_token": "<|image_pad|>", "image_break_token": "<|pad_row|>", "image_end_token": "<|pad_end|>"}
    return hf.LightOnOcrProcessor(
        hf.PixtralImageProcessor(size={"longest_edge": 48}, patch_size={"height": 8, "width": 8}),
        tokenizer_of(dict(zip(names.values(), (IMAGE, START, END), strict=True)), names),
        patch_size=4,
        spatial_merge_size=2,
        chat_template=Chat("user\n", "assistant\n", "<|image_pad|>", "\n").template,
    )


def _glm(kind: Any, images: Any, videos: Any) -> Any:
    special = {"<|image|>": IMAGE, "<|begin_of_image|>": START, "<|end_of_image|>": END, "<|video|>": VIDEO}
    special |= {"<|begin_of_video|>": FILM_START, "<|end_of_video|>": FILM_END}
    image, film = (f"<|begin_of_{name}|><|{name}|><|end_of_{name}|>" for name in ("image", "video"))
    longer = {**PAIRS, "size": {"shortest_edge": 2 * 16 * 16, "longest_edge": 4 * 40 * 40}}
    return kind(
        images(**PAIRS),
        tokenizer_of(special),
        videos(**longer),
        chat_template=Chat("<|user|>\n", "<|assistant|>\n", image, video=film).template,
    )


def _glm4v() -> Any:
    return _glm(hf.Glm4vProcessor, hf.Glm4vImageProcessor, hf.Glm4vVideoProcessor)


def _glm46v() -> Any:
    return _glm(hf.Glm46VProcessor, hf.Glm46VImageProcessor, hf.Glm46VVideoProcessor)


def _ernie() -> Any:
    names = {"image_token": "<|IMAGE|>", "image_start_token": "<|IMAGE_START|>", "image_end_token": "<|IMAGE_END|>"}
    names |= {"video_token": "<|VIDEO|>", "video_start_token": "<|VIDEO_START|>", "video_end_token": "<|VIDEO_END|>"}
    ids = (IMAGE, START, END, VIDEO, FILM_START, FILM_END)
    image, film = (f"<|{name}_START|><|{name}|><|{name}_END|>" for name in ("IMAGE", "VIDEO"))
    return hf.Ernie4_5_VLMoeProcessor(
        hf.Ernie4_5_VLMoeImageProcessor(**PACKED),
        tokenizer_of(dict(zip(names.values(), ids, strict=True)), names),
        hf.Ernie4_5_VLMoeVideoProcessor(**PACKED, draw_on_frames=False),
        chat_template=Chat("User: ", "Assistant: ", image, "\n", film).template,
    )


def _paddle() -> Any:
    special = {"<|IMAGE|>": IMAGE, "<|IMAGE_START|>": START, "<|IMAGE_END|>": END}
    return hf.PaddleOCRVLProcessor(
        hf.PaddleOCRVLImageProcessor(**PACKED),
        tokenizer_of(special, {"image_token": "<|IMAGE|>"}),
        chat_template=Chat("User: ", "Assistant: ", "<|IMAGE_START|><|IMAGE|><|IMAGE_END|>", "\n").template,
    )


def _video_llama() -> Any:
    names = {"image_token": "<image>", "video_token": "<video>"}
    return hf.VideoLlama3Processor(
        hf.VideoLlama3ImageProcessor(**PACKED),
        tokenizer_of({"<image>": IMAGE, "<video>": VIDEO}, names),
        hf.VideoLlama3VideoProcessor(**FRAMES[0]),
        chat_template=Chat("user\n", "assistant\n", "<image>\n", "\n", "<video>\n").template,
    )


def _qwen() -> Any:
    names = {"image_token": "<image>", "video_token": "<video>"}
    names |= {"vision_start_token": "<start>", "vision_end_token": "<end>"}
    frames: Any = {**PACKED, "size": {"shortest_edge": 64, "longest_edge": 4 * 24 * 24}, "temporal_patch_size": 2}
    return hf.Qwen3VLProcessor(
        hf.Qwen2VLImageProcessor(**PACKED, temporal_patch_size=2),
        tokenizer_of(dict(zip(names.values(), (IMAGE, VIDEO, START, END), strict=True)), names),
        hf.Qwen3VLVideoProcessor(**frames),
        chat_template=Chat("user\n", "assistant\n", "<start><image><end>", "\n", "<start><video><end>").template,
    )


def _ovis() -> Any:
    names = ("<IMG_START>", "<IMG_GRID>", "<IMG_COL>", "<IMG_ROW>", "<IMG_END>")
    special = {"<IMG_ATOM>": IMAGE, **{name: 90 + i for i, name in enumerate(names)}, "<image>": START}
    return hf.Ovis2Processor(
        hf.Ovis2ImageProcessor(size=SQUARE, crop_to_patches=True, max_patches=4),
        tokenizer_of(special),
        image_seq_length=36,
        chat_template=Chat("user\n", "assistant\n", "<image>\n", "\n").template,
    )


def _got() -> Any:
    made = hf.GotOcr2Processor(
        hf.GotOcr2ImageProcessor(size=PAGE), tokenizer_of({"<imgpad>": IMAGE, "<img>": START, "</img>": END})
    )
    made.num_image_tokens = 16
    return made


def _qianfan() -> Any:
    names = {"start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>"}
    return hf.QianfanOCRProcessor(
        hf.GotOcr2ImageProcessor(size=TILE, min_patches=1, max_patches=4),
        tokenizer_of(dict(zip(names.values(), (START, END, IMAGE), strict=True)), names),
        image_seq_length=16,
        chat_template=Chat("user\n", "assistant\n", "<image>\n", "\n").template,
    )


def _janus() -> Any:
    names = {"image_token": "<image>", "boi_token": "<begin_of_image>", "eoi_token": "<end_of_image>"}
    return hf.JanusProcessor(
        hf.JanusImageProcessor(size=SQUARE),
        tokenizer_of(dict(zip(names.values(), (IMAGE, START, END), strict=True)), names),
        num_image_tokens=36,
        chat_template=Chat("<|User|>: ", "<|Assistant|>: ", "<image>\n", "\n\n").template,
    )


def _deepseek() -> Any:
    return hf.DeepseekVLProcessor(
        hf.DeepseekVLImageProcessor(size=SQUARE),
        tokenizer_of({"<image>": IMAGE}, {"image_token": "<image>"}),
        num_image_tokens=36,
        chat_template=Chat("User: ", "Assistant: ", "<image>", "\n\n").template,
    )


def _idefics(kind: str) -> Any:
    crops = [f"<row_{r}_col_{c}>" for r in (1, 2) for c in (1, 2)]
    special = {"<image>": IMAGE, "<fake_token_around_image>": START, "<global-img>": END, "<end_of_utterance>": 6}
    tokenizer = tokenizer_of({**special, **{word: 90 + i for i, word in enumerate(crops)}})
    sizes: Any = {"size": {"longest_edge": 64}, "max_image_size": {"longest_edge": 32}}
    chat = Chat("User:", "Assistant:", "<image>", "<end_of_utterance>\n").template
    if kind == "idefics3":
        return hf.Idefics3Processor(hf.Idefics3ImageProcessor(**sizes), tokenizer, image_seq_len=16, chat_template=chat)
    module: Any = import_module("transformers.models.smolvlm.processing_smolvlm")
    if module.num2words is None:  # it writes out how many frames a video has
        module.num2words = str
    return hf.SmolVLMProcessor(
        hf.SmolVLMImageProcessor(**sizes),
        tokenizer,
        hf.SmolVLMVideoProcessor(**sizes),
        image_seq_len=16,
        chat_template=chat,
    )


def _aria() -> Any:
    made: Any = hf.AriaProcessor(
        hf.AriaImageProcessor(max_image_size=490),
        tokenizer_of({"<|img|>": IMAGE, "<fim_prefix>": START, "<fim_suffix>": END}, {"image_token": "<|img|>"}),
        size_conversion={490: 20},
        chat_template=Chat("user\n", "assistant\n", "<fim_prefix><|img|><fim_suffix>", "\n").template,
    )
    made.images_kwargs = {"max_image_size": 490}
    return made


def _emu() -> Any:
    names = {"image_token": "<image>", "boi_token": "<|image start|>", "eoi_token": "<|image end|>"}
    names |= {"image_wrapper_token": "<|image token|>", "eof_token": "<|extra_201|>"}
    ids = (IMAGE, START, END, 6, 7)
    made = hf.Emu3Processor(
        hf.Emu3ImageProcessor(min_pixels=16 * 16, max_pixels=24 * 24, spatial_factor=2),
        tokenizer_of(dict(zip(names.values(), ids, strict=True)), names, bos_token="<s>"),
        chat_template=Chat("USER: ", "ASSISTANT: ", "<image>").template,
    )
    made.downsample_ratio = 2  # that of the tiny model
    return made


def _perception() -> Any:
    names = {"image_token": "<|image|>", "video_token": "<|video|>"}
    return hf.PerceptionLMProcessor(
        hf.PerceptionLMVideoProcessor(size=TILE),
        hf.PerceptionLMImageProcessor(tile_size=32, max_num_tiles=4),
        tokenizer_of({"<|image|>": IMAGE, "<|video|>": VIDEO}, names),
        patch_size=4,
        pooling_ratio=2,
        chat_template=Chat("user\n\n", "assistant\n\n", "<|image|>", "<|eot|>", "<|video|>").template,
    )


def _glmga() -> Any:
    return _glm(hf.Glm46VProcessor, hf.GlmgaImageProcessor, hf.GlmgaVideoProcessor)


def _chart() -> Any:
    return hf.PPChart2TableProcessor(
        hf.PPChart2TableImageProcessor(size=PAGE),
        tokenizer_of({"<imgpad>": IMAGE, "<img>": START, "</img>": END}),
        chat_template=Chat("user\n", "assistant\n", f"<img>{'<imgpad>' * 16}</img>", "\n").template,
    )


def _edge() -> Any:
    names = {"image_token": "<|image_pad|>", "video_token": "<|video_pad|>"}
    names |= {"vision_start_token": "<|vision_start|>", "vision_end_token": "<|vision_end|>"}
    image, film = (f"<|vision_start|><|{name}_pad|><|vision_end|>" for name in ("image", "video"))
    return hf.Cosmos3EdgeProcessor(
        hf.Cosmos3EdgeImageProcessor(**PACKED),
        tokenizer_of(dict(zip(names.values(), (IMAGE, VIDEO, START, END), strict=True)), names),
        hf.Cosmos3EdgeVideoProcessor(**FRAMES[1]),
        chat_template=Chat("user\n", "assistant\n", image, "\n", film).template,
    )


def _clova() -> Any:
    names = {"image_token": "<|IMAGE_PAD|>", "video_token": "<|VIDEO_PAD|>"}
    sizes: Any = {**PACKED, "temporal_patch_size": 2}
    return hf.HyperCLOVAXVisionV2Processor(
        hf.Qwen2VLImageProcessor(**sizes),
        tokenizer_of({"<|IMAGE_PAD|>": IMAGE, "<|VIDEO_PAD|>": VIDEO}, names),
        hf.Qwen2VLVideoProcessor(**sizes),
        chat_template=Chat("user\n", "assistant\n", "<|IMAGE_PAD|>", "\n", "<|VIDEO_PAD|>").template,
    )


def _docling() -> Any:
    crops = [f"<row_{r}_col_{c}>" for r in (1, 2) for c in (1, 2)]
    special = {"<image>": IMAGE, "<fake_token_around_image>": START, "<global-img>": END}
    return hf.GraniteDoclingProcessor(
        hf.GraniteDoclingImageProcessor(size=TILE, max_patches=4),
        tokenizer_of({**special, **{word: 90 + i for i, word in enumerate(crops)}}, {"image_token": "<image>"}),
        image_seq_len=16,
        chat_template=Chat("user", "assistant", "<image>", "\n").template,
    )


def _omni(kind: Any, videos: Any) -> Any:
    names = {"image_token": "<|IMAGE|>", "video_token": "<|VIDEO|>", "audio_token": "<|AUDIO|>"}
    names |= {"vision_bos_token": "<|vision_bos|>", "vision_eos_token": "<|vision_eos|>"}
    names |= {"audio_bos_token": "<|audio_bos|>", "audio_eos_token": "<|audio_eos|>"}
    ids = (IMAGE, VIDEO, 8, START, END, 9, 6)
    image, film = (f"<|vision_bos|><|{name}|><|vision_eos|>" for name in ("IMAGE", "VIDEO"))
    sizes: Any = {**PACKED, "temporal_patch_size": 2}
    made = kind(
        hf.Qwen2VLImageProcessor(**sizes),
        videos(**sizes),
        hf.WhisperFeatureExtractor(),
        tokenizer_of(dict(zip(names.values(), ids, strict=True)), names),
        chat_template=Chat("user\n", "assistant\n", image, "\n", film).template,
    )
    made.videos_kwargs = {"size": PACKED["size"]}
    return made


def _kimi() -> Any:
    names = {"image_token": "<|media_pad|>", "video_token": "<|kimi_k25_video_placeholder|>"}
    special = {"<|media_pad|>": IMAGE, "<|kimi_k25_video_placeholder|>": VIDEO}
    special |= {"<|media_begin|>": START, "<|media_end|>": END, "<|media_content|>": 6}
    image = "<|media_begin|>image<|media_content|><|media_pad|><|media_end|>"
    sizes: Any = {"size": {"max_height": 48, "max_width": 48}, "patch_size": 4, "merge_size": 2}
    return hf.Kimi_K25Processor(
        hf.Kimi_K25ImageProcessor(**sizes),
        tokenizer_of(special, names),
        hf.Kimi_K25VideoProcessor(**sizes),
        chat_template=Chat("user", "assistant", image, "<|im_end|>", "<|kimi_k25_video_placeholder|>").template,
    )


def _hunyuan() -> Any:
    names = {"image_token": "<image>", "image_start_token": "<im_start>", "image_end_token": "<im_end>"}
    return hf.HunYuanVLProcessor(
        hf.HunYuanVLImageProcessor(**PACKED),
        tokenizer_of(dict(zip(names.values(), (IMAGE, START, END), strict=True)), names),
        chat_template=Chat("user", "assistant", "<im_start><image><im_end>").template,
    )


def _hybrid() -> Any:
    return hf.DeepseekVLHybridProcessor(
        hf.DeepseekVLHybridImageProcessor(size=SQUARE, high_res_size=PAGE),
        tokenizer_of({"<image>": IMAGE}, {"image_token": "<image>"}),
        num_image_tokens=36,
        chat_template=Chat("User: ", "Assistant: ", "<image>", "\n\n").template,
    )


def _idefics2() -> Any:
    names = {"image_token": "<image>", "image_boundary_token": "<fake_token_around_image>"}
    return hf.Idefics2Processor(
        hf.Idefics2ImageProcessor(size={"shortest_edge": 16, "longest_edge": 32}),
        tokenizer_of({"<image>": IMAGE, "<fake_token_around_image>": START, "<end_of_utterance>": END}, names),
        image_seq_len=16,
        chat_template=Chat("User:", "Assistant:", "<image>", "<end_of_utterance>\n").template,
    )


def _ocr2() -> Any:
    return hf.DeepseekOcr2Processor(
        hf.DeepseekOcr2ImageProcessor(size={"height": 768, "width": 768}),
        tokenizer_of({"<image>": IMAGE}),
        patch_size=64,
        downsample_ratio=1,
        chat_template=Chat("User: ", "Assistant: ", "<image>\n").template,
    )


LISTED_PROCESSORS: dict[str, Callable[[], Any]] = {
    "vipllava": lambda: _llava(Chat("###Human: ", "###Assistant: ", "<image>\n"), 24, 4, "default", 1),
    "fast_vlm": lambda: _llava(Chat("user\n", "assistant\n", "<image>\n", "\n"), 256, 64, "full", 0),
    "video_llava": _video_llava,
    "mistral3": _pixtral,
    "lighton_ocr": _lighton,
    "glm4v": _glm4v,
    "glm4v_moe": _glm4v,
    "glm46v": _glm46v,
    "glm_ocr": _glm46v,
    "ernie4_5_vl_moe": _ernie,
    "paddleocr_vl": _paddle,
    "video_llama_3": _video_llama,
    "qwen3_vl_moe": _qwen,
    "ovis2": _ovis,
    "got_ocr2": _got,
    "qianfan_ocr": _qianfan,
    "janus": _janus,
    "deepseek_vl": _deepseek,
    "idefics3": lambda: _idefics("idefics3"),
    "smolvlm": lambda: _idefics("smolvlm"),
    "aria": _aria,
    "emu3": _emu,
    "perception_lm": _perception,
    "qwen3_5": _qwen,
    "qwen3_5_moe": _qwen,
    "cosmos3_omni": _qwen,
    "cosmos3_edge": _edge,
    "glmga": _glmga,
    "pp_chart2table": _chart,
    "hyperclovax_vision_v2": _clova,
    "granite_docling": _docling,
    "qwen2_5_omni_thinker": lambda: _omni(hf.Qwen2_5OmniProcessor, hf.Qwen2VLVideoProcessor),
    "qwen3_omni_moe_thinker": lambda: _omni(hf.Qwen3OmniMoeProcessor, hf.Qwen2VLVideoProcessor),
    "kimi_k25": _kimi,
    "hunyuan_vl": _hunyuan,
    "deepseek_ocr2": _ocr2,
    "deepseek_vl_hybrid": _hybrid,
    "idefics2": _idefics2,
    **MORE,
    **LATE,
}
