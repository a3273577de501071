"""Random-weight models of the families that vLLM serves, saved to folders with real processors, as vLLM takes them.

Their language models' heads are 32 wide: vLLM's attention on a CPU has no narrower ones.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoConfig, AutoModelForImageTextToText

from tests.families import FAMILIES, PINPOINTS
from tests.processors import processor_of

HEAD = 32
TEXT: dict[str, Any] = dict(
    hidden_size=2 * HEAD,
    intermediate_size=96,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=HEAD,
    max_position_embeddings=4096,
)
SECTIONS = [6, 5, 5]  # of (t, h, w) positions, half a head together
LARGE = [96, 96]  # a picture of 4 x 4 crops: OneVision scales it down
MARKS = {
    "<{{ c['type'] }}>": "<|{{ c['type'] }}_pad|>",  # in the chat template
    "<image>": "<|image_pad|>",
    "<video>": "<|video_pad|>",
    "<start>": "<|vision_start|>",
    "<end>": "<|vision_end|>",
}
#: (width, height) of pictures
SIZES = [(30, 40), (60, 24), (70, 70), (18, 64), (100, 90), (24, 24)]
#: a prompt each, with the pictures that it is about
PROMPTS: list[tuple[str, tuple[int, ...]]] = [
    ("what i s {0} ?", (0,)),
    ("w h o {0}", (1,)),
    ("{0} n o", (2,)),
    ("a {0} b {1} c", (3, 5)),
    ("{0} t h e n {1} ?", (4, 0)),
    ("n o t h i n g", ()),
    ("{0} {1} {2}", (1, 1, 2)),
    ("t h e e n d {0} .", (4,)),
]


def picture(number: int) -> Image.Image:
    """Noise of one of the SIZES, always the same."""
    width, height = SIZES[number]
    noise = torch.randint(0, 256, (height, width, 3), generator=torch.Generator().manual_seed(number))
    return Image.fromarray(noise.to(torch.uint8).numpy())


def save(family: str, folder: Path) -> Path:
    """Write a model of the family and its processor into `folder`."""
    given = FAMILIES[family].config().to_dict()
    text = given["text_config"] | TEXT
    if "rope_parameters" in text and "mrope_section" in (text["rope_parameters"] or {}):
        text["rope_parameters"] = text["rope_parameters"] | {"mrope_section": SECTIONS}
        if family == "qwen3_vl":
            text["rope_parameters"]["mrope_interleaved"] = True
        text["rope_scaling"] = text["rope_parameters"]
    given["text_config"] = text
    vision = given["vision_config"]
    for name in {"out_hidden_size"} & set(vision) | ({"hidden_size"} if family == "qwen2_vl" else set()):
        vision[name] = TEXT["hidden_size"]
    if family == "llava_onevision":
        given |= {"vision_aspect_ratio": "anyres_max_9", "image_grid_pinpoints": [*PINPOINTS, LARGE]}
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(AutoConfig.for_model(**given))
    for name, parameter in model.named_parameters():  # the default 0.02 makes all tokens look alike
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.15)
        elif name.endswith(("image_newline", "class_embedding", "cls_token")):
            torch.nn.init.normal_(parameter, std=0.5)
    model.save_pretrained(folder)
    processor = processor_of(family)
    if family == "llava_onevision":
        processor.vision_aspect_ratio = "anyres_max_9"
        processor.image_processor.image_grid_pinpoints = [*PINPOINTS, LARGE]
    processor.save_pretrained(folder)
    if family.startswith("qwen"):
        _rename(folder)
    if family == "qwen2_vl":  # as checkpoints of before transformers 5 have it
        config = json.loads((folder / "config.json").read_text())
        config["vision_config"]["model_type"] = family
        (folder / "config.json").write_text(json.dumps(config))
    return folder


def _rename(folder: Path) -> None:
    """Call tokens what they are called in published Qwen-VL: vLLM goes by that where it reads clips."""
    for file in [*folder.glob("*.json"), *folder.glob("*.jinja")]:
        text = file.read_text()
        for short, name in MARKS.items():
            text = text.replace(short, name)
        file.write_text(text)


def asked(family: str, number: int) -> tuple[str, list[Image.Image]]:
    """A prompt's text, with a placeholder for each picture, and the pictures."""
    text, pictures = PROMPTS[number]
    mark = MARKS["<start>"] + MARKS["<image>"] + MARKS["<end>"] if family.startswith("qwen") else "<image>"
    return f"<s> user : {text.format(*[mark] * len(pictures))} assistant :", [picture(one) for one in pictures]
