"""tiny-next's scenes: decided by the seed; small things whole in one crop; views, places and answers are true."""

import random
from collections import Counter
from itertools import combinations

import numpy as np
import pytest
import torch
from PIL import Image

from vtc.models.tiny import drawings, words
from vtc.models.tiny.next import asking, build, heldout, pool, render, scenes, train
from vtc.models.tiny.scenes import SIZE, Item

needs_files = pytest.mark.skipif(
    not drawings.ROOT.is_dir(), reason="needs the Debian packages openclipart-png and fonts-dejavu"
)
SEEDS = range(120)


def item(name: str, color: str, x: int, y: int) -> Item:
    return Item("shape", name, (x, y, x + 40, y + 40), color)


def scene(*things: scenes.Thing) -> scenes.Scene:
    return scenes.Scene(0, "train", things)


def test_a_seed_decides_everything():
    assert scenes.sample(7) == scenes.sample(7)
    assert scenes.sample(7) != scenes.sample(8)
    assert scenes.sample(7, "test").things != scenes.sample(7).things


@pytest.mark.parametrize("split", ["train", "test"])
def test_things_never_touch_and_no_crop_cuts_a_small_one(split):
    large = 0
    for seed in SEEDS:
        things = scenes.sample(seed, split).things
        for thing in things:
            x0, y0, x1, y1 = thing.box
            assert 0 <= x0 < x1 <= scenes.SIDE
            assert 0 <= y0 < y1 <= scenes.SIDE
            if thing.crop is not None:
                crops = {2 * int(y >= SIZE) + int(x >= SIZE) for x in (x0, x1 - 1) for y in (y0, y1 - 1)}
                assert crops == {thing.crop}
            large += thing.crop is None
        for a, b in combinations([thing.box for thing in things], 2):
            assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]
    assert large > 80


def test_what_is_counted_stands_at_one_scale_and_print_is_unique():
    for seed in SEEDS:
        scene = scenes.sample(seed)
        small = {t.item.name for t in scene.things if t.crop is not None}
        assert not small & {item.name for item in scene.large}
        assert max(Counter(i.kind for i in scene.items if i.text).values(), default=0) <= 1


def test_test_pictures_print_what_training_never_does():
    shown = {s: {i.text for seed in SEEDS for i in scenes.sample(seed, s).items if i.text} for s in ("train", "test")}
    assert not shown["train"] & shown["test"]
    assert {text for text in shown["test"] if text.isalpha()} <= set(words.TEST_WORDS)


def test_views_are_what_the_processor_makes_of_the_picture():
    picture = render.draw(scene(*(scenes.Thing(item("star", "red", 50 * c, 90), c) for c in range(4))))
    assert picture.shape == (672, 672, 3)
    made = build.processor().image_processor(images=[Image.fromarray(picture)], return_tensors="np")
    pixels = np.asarray(made["pixel_values"])[0]  # [5, 3, 336, 336]
    reader = build.processor().image_processor
    mean, std = (np.array(v)[:, None, None] for v in (reader.image_mean, reader.image_std))
    shown = np.round((pixels * std + mean) * 255).transpose(0, 2, 3, 1)
    views = render.views(picture)
    assert np.array_equal(shown[1:], views[1:])
    assert np.abs(shown[0] - views[0]).mean() < 1  # two implementations of a bicubic filter


def test_patches_newlines_and_regions_stand_where_the_model_puts_them():
    """Counted by hand: 576 of the thumbnail, then 48 rows of 48 patches, of two crops side by side, and a newline."""
    at, ends, regions = train.positions().tolist(), train.newlines().tolist(), train.regions()
    assert at[:576] == list(range(576))
    place, crop_of = 576, {}
    for row in range(48):
        for column in range(48):
            crop = 2 * (row >= 24) + (column >= 24)
            patch = (row % 24) * 24 + column % 24
            assert at[576 * (1 + crop) + patch] == place
            assert regions[place].tolist() == [3 * (row // 16) + column // 16, crop]
            crop_of[place] = crop
            place += 1
        assert ends[row] == place
        assert regions[place].tolist() == [-100, -100]
        place += 1
    assert place == 2928
    assert Counter(crop_of.values()) == dict.fromkeys(range(4), 576)


def test_dense_labels_name_small_things_in_their_crop_and_large_ones_in_the_thumbnail():
    for seed in range(20):
        scene = scenes.sample(seed)
        labels = pool.dense(scene)
        assert labels.shape == (5, 576, 4)
        for thing in scene.things:
            row, column = thing.item.anchor
            view = labels[0 if thing.crop is None else 1 + thing.crop]
            assert view[24 * row + column][3] == 1
        assert (labels[..., 3] == 1).sum() == len(scene.things)


def test_quarters_are_told_from_the_centre_and_not_near_a_border():
    stars = [scenes.Thing(item("star", "red", 40, 200), crop) for crop in range(4)]
    assert [asking.quarter_of(star.seen) for star in stars] == scenes.QUARTERS
    near = scenes.Thing(item("star", "red", 290, 40), 0)  # its centre lies 26 px of 672 before the middle
    assert asking.quarter_of(near.seen) == "top left"
    nearer = scenes.Thing(item("star", "red", 300, 40), 0)
    assert asking.quarter_of(nearer.seen) is None


def test_answers_follow_from_the_scene():
    """A small red star far up on the left, a small blue heart at the lower right, a large black cross in the middle."""
    shown = scene(
        scenes.Thing(item("star", "red", 20, 20), 0),
        scenes.Thing(item("heart", "blue", 250, 250), 3),
        scenes.Thing(item("cross", "black", 148, 148)),
    )
    asked = asking.ask_many(shown, random.Random(0), 400)
    answers = {q.question: q.answer for q in asked}
    assert answers["Where is the red star?"] == "top left"
    assert answers["Where is the cross?"] == "center"
    assert answers["What is at the bottom right?"] == "heart"
    assert answers["Which quarter is the heart in?"] == "bottom right"
    assert answers["How many stars are there?"] == "one"
    assert answers["Is the blue heart above or below the cross?"] == "below"
    assert not any("quarter" in q and "cross" in q for q in answers)  # in the middle of all four


def test_a_picture_put_together_of_crops_has_their_things_where_it_put_them():
    made = pool.Pool.__new__(pool.Pool)
    seen = []
    for seed in range(8):
        of = scenes.sample(seed)
        features = torch.full((5, 576, 1), float(seed)) + torch.arange(5)[:, None, None] / 10
        seen.append(pool.Seen(of, features, pool.dense(of)))
    made.seen = seen
    made._whole_crops = [(i, c) for i in range(8) for c in range(4)]
    mixed = made.mixed(random.Random(1))
    assert mixed.scene.large == ()
    assert not mixed.features[0].any()
    for crop in range(4):
        source, view = divmod(round(float(mixed.features[1 + crop, 0, 0]) * 10), 10)
        assert mixed.scene.small(crop) == seen[source].scene.small(view - 1)
        assert np.array_equal(mixed.labels[1 + crop], seen[source].labels[view])


@pytest.mark.full
@needs_files
def test_the_held_out_set_is_made_again_from_its_seeds(tmp_path):
    heldout.write(tmp_path, pictures=1)
    ours = (heldout.DATA / "questions.jsonl").read_text().splitlines()
    made = (tmp_path / "questions.jsonl").read_text().splitlines()
    assert ours[: len(made)] == made
    pictures = [np.asarray(Image.open(p / "pictures" / "n0001.webp"), dtype=int) for p in (tmp_path, heldout.DATA)]
    assert np.abs(pictures[0] - pictures[1]).mean() < 2
