"""What is read of a cache while a choice stands, step by step, against a fresh gather of the same rows."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch import Tensor

from vtc.engine.kv_cache import CompressedLayer
from vtc.engine.reading import ROOM, Reading


def layer(rows: int, prompt: int) -> CompressedLayer:
    made = CompressedLayer()
    made._expect_engine = lambda: None  # type: ignore[method-assign]
    made.update(*tokens(rows, prompt))
    made.prompt = prompt
    return made


def tokens(rows: int, count: int) -> tuple[Tensor, Tensor]:
    return torch.randn(rows, 2, count, 4), torch.randn(rows, 2, count, 4)


def choice(rows: int, prompt: int) -> Reading:
    keep = torch.rand(rows, prompt) < 0.4
    counts = keep.sum(dim=1)
    return Reading.of(keep, int(counts.max()), True)


def fresh(held: Tensor, reading: Reading, prompt: int) -> Tensor:
    return torch.stack(
        [torch.cat([x[:, rows], x[:, prompt:]], dim=1) for x, rows in zip(held, reading.rows, strict=True)]
    )


@pytest.mark.parametrize("rows", [1, 3])
def test_a_step_reads_what_a_fresh_gather_would(rows: int) -> None:
    """Past the room that there is, with choices that stand for one step, two and many."""
    torch.manual_seed(0)
    made = layer(rows, 20)
    for steps in (1, 1, 2, 3, 2 * ROOM + 5, 1):
        made.reading = choice(rows, 20)
        for _ in range(steps):
            keys, values = made.update(*tokens(rows, 1))
            assert keys.equal(fresh(made.keys, made.reading, 20))  # type: ignore[arg-type]
            assert values.equal(fresh(made.values, made.reading, 20))  # type: ignore[arg-type]


@pytest.mark.parametrize("change", ["crop", "reorder", "repeat", "select", "several tokens"])
def test_what_changes_the_cache_changes_what_is_read(change: str) -> None:
    torch.manual_seed(0)
    made, rows = layer(2, 20), 2
    made.tail = 20
    made.reading = choice(rows, 20)
    for step in range(12):
        if step == 6:
            if change == "crop":
                made.crop(-2)
            elif change == "reorder":
                made.reorder_cache(torch.tensor([1, 0]))
            elif change == "repeat":
                made.batch_repeat_interleave(2)
                rows = 4
            elif change == "select":
                made.batch_select_indices(torch.tensor([1]))
                rows = 1
            if rows != len(made.reading.rows):
                made.reading = choice(rows, 20)
        keys, _ = made.update(*tokens(rows, 3 if change == "several tokens" and step == 6 else 1))
        assert keys.equal(fresh(made.keys, made.reading, 20))  # type: ignore[arg-type]


@pytest.mark.parametrize("first", [torch.inference_mode, nullcontext])
def test_a_step_may_have_gradients_or_none(first) -> None:
    """Nothing that a gradient hangs on is written over, and what inference mode made is left alone outside of it."""
    torch.manual_seed(0)
    made = layer(1, 20)
    made.reading = choice(1, 20)
    with first():
        for _ in range(3):
            made.update(*tokens(1, 1))
    made.keys, made.values = made.keys.clone(), made.values.clone()  # type: ignore[union-attr]
    with torch.enable_grad():
        first_keys, values = tokens(1, 1)
        first_keys.requires_grad_(True)
        read = [made.update(first_keys, values)[0], *(made.update(*tokens(1, 1))[0] for _ in range(3))]
        torch.stack([x.square().sum() for x in read]).sum().backward()
    assert first_keys.grad is not None
    assert torch.allclose(first_keys.grad, 8 * first_keys.detach())
