"""Prompts hold one placeholder per picture, and `seen` shows what a processor lets through."""

from typing import Any, cast

import numpy as np
import pytest
from PIL import Image
from transformers import CLIPImageProcessor, LlavaNextImageProcessor, Qwen2VLImageProcessor
from transformers.models.llava.image_processing_llava import LlavaImageProcessor

from vtc.media.prompts import as_named, picture_inputs, placeholder, prompt, seen, visual_ids

SIZES = [(336, 336), (400, 300), (90, 700), (37, 41), (1, 1)]
CLIP = {"size": {"shortest_edge": 336}, "crop_size": {"height": 336, "width": 336}}


class Processor:
    """As much of a transformers processor as a prompt needs."""

    image_token = "<img>"
    chat_template = None

    def __init__(self, images=None, rendered=None):
        self.image_processor = images
        if rendered is not None:
            self.chat_template = rendered

    def apply_chat_template(self, messages, add_generation_prompt):
        return self.chat_template


def smooth(size):
    """A picture that resizes alike under any filter: red grows to the right, green downwards."""
    x, y = np.meshgrid(np.linspace(0, 255, size[0]), np.linspace(0, 255, size[1]))
    return Image.fromarray(np.stack([x, y, 0 * x], axis=-1).astype(np.uint8))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("make", [CLIPImageProcessor, lambda **kw: LlavaImageProcessor(do_pad=True, **kw)])
def test_seen_is_what_the_processor_lets_through(make, size):
    images, picture = make(do_normalize=False, do_rescale=False, **CLIP), smooth(size)
    through = images(picture, return_tensors="np")["pixel_values"][0].transpose(1, 2, 0).astype(float)  # [336, 336, 3]
    shown = seen(picture, Processor(images)).resize((336, 336), Image.Resampling.BICUBIC)
    assert np.abs(through - np.asarray(shown, dtype=float)).mean() < 4


@pytest.mark.parametrize("make", [LlavaNextImageProcessor, Qwen2VLImageProcessor])
def test_any_resolution_models_see_everything(make):
    picture = smooth((400, 300))
    assert seen(picture, Processor(make())) is picture


def test_prompt_without_a_template():
    assert prompt(Processor(), "What is it?", 2) == "USER: <img>\n<img>\nWhat is it? ASSISTANT:"


def test_prompt_of_the_shipped_model():
    import vtc

    _, processor = vtc.load("tiny-llava")
    assert prompt(processor, "What is it?") == "USER: <image>\nWhat is it? ASSISTANT:"


@pytest.mark.parametrize(
    ("question", "rendered", "said"),
    [
        ("  ", None, "empty"),
        ("What is <img>?", None, "placeholder '<img>'"),
        ("What is <image>?", None, "placeholder '<image>'"),
        ("What is it?", "USER: What is it?", "room for 0 pictures and 1 were given"),
    ],
)
def test_prompts_that_do_not_fit_the_pictures(question, rendered, said):
    with pytest.raises(ValueError, match=said):
        prompt(Processor(rendered=rendered), question)


def test_a_prompt_whose_placeholder_nobody_names():
    processor: Any = Processor()
    processor.image_token = None
    with pytest.raises(ValueError, match="Processor names no placeholder of a picture, and has no chat template"):
        prompt(processor, "What is it?")
    assert prompt(processor, "What is it?", 0) == "USER: What is it? ASSISTANT:"


def test_a_placeholder_before_the_processor_is_another_than_behind_it():
    processor: Any = Processor()
    processor.image_placeholder_token = "<image 1>"
    assert placeholder(processor) == "<image 1>"
    assert "<image 1>" in prompt(processor, "What is it?")


def test_pictures_as_a_processor_takes_them():
    class Gemma3Processor(Processor):
        pass

    one, two = smooth((4, 4)), smooth((8, 4))
    plain, idefics, got = (cast(Any, Processor()) for _ in range(3))
    idefics.fake_image_token, got.multi_page = "<fake>", False
    rows = [[one, two], [], [one]]
    assert picture_inputs(plain, rows) == {"images": [[one, two], [one]]}
    assert picture_inputs(idefics, rows) == picture_inputs(Gemma3Processor(), rows) == {"images": rows}
    assert picture_inputs(got, rows) == {"images": [one, two, one]}
    assert picture_inputs(plain, [[], []]) == {}


def test_what_counts_as_a_visual_token():
    """Named ones; else what the chat template writes for a picture, of which it writes all."""

    class Tokenizer:
        def convert_tokens_to_ids(self, names):
            return [len(name) for name in names]

        def __call__(self, text):
            return {"input_ids": [9 if word == "<pad>" else 1 for word in text.split()]}

    named, silent = cast(Any, Processor()), cast(Any, Processor(rendered="kept"))
    tokenizer = named.tokenizer = silent.tokenizer = cast(Any, Tokenizer())
    assert visual_ids(named) == [len("<img>")]
    named.video_token, tokenizer.unk_token_id = "<unknown>", len("<unknown>")
    assert visual_ids(named) == [len("<img>")]
    del named.video_token
    tokenizer.image_token = "<soft>"  # as Gemma 3's: written for each token of a picture
    assert visual_ids(named) == [len("<soft>")]
    named.img_patch_token = "<|IMG|>"  # as Aya Vision's
    assert visual_ids(named) == [len("<|IMG|>")]
    tokenizer.image_token = None
    silent.image_token = None
    silent.apply_chat_template = lambda turns, add_generation_prompt: " ".join(
        "<open> <pad> <pad> <pad> <shut>" if part["type"] == "image" else "? !" for part in turns[0]["content"]
    )
    assert visual_ids(silent) == [9]


def test_names_of_today():
    assert as_named({"pixel_values_images": 1, "input_ids": 2}) == {"pixel_values": 1, "input_ids": 2}
