"""tiny-qwen as it ships: a genuine Qwen2.5-VL, loads offline, answers about real mp4 files, and is as good as said."""

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForImageTextToText, AutoProcessor, Qwen2_5_VLForConditionalGeneration

import vtc
from vtc.models import tiny
from vtc.models.tiny import evaluate, questions
from vtc.models.tiny.qwen import asking

DATA = Path(__file__).resolve().parents[4] / "eval" / "data" / "tiny-video"
FOLDER = tiny.path("tiny-qwen")


@pytest.fixture(scope="module")
def loaded():
    model = AutoModelForImageTextToText.from_pretrained(FOLDER, local_files_only=True).float().eval()
    return model, AutoProcessor.from_pretrained(FOLDER, local_files_only=True)


@pytest.fixture(scope="module")
def lines() -> list[dict]:
    return evaluate.read(DATA)


def test_checkpoint_is_a_small_genuine_qwen(loaded):
    model, _ = loaded
    assert type(model) is Qwen2_5_VLForConditionalGeneration
    vision: Any = model.config.vision_config
    assert set(vision.fullatt_block_indexes) < set(range(vision.depth))  # the other layers attend in windows
    assert sum(p.stat().st_size for p in FOLDER.iterdir()) <= 16_000_000
    assert not list(FOLDER.glob("*.py"))


def test_committed_metrics_are_of_these_weights_and_meet_the_bar(lines):
    metrics = json.loads((FOLDER / "metrics.json").read_text())
    assert metrics["weights_sha256"] == hashlib.sha256((FOLDER / "model.safetensors").read_bytes()).hexdigest()
    assert metrics["questions"] == len(lines)
    assert set(metrics["accuracy"]) == {"all", *asking.TASKS, *asking.PICTURE_TASKS}
    assert metrics["accuracy"]["all"] >= 0.90
    assert metrics["blind"]["all"] < 0.40


def test_a_clip_is_more_than_a_thousand_tokens_at_eight_positions(loaded):
    model, processor = loaded
    clip = vtc.load_clip(DATA / "clips" / "0001.mp4", frames=16)
    inputs = processor(
        text=[vtc.prompt(processor, "What moves?", 0, 1)],
        videos=[clip.frames],
        video_metadata=[clip.metadata()],
        do_sample_frames=False,
        return_tensors="pt",
    )
    assert inputs["video_grid_thw"].tolist() == [[8, 24, 24]]
    assert int((inputs["input_ids"] == model.config.video_token_id).sum()) == 1152
    positions = model.model.get_rope_index(
        inputs["input_ids"],
        video_grid_thw=inputs["video_grid_thw"],
        second_per_grid_ts=inputs["second_per_grid_ts"],
        mm_token_type_ids=inputs["mm_token_type_ids"],
    )[0]
    visual = inputs["input_ids"][0] == model.config.video_token_id
    assert positions[0, 0, visual].unique().numel() == 8


def test_shipped_questions_are_answered(loaded, lines):
    model, processor = loaded
    asked = [x for x in lines if x["task"] in ("direction", "change", "ever") and "video" in x][:12]
    shown = [evaluate.look(DATA, x, blind=False) for x in asked]
    said = evaluate.answer(model, processor, shown, [x["question"] for x in asked], 6)
    assert sum(questions.score(s, x) for s, x in zip(said, asked, strict=True)) >= 9


def test_held_out_files_agree_with_the_questions(lines):
    clips = {x["video"] for x in lines if "video" in x}
    pictures = {x["image"] for x in lines if "image" in x}
    assert len(clips) >= 150
    assert len([x for x in lines if "video" in x]) >= 600
    assert clips == {f"clips/{p.name}" for p in (DATA / "clips").iterdir()}
    assert pictures == {f"pictures/{p.name}" for p in (DATA / "pictures").iterdir()}
    assert len({x["id"] for x in lines}) == len(lines)
    assert sum(p.stat().st_size for p in DATA.rglob("*") if p.is_file()) <= 6_000_000
    tasks = Counter(x["task"] for x in lines if "video" in x)
    assert set(tasks) == set(asking.TASKS)
    assert min(tasks.values()) >= 60
    answers = Counter(x["answer"] for x in lines if x["task"] == "ever")
    assert abs(answers["yes"] - answers["no"]) <= 1
