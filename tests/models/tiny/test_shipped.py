"""What ships: the checkpoint loads offline and answers; the held-out files are what the README says."""

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, LlavaForConditionalGeneration

from vtc.models import tiny
from vtc.models.tiny import build, evaluate, questions, words

DATA = Path(__file__).resolve().parents[3] / "eval" / "data" / "tiny"


@pytest.fixture(scope="module")
def loaded():
    folder = tiny.path()
    model = AutoModelForImageTextToText.from_pretrained(folder, local_files_only=True).float().eval()
    return model, AutoProcessor.from_pretrained(folder, local_files_only=True)


@pytest.fixture(scope="module")
def lines() -> list[dict]:
    return evaluate.read(DATA)


def test_names_and_path():
    assert "tiny-llava" in tiny.names()
    with pytest.raises(ValueError, match="tiny-llava"):
        tiny.path("no-such-model")


def test_checkpoint_is_a_small_genuine_llava(loaded):
    model, processor = loaded
    assert type(model) is LlavaForConditionalGeneration
    config: Any = model.config
    assert config.vision_config.image_size == 336
    assert (config.vision_config.image_size // config.vision_config.patch_size) ** 2 == 576
    assert config.vision_feature_layer == -2
    assert config.vision_feature_select_strategy == "default"
    assert processor.tokenizer.padding_side == "left"
    assert (tiny.path() / "model.safetensors").stat().st_size <= 16_000_000
    assert not list(tiny.path().glob("*.py"))


def test_committed_metrics_are_of_these_weights_and_meet_the_bar():
    metrics = json.loads((tiny.path() / "metrics.json").read_text())
    assert metrics["weights_sha256"] == hashlib.sha256((tiny.path() / "model.safetensors").read_bytes()).hexdigest()
    accuracy = metrics["accuracy"]
    assert metrics["questions"] == len(evaluate.read(DATA)) >= 2000
    assert set(accuracy) == {"all", *questions.TASKS}
    assert accuracy["all"] >= 0.90
    assert min(accuracy.values()) >= 0.75
    assert metrics["blind"]["all"] < 0.35
    assert metrics["easy_vqa"]["questions"] == 9673
    assert (tiny.path() / "training-log.jsonl").stat().st_size > 10_000


def test_template_and_plain_prompt_give_the_same_ids(loaded):
    _, processor = loaded
    picture = Image.new("RGB", (336, 336))
    plain = processor(images=picture, text=build.prompt("Is there a bird?"), return_tensors="pt")
    message = {
        "role": "user",
        "content": [{"type": "image", "image": picture}, {"type": "text", "text": "Is there a bird?"}],
    }
    chat = processor.apply_chat_template(
        [message], add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    assert torch.equal(plain["input_ids"], chat["input_ids"])
    assert int((plain["input_ids"] == processor.image_token_id).sum()) == 576


def test_unseen_words_are_spelled_and_decode_to_plain_english(loaded):
    _, processor = loaded
    tokenizer = processor.tokenizer
    ids = tokenizer("stop 407 Zebra", add_special_tokens=False).input_ids
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids) == "stop 407 zebra"
    assert tokenizer("日本 ünïcode").input_ids  # foreign letters become unknown tokens, not errors


def test_shipped_questions_are_answered(loaded, lines):
    model, processor = loaded
    asked = [x for x in lines if x["task"] in ("color", "existence")][:12]
    shown = [evaluate.look(DATA, x, blind=False) for x in asked]
    said = evaluate.answer(model, processor, shown, [x["question"] for x in asked], 6)
    assert sum(questions.score(s, x) for s, x in zip(said, asked, strict=True)) >= 9


def test_a_question_of_unknown_words_does_not_crash(loaded):
    model, processor = loaded
    shown = [{"images": [Image.new("RGB", (80, 50))]}]
    assert isinstance(evaluate.answer(model, processor, shown, ["Whose zeppelin is it?"])[0], str)


def test_held_out_files_agree_with_the_questions(lines):
    assert len(lines) >= 2000
    named = {x["image"] for x in lines}
    assert len(named) >= 400
    assert named == {f"pictures/{p.name}" for p in (DATA / "pictures").iterdir()}
    assert len({x["id"] for x in lines}) == len(lines)
    for name in sorted(named)[::40]:
        assert Image.open(DATA / name).size == (336, 336)
    assert sum(p.stat().st_size for p in DATA.rglob("*") if p.is_file()) <= 8_000_000
    tasks = Counter(x["task"] for x in lines)
    assert set(tasks) == set(questions.TASKS)
    assert min(tasks.values()) >= 100
    answers = Counter(x["answer"] for x in lines if x["task"] == "existence")
    assert abs(answers["yes"] - answers["no"]) <= 1
    assert all(x["objects"] for x in lines if x["task"] == "caption")


def test_existence_is_balanced_for_shapes_and_for_drawings(lines):
    answers = Counter(
        (any(color in x["question"] for color in words.COLORS), x["answer"]) for x in lines if x["task"] == "existence"
    )
    for colored in (True, False):
        yes, no = answers[colored, "yes"], answers[colored, "no"]
        assert abs(yes - no) / (yes + no) < 0.1
