"""Prompts hold one placeholder per picture, and `seen` shows what a processor lets through."""

import numpy as np
import pytest
from PIL import Image
from transformers import CLIPImageProcessor, LlavaNextImageProcessor, Qwen2VLImageProcessor
from transformers.models.llava.image_processing_llava import LlavaImageProcessor

from vtc.media.prompts import prompt, seen

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
