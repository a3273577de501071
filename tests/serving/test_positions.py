"""Positions of pruned prompts: together with what is added later they are those of the whole prompt."""

from __future__ import annotations

import random

import pytest
import torch

from vtc.serving.vllm.positions import Media, offsets, packed, prompt_positions, unpacked


def whole(words: list[int], grids: list[tuple[int, int, int]], steps: list[float]) -> tuple[list, list, int]:
    """Of text, picture, text, picture, ..., text, the (t, h, w) of each token as M-RoPE defines them: text counts on
    from the largest number before it, a picture's tokens count from there along each axis.

    Returns:
        rows of text, in order; rows of each picture; and what a next token would have.
    """
    text, pictures, position = [], [], 0
    for number, count in enumerate(words):
        for _ in range(count):
            text.append((position,) * 3)
            position += 1
        if number < len(grids):
            t, h, w = grids[number]
            own = [
                (position + int(a * steps[number]), position + b, position + c)
                for a in range(t)
                for b in range(h)
                for c in range(w)
            ]
            pictures.append(own)
            position = max(max(row) for row in own) + 1
    return text, pictures, position


@pytest.mark.parametrize("seed", range(4))
def test_what_stays_has_the_positions_of_the_whole_prompt(seed):
    draw = random.Random(seed)
    grids = [(draw.choice([1, 1, 3]), draw.randint(1, 4), draw.randint(1, 5)) for _ in range(draw.randint(0, 3))]
    steps = [1.0 if t == 1 else draw.choice([0.5, 1.0, 2.5]) for t, _, _ in grids]
    words = [draw.randint(0, 4) for _ in range(len(grids) + 1)]
    text, pictures, after = whole(words, grids, steps)
    kept = [sorted(draw.sample(range(len(own)), draw.randint(1, len(own)))) for own in pictures]

    media, expected, start, taken = [], [], 0, 0
    for number, count in enumerate(words):
        expected += text[taken : taken + count]
        taken, start = taken + count, start + count
        if number < len(grids):
            media.append(Media(start, len(kept[number]), grids[number], steps[number]))
            expected += [pictures[number][i] for i in kept[number]]
            start += len(kept[number])

    found, delta = prompt_positions(start, reversed(media))
    assert found.shape == (3, start)
    for own, one in zip(kept, media, strict=True):
        found[:, one.start : one.start + one.kept] += offsets(one.grid, one.step)[own].T
    assert [tuple(row) for row in found.T.tolist()] == expected
    assert start + delta == after


def test_a_prompt_without_pictures_is_counted():
    found, delta = prompt_positions(3, [])
    assert (found.tolist(), delta) == ([[0, 1, 2]] * 3, 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_places_travel_exactly_in_any_dtype(dtype):
    places = torch.tensor([[0, 1, 255], [256, 257, 1023], [4095, 40_001, 65_535]])
    features = torch.randn(3, 5).to(dtype)
    own, back = unpacked(packed(features, places))
    assert torch.equal(own, features)
    assert back.tolist() == places.tolist()
    assert packed(features, places).dtype == dtype
