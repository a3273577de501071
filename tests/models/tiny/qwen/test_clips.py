"""Clips and their questions: decided by the seed, fair, and answered truly by what the frames show."""

import random
from collections import Counter
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from vtc.models.tiny import render, words
from vtc.models.tiny.qwen import asking, clips, film, symbols

needs_fonts = pytest.mark.skipif(not Path(render.FONT_FOLDER).is_dir(), reason="needs the Debian package fonts-dejavu")
SEEDS = range(150)


def test_a_seed_decides_everything():
    assert clips.sample(7) == clips.sample(7)
    assert clips.sample(7) != clips.sample(8)
    assert clips.sample(7, "test") != clips.sample(7)


@pytest.mark.parametrize("steps", [1, clips.STEPS])
def test_things_never_touch_nor_leave_the_picture(steps):
    for seed in SEEDS:
        actors = clips.sample(seed, steps=steps).actors
        for actor in actors:
            x0, y0, x1, y1 = actor.envelope
            assert 0 <= x0 < x1 <= clips.SIDE
            assert 0 <= y0 < y1 <= clips.SIDE
        for a, b in combinations([actor.envelope for actor in actors], 2):
            assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]
        assert len({actor.phrase for actor in actors}) == len(actors)


def test_test_clips_show_numbers_that_training_never_does():
    shown = {
        split: {a.item.text for seed in SEEDS for a in clips.sample(seed, split).actors if a.item.text}
        for split in ("train", "test")
    }
    assert shown["test"]
    assert not shown["train"] & shown["test"]
    assert all(words.is_test_number(number) for number in shown["test"])


def test_answers_follow_from_what_is_shown_when():
    seen = Counter()
    for seed in SEEDS:
        clip = clips.sample(seed)
        by_phrase = {a.phrase: a for a in clip.actors}
        for q in asking.ask_many(clip, random.Random(seed), 30, {}):
            seen[q.task] += 1
            named = [a for phrase, a in by_phrase.items() if phrase in q.question]
            if q.task == "blink":
                gaps = sum(a and not b for a, b in zip(_blinker(clip).shown, _blinker(clip).shown[1:], strict=False))
                assert asking.TIMES.index(q.answer) == gaps
            elif q.task == "order":
                others = [a for a in named if a.phrase != q.answer]
                assert all(by_phrase[q.answer].first < other.first for other in others)
                assert others
            elif q.task == "direction" and q.answer in clips.DIRECTIONS:
                moving = next(a for a in clip.actors if a.role == "moves")
                last = moving.offset(15, 16)
                assert last[0] * clips.DIRECTIONS[q.answer][0] + last[1] * clips.DIRECTIONS[q.answer][1] >= 64
            elif q.task == "change":
                stays = by_phrase[q.answer].shown
                assert stays[-1] == (" appears" in q.question)
                assert stays[0] != stays[-1]
            elif q.task == "ever":
                assert (q.answer == "yes") == bool(named)
    assert set(seen) == set(asking.TASKS)
    assert min(seen.values()) > 30


def _blinker(clip: clips.Clip) -> clips.Actor:
    return next(a for a in clip.actors if a.role == "blinks")


@needs_fonts
def test_frames_show_what_the_labels_say():
    for seed in range(12):
        clip = clips.sample(seed)
        frames, labels = film.draw(clip)
        assert frames.shape == (clips.FRAMES, clips.SIDE, clips.SIDE, 3)
        assert labels.shape == (clips.STEPS, clips.GRID, clips.GRID, film.LABELS)
        for actor in clip.actors:
            kind = film.KINDS.index(actor.item.name) if not actor.item.text else None
            for step, shown in enumerate(actor.shown):
                here = labels[step, ..., film.KIND]
                if kind is not None and sum(a.item.name == actor.item.name for a in clip.actors) == 1:
                    assert (here == kind).any() == shown
            if actor.role == "flashes":
                at = actor.first
                x0, y0, x1, y1 = actor.item.box
                there, before = frames[2 * at, y0:y1, x0:x1], frames[2 * at - 2 if at else 2, y0:y1, x0:x1]
                assert np.abs(there.astype(int) - before).mean() > 20


@needs_fonts
def test_still_things_stand_still():
    clip = clips.sample(3)
    frames, _ = film.draw(clip)
    changed = (np.abs(frames.astype(int) - frames[:1]).max((0, 3)) > 0).mean()
    assert changed < 0.5


def test_a_sketch_agrees_with_the_drawing_on_where_things_are():
    clip = clips.sample(5)
    labels = film.sketch(clip)
    for actor in clip.actors:
        if not actor.item.text:
            x, y = (int(c // clips.CELL) for c in actor.item.center)
            step = actor.first
            dx, dy = actor.offset(2 * step, clips.FRAMES)
            cell = labels[step, y + dy // clips.CELL, x + dx // clips.CELL]
            assert film.KINDS[cell[film.KIND]] == actor.item.name


def test_a_subset_holds_every_thing_at_every_step():
    rng = np.random.default_rng(0)
    for seed in range(20):
        labels = film.sketch(clips.sample(seed)).reshape(clips.STEPS, -1, film.LABELS)
        kept = symbols.subset(labels, 96, rng)
        assert len(kept) == 96
        assert (np.diff(kept) > 0).all()
        for step in range(clips.STEPS):
            mine = kept[kept // 144 == step] % 144
            assert set(labels[step, mine, film.KIND]) >= set(labels[step, ..., film.KIND].ravel()) - {0, film.IGNORE}
