"""tiny-qwen is a genuine Qwen2.5-VL: what training computes is what the released classes compute."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor, Qwen2_5_VLForConditionalGeneration

from vtc.models import tiny
from vtc.models.tiny import packing, render
from vtc.models.tiny.common import Run
from vtc.models.tiny.questions import Question
from vtc.models.tiny.qwen import build, stage_language, train, vision
from vtc.models.tiny.qwen.symbols import places_of

needs_fonts = pytest.mark.skipif(not Path(render.FONT_FOLDER).is_dir(), reason="needs the Debian package fonts-dejavu")
FACTS = {"fps": 4.0, "total_num_frames": 16, "frames_indices": list(range(16)), "duration": 4.0}


@pytest.fixture(scope="module")
def built():
    return build.model(0, build.tiny_llava()).eval(), build.processor()


def inputs_of(processor, frames, text):
    return processor(text=[text], videos=[frames], video_metadata=[FACTS], do_sample_frames=False, return_tensors="pt")


def question(processor, text):
    parts = [{"type": "video"}, {"type": "text", "text": text}]
    return processor.apply_chat_template([{"role": "user", "content": parts}], add_generation_prompt=True)


@pytest.mark.parametrize("size", [(192, 192), (64, 128)])
def test_many_frames_at_once_give_the_tower_s_own_numbers(built, size):
    model, processor = built
    frames = torch.randint(0, 256, (16, *size, 3), dtype=torch.uint8)
    with torch.no_grad():
        got = vision.states(model.model.visual, frames.view(8, 2, *size, 3))[0].flatten(0, 1)
        inputs = inputs_of(processor, frames.numpy(), question(processor, "What moves?"))
        expected = model.model.visual(inputs["pixel_values_videos"], inputs["video_grid_thw"]).pooler_output
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)


def test_the_training_loss_is_the_model_s_own(built):
    """Packed questions share a clip, and yet each has the loss that it has alone."""
    model, processor = built
    frames = torch.randint(0, 256, (16, 192, 192, 3), dtype=torch.uint8)
    packer = packing.Packer(processor.tokenizer)
    asked = [Question("a", "What moves?", "red star"), Question("b", "Is there ever a blue heart?", "no")]
    with torch.no_grad():
        tokens = vision.states(model.model.visual, frames.view(8, 2, 192, 192, 3))[0].flatten(0, 1)[None]
        places = places_of(torch.arange(1152)[None])
        core = model.model.language_model
        answers = stage_language.Answers(core, stage_language.Past(192), packer)
        prefix, suffix = answers.prefix, answers.suffix
        together, _ = packing.forward(core, prefix, tokens, places, packer.pack([asked]), suffix)
        total, count = 0.0, 0
        for q in asked:
            text = question(processor, q.question)
            start = inputs_of(processor, frames.numpy(), text)["input_ids"].shape[1]
            whole = inputs_of(processor, frames.numpy(), f"{text} {q.answer}</s>")
            labels = whole["input_ids"].clone()
            labels[:, :start] = -100
            answers = labels.shape[1] - start
            total += float(model(**whole, labels=labels).loss) * answers
            count += answers
    assert abs(float(together) - total / count) < 1e-4


def test_words_and_layers_come_from_tiny_llava(built):
    model, processor = built
    source = build.tiny_llava()
    old = AutoProcessor.from_pretrained(tiny.path("tiny-llava"), local_files_only=True).tokenizer
    new = processor.tokenizer
    mine: Any = model.get_input_embeddings().weight
    theirs: Any = source.get_input_embeddings().weight
    for word in ("star", "red", "yes", "##7"):
        assert torch.equal(mine[new.convert_tokens_to_ids(word)], theirs[old.convert_tokens_to_ids(word)])
    language: Any = model.model.language_model
    origin: Any = source.model.language_model
    layer, last = language.layers[-1], origin.layers[-1]
    assert torch.equal(layer.mlp.up_proj.weight, last.mlp.up_proj.weight)


@needs_fonts
def test_quick_training_ends_in_a_folder_that_loads(tmp_path):
    with torch.enable_grad():
        folder = train.train(Run(tmp_path, quick=True))
    assert folder is not None
    model = AutoModelForImageTextToText.from_pretrained(folder, local_files_only=True)
    assert type(model) is Qwen2_5_VLForConditionalGeneration
    assert AutoProcessor.from_pretrained(folder, local_files_only=True).video_token == "<|video_pad|>"
    done = (tmp_path / "log.jsonl").read_text()
    train.train(Run(tmp_path, quick=True))  # every stage is finished
    assert (tmp_path / "log.jsonl").read_text() == done
