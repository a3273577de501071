"""The generator: same seed, same picture; train and test share nothing; answers follow from the scene."""

import random
from collections import Counter

import numpy as np
import pytest

from vtc.models.tiny import drawings, heldout, labels, questions, render, scenes, words
from vtc.models.tiny.scenes import GRID, PATCH, SIZE, Item, Scene

needs_files = pytest.mark.skipif(
    not drawings.ROOT.is_dir(), reason="needs the Debian packages openclipart-png and fonts-dejavu"
)
SEEDS = range(200)


def items_of(scene: Scene, name: str) -> list[Item]:
    return [i for i in scene.items if i.name == name]


def test_same_seed_same_scene_and_other_seed_other_scene():
    assert scenes.sample(7) == scenes.sample(7)
    assert scenes.sample(7) != scenes.sample(8)
    assert scenes.sample(7, "train").items != scenes.sample(7, "test").items


@needs_files
def test_same_scene_same_pixels():
    first, owner = render.draw(scenes.sample(3))
    again, _ = render.draw(scenes.sample(3))
    assert first.shape == (SIZE, SIZE, 3)
    assert owner.shape == (GRID, GRID)
    assert np.array_equal(first, again)


def test_objects_stay_inside_and_apart():
    for seed in SEEDS:
        for split in ("train", "test"):
            boxes = [i.box for i in scenes.sample(seed, split).items]
            for i, (x0, y0, x1, y1) in enumerate(boxes):
                assert x0 >= 0
                assert y0 >= 0
                assert x1 <= SIZE
                assert y1 <= SIZE
                for a0, b0, a1, b1 in boxes[:i]:
                    assert x1 <= a0 or a1 <= x0 or y1 <= b0 or b1 <= y0


@needs_files
def test_train_and_test_share_no_drawing_and_no_twin():
    splits = drawings.load()
    for category in words.DRAWINGS:
        train, test = (splits[s][category] for s in ("train", "test"))
        assert len(test) >= 3
        assert len(train) >= 8
        assert not {f for f, _ in train} & {f for f, _ in test}
        assert not {f.split("/")[-1] for f, _ in train} & {f.split("/")[-1] for f, _ in test}
        pixels = {a.tobytes() for _, a in train}
        assert not any(a.tobytes() in pixels for _, a in test)


def test_train_and_test_share_no_word_and_no_number():
    def printed(split: str) -> set[str]:
        return {i.text for seed in range(1500) for i in scenes.sample(seed, split).items if i.text}

    train, test = printed("train"), printed("test")
    assert not train & test
    assert {t for t in test if t.isalpha()} <= set(words.TEST_WORDS)
    assert not set(words.TRAIN_WORDS) & set(words.TEST_WORDS)
    assert not set(render.FONTS["train"]) & set(render.FONTS["test"])
    assert max(map(len, train | test)) <= words.SLOTS


def test_answers_follow_from_the_scene():
    """Every answer recomputed from the items by other means than the generator's own."""
    seen = Counter()
    for seed in SEEDS:
        scene = scenes.sample(seed, "test")
        drawn = [i for i in scene.items if i.kind in ("shape", "drawing")]
        for q in questions.ask_many(scene, random.Random(seed), 20):
            seen[q.task] += 1
            text = q.question.rstrip("?.").lower()
            if q.task == "color":
                name = next(w for w in text.split() if w in words.SHAPES)
                assert [i.color for i in items_of(scene, name)] == [q.answer]
            elif q.task == "count":
                name = next(n for n in words.SHAPES + words.DRAWINGS if words.plural(n) in text.split())
                assert words.COUNTS[len(items_of(scene, name))] == q.answer
            elif q.task == "existence":
                phrase = text.removeprefix("is there ").removesuffix(" in the picture").split(" ", 1)[1]
                there = phrase in {f"{i.color} {i.name}".strip() for i in drawn}
                assert q.answer == ("yes" if there else "no")
            elif q.task == "reading":
                assert q.answer in [i.text for i in items_of(scene, "word" if "word" in text else "number")]
            elif q.task == "object" and text.split()[-1] in words.COLORS:
                assert [i.name for i in drawn if i.color == text.split()[-1]] == [q.answer]
            elif q.task == "caption":
                assert len(q.objects) == len(scene.items)
                assert questions.score(q.answer, q) == 1
            elif q.task == "position" and q.answer in ("above", "below", "left", "right") and " or " in text:
                a, b = (next(i for i in drawn if p in (i.name, i.phrase)) for p in _phrases(text))
                axis = 1 if "above" in text else 0
                lower = (a.box[axis] + a.box[axis + 2]) < (b.box[axis] + b.box[axis + 2])
                assert q.answer == (("left", "right"), ("above", "below"))[axis][0 if lower else 1]
    assert set(seen) == set(questions.TASKS)


def _phrases(text: str) -> tuple[str, str]:
    words_of = text.replace(" of the ", " the ").replace(" to the left or to the right", " |").split()
    joined = " ".join(words_of).replace("left or right", "|").replace("above or below", "|")
    left, right = joined.split(" | ")
    return left.removeprefix("is the "), right.removeprefix("the ")


def test_caption_f1_by_hand():
    assert questions.caption_f1("a red star, a bird", ["red star", "bird"]) == 1
    assert questions.caption_f1("a red star", ["red star", "bird"]) == pytest.approx(2 / 3)
    assert questions.caption_f1("a red star, a red star", ["red star", "bird"]) == 0.5
    assert questions.caption_f1("", ["bird"]) == 0


@needs_files
def test_dense_labels_agree_with_the_scene():
    for seed in range(20):
        scene = scenes.sample(seed)
        _, owner = render.draw(scene)
        dense = labels.dense(scene, owner)
        assert (dense[..., labels.CENTER] == 1).sum() == len(scene.items)
        for item in scene.items:
            kind, color, slot, center = dense[item.anchor]
            assert center == 1
            assert words.KINDS[kind] == (item.text[0] if item.text else item.name)
            assert slot == (1 if item.text else 0)
            assert color == (words.COLORS.index(item.color) + 1 if item.color else 0)
            row, column = item.anchor
            assert item.box[0] <= (column + 1) * PATCH
            assert item.box[1] <= (row + 1) * PATCH


def test_held_out_choice_is_deterministic_and_balanced():
    chosen = heldout.choose(60)
    assert chosen == heldout.choose(60)
    answers = Counter(q.answer for _, asked in chosen for q in asked if q.task == "existence")
    assert abs(answers["yes"] - answers["no"]) <= 1
