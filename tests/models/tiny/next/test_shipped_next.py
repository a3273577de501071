"""tiny-next as it ships: a genuine LLaVA-NeXT, loads offline, needs its crops, and is as good as its card says."""

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, LlavaNextForConditionalGeneration

import vtc
from vtc.demos.examples import shipped_pictures
from vtc.eval import datasets
from vtc.models import tiny
from vtc.models.tiny import evaluate, questions
from vtc.models.tiny.next import asking
from vtc.models.tiny.next import evaluate as scoring

DATA = Path(__file__).resolve().parents[4] / "eval" / "data" / "tiny-next"
FOLDER = tiny.path("tiny-next")


@pytest.fixture(scope="module")
def loaded():
    model = AutoModelForImageTextToText.from_pretrained(FOLDER, local_files_only=True).float().eval()
    return model, AutoProcessor.from_pretrained(FOLDER, local_files_only=True)


@pytest.fixture(scope="module")
def lines() -> list[dict]:
    return evaluate.read(DATA)


@pytest.fixture(scope="module")
def seen(loaded, lines) -> tuple[list[dict], list[dict]]:
    """Answers about the first pictures: with all tokens, and from the thumbnail alone."""
    model, processor = loaded
    return scoring.run(model, processor, DATA, [x for x in lines if x["image"] <= "pictures/n0003.webp"])


def test_checkpoint_is_a_small_genuine_llava_next(loaded):
    model, processor = loaded
    assert type(model) is LlavaNextForConditionalGeneration
    assert type(processor).__name__ == "LlavaNextProcessor"
    config: Any = model.config
    assert (config.vision_config.image_size, config.vision_config.patch_size) == (336, 14)
    assert [672, 672] in config.image_grid_pinpoints
    assert config.text_config.max_position_embeddings == processor.tokenizer.model_max_length == 4096
    assert processor.tokenizer.padding_side == "left"
    assert (FOLDER / "model.safetensors").stat().st_size <= 8_000_000
    assert not list(FOLDER.glob("*.py"))


def test_vtc_knows_it_by_name():
    model, _ = vtc.load("tiny-next", device="cpu")
    assert type(model) is LlavaNextForConditionalGeneration
    assert "tiny-next" in tiny.names()
    assert datasets.load("tiny-next").model == "tiny-next"  # what `vtc eval --data tiny-next` asks


@pytest.mark.parametrize(
    ("size", "rows", "columns"),
    [((672, 672), 48, 48), ((672, 336), 24, 48), ((336, 1008), 72, 24), ((1500, 1500), 48, 48), ((900, 100), 8, 72)],
)
def test_a_picture_is_a_thumbnail_and_rows_that_end_in_newlines(loaded, size, rows, columns):
    model, processor = loaded
    given = processor(
        images=Image.new("RGB", size), text=vtc.prompt(processor, "Is there a star?"), return_tensors="pt"
    )
    visual = int((given["input_ids"] == processor.image_token_id).sum())
    assert visual == 576 + rows * (columns + 1)
    if size == (672, 672):
        assert visual == 2928
        assert given["input_ids"].shape[1] < 4096
        tokens = scoring.tokens_of(model, processor, Image.new("RGB", size))
        newlines = (tokens == model.model.image_newline).all(-1).nonzero().flatten()
        assert newlines.tolist() == [576 + 49 * row + 48 for row in range(48)]


def test_answers_with_a_kept_picture_are_those_of_generate(loaded, lines):
    model, processor = loaded
    part = lines[:1]
    picture = Image.open(DATA / part[0]["image"]).convert("RGB")
    asked = [x["question"] for x in part]
    quick = scoring.answer(model, processor, scoring.tokens_of(model, processor, picture), asked)
    assert quick == evaluate.answer(model, processor, [{"images": [picture]}], asked, 8)


def test_shipped_questions_are_answered(seen):
    done, _ = seen
    assert len(done) == 12
    assert sum(x["score"] for x in done) >= 8


def test_committed_metrics_are_of_these_weights_and_meet_the_bar(lines):
    metrics = json.loads((FOLDER / "metrics.json").read_text())
    assert metrics["weights_sha256"] == hashlib.sha256((FOLDER / "model.safetensors").read_bytes()).hexdigest()
    assert metrics["questions"] == len(lines)
    assert set(metrics["accuracy"]) == {"all", *asking.TASKS}
    assert metrics["accuracy"]["all"] >= 0.85
    assert metrics["accuracy"]["all"] - metrics["thumbnail"]["all"] >= 0.15
    assert metrics["blind"]["all"] < 0.35
    assert (FOLDER / "training-log.jsonl").stat().st_size > 3_000


@pytest.mark.full
def test_accuracy_is_what_the_card_says(loaded, lines):
    """On one picture in five: within what chance allows of the committed numbers."""
    model, processor = loaded
    metrics = json.loads((FOLDER / "metrics.json").read_text())
    part = [x for x in lines if int(x["image"][-9:-5]) % 5 == 0]
    done, thumbnail = scoring.run(model, processor, DATA, part)
    assert abs(evaluate.summary(done)["all"] - metrics["accuracy"]["all"]) < 0.08
    assert abs(evaluate.summary(thumbnail)["all"] - metrics["thumbnail"]["all"]) < 0.12


def test_blind_answers_do_not_depend_on_the_picture(loaded, lines):
    model, processor = loaded
    asked = [{**x, "question": "What word is printed?"} for x in lines if x["task"] == "reading"][:3]
    said = scoring.run_blind(model, processor, DATA, asked)
    assert len({x["said"] for x in said}) == 1
    assert [x["score"] for x in said] == [questions.score(x["said"], x) for x in said]


def test_held_out_files_agree_with_the_questions(lines):
    named = {x["image"] for x in lines}
    assert len(named) == 200
    assert len(lines) == len({x["id"] for x in lines}) == 800
    assert named == {f"pictures/{p.name}" for p in (DATA / "pictures").iterdir()}
    for name in sorted(named)[::40]:
        assert Image.open(DATA / name).size == (672, 672)
    assert sum(p.stat().st_size for p in DATA.rglob("*") if p.is_file()) <= 2_500_000
    tasks = Counter(x["task"] for x in lines)
    assert set(tasks) == set(asking.TASKS)
    assert min(tasks.values()) >= 120
    answers = Counter(x["answer"] for x in lines if x["task"] == "existence")
    assert abs(answers["yes"] - answers["no"]) <= 1


def test_sliced_attention_is_attention():
    """Against rows computed one by one, in float32, at a length of three slices."""
    from vtc.models.tiny.next.attention import sliced

    torch.manual_seed(0)
    query, key, value = torch.randn(3, 1, 2, 800, 8)
    mask = torch.zeros(1, 1, 800, 800).masked_fill(~torch.ones(800, 800, dtype=torch.bool).tril(), -1e4)
    mask[..., 5:9] = -1e4  # nobody sees these
    got, _ = sliced(torch.nn.Module(), query, key, value, mask, 8**-0.5)
    for row in (0, 4, 383, 384, 799):
        allowed = [i for i in range(row + 1) if not 5 <= i < 9]
        for head in range(2):
            scores = [float(query[0, head, row] @ key[0, head, i]) * 8**-0.5 for i in allowed]
            share = torch.softmax(torch.tensor(scores), 0)
            wanted = sum(w * value[0, head, i] for w, i in zip(share, allowed, strict=True))
            torch.testing.assert_close(got[0, row, head], wanted, atol=1e-5, rtol=1e-5)


def test_the_demo_opens_with_questions_that_it_answers(loaded, lines):
    """The first here; all of them in the full tests' accuracy."""
    examples = shipped_pictures("tiny-next")
    known = {(Path(x["image"]).name, x["question"]): x["answer"] for x in lines}
    assert len(examples) >= 5
    assert all((media.name, question) in known for media, question in examples)
    media, question = examples[0]
    model, processor = loaded
    assert media.picture is not None
    tokens = scoring.tokens_of(model, processor, media.picture)
    assert scoring.answer(model, processor, tokens, [question]) == [known[media.name, question]]
