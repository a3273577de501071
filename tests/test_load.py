"""`vtc.load` and `vtc.resolve`: what a command line hands over becomes a model and a method, or one sentence."""

from __future__ import annotations

import json
import shutil
from typing import Any

import pytest
from PIL import Image

import vtc
from vtc.models import tiny

pytestmark = pytest.mark.core


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_attention_is_chosen_when_loading(attention):
    model, _ = vtc.load("tiny-llava", device="cpu", attn_implementation=attention)
    assert model.config._attn_implementation == attention


def test_a_method_from_its_name():
    assert vtc.resolve("divprune", 0.1) == vtc.DivPrune(keep=0.1)
    assert vtc.resolve(vtc.DivPrune(keep=4), positions="compact") == vtc.DivPrune(keep=4, positions="compact")
    with pytest.raises(ValueError, match="Did you mean 'divprune'"):
        vtc.resolve("divprun")


def changed(folder: Any, tmp_path: Any, name: str, change: Any) -> Any:
    """A copy of a checkpoint's folder in which what one JSON file says is changed."""
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    said = json.loads((copy / name).read_text(encoding="utf-8"))
    change(said)
    (copy / name).write_text(json.dumps(said), encoding="utf-8")
    return copy


def test_what_an_old_processor_leaves_out_is_filled_in(tmp_path):
    """As files saved before transformers 4.46 are: without these a prompt has a token too few, or none can be made."""

    def strip(said):
        for name in ("patch_size", "num_additional_image_tokens", "vision_feature_select_strategy"):
            said.pop(name, None)

    old = changed(tiny.path("tiny-llava"), tmp_path, "processor_config.json", strip)
    with pytest.warns(UserWarning, match=r"everything; filled in: patch_size=\d+, .*num_additional_image_tokens=1\.$"):
        model, processor = vtc.load(old, device="cpu")
    _, whole = vtc.load("tiny-llava", device="cpu")
    picture = Image.new("RGB", (40, 30), "red")
    ours, theirs = (vtc.prepare(one, "What?", [picture])["input_ids"] for one in (processor, whole))
    assert ours.equal(theirs)
    assert vtc.check(model, "divprune", processor=processor, show=None).ok


def test_no_pad_token_and_no_chat_template(tmp_path):
    old = changed(tiny.path("tiny-llava"), tmp_path, "tokenizer_config.json", lambda said: said.pop("pad_token"))
    (old / "chat_template.jinja").unlink()
    with pytest.warns(UserWarning, match="pad_token=|no chat template: questions are asked as USER") as said:
        _, processor = vtc.load(old, device="cpu")
    assert len(said) == 2
    pictures = [Image.new("RGB", (40, 30), "red")] * 2
    texts = [f"{processor.image_token} {words}" for words in ("a", "what is a")]
    made = processor(images=[[one] for one in pictures], text=texts, padding=True, return_tensors="pt")
    assert made["attention_mask"].sum(dim=1).diff() != 0


@pytest.mark.parametrize("key", ["mm_vision_tower", "llm_config"])
def test_formats_of_other_repositories(tmp_path, key):
    """The original LLaVA's configuration is read by transformers as one with default sizes."""
    foreign = changed(tiny.path("tiny-llava"), tmp_path, "config.json", lambda said: said.update({key: "x"}))
    with pytest.raises(ValueError, match=rf"format of its own repository \({key} in its config.json\).* -hf or -HF\.$"):
        vtc.load(foreign, device="cpu")
