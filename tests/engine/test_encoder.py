"""The stage `encoder` on towers that are wrapped alone: what merges, what it is made of, and what stays as it was."""

from __future__ import annotations

import copy
import math
import threading
from typing import Any

import pytest
import torch
from torch import Tensor

import vtc
from tests.engine.towers import PATCHES, TOWERS, pictures, run, tower
from vtc.models.tower import tower_for

Row = list[float]
NAMES = list(TOWERS)


def cosine(a: Row, b: Row) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True)) / math.hypot(*a) / math.hypot(*b)


def pairs(keys: list[Row], prefix: int, gone: int) -> dict[int, int]:
    """ToMe's: who joins whom. Even rows look among the odd ones; the prefix neither looks nor is looked at."""
    looking = [i for i in range(0, len(keys), 2) if i >= prefix]
    found = [j for j in range(1, len(keys), 2) if j >= prefix]
    best = {i: max(found, key=lambda j: cosine(keys[i], keys[j])) for i in looking}
    ranked = sorted(looking, key=lambda i: -cosine(keys[i], keys[best[i]]))
    return {i: best[i] for i in ranked[:gone]}


class ByHand:
    """A timm tower's blocks, row by row, with ToMe between the two additions."""

    def __init__(self, model: Any, proportional: bool) -> None:
        self.model, self.prefix, self.proportional = model, model.num_prefix_tokens, proportional

    def __call__(self, x: list[Tensor], left: tuple[int, ...]) -> tuple[list[Tensor], list[list[int]]]:
        """Rows that are left, and which tokens are in each."""
        groups = [[i] for i in range(len(x))]
        for block, count in zip(self.model.blocks, left, strict=True):
            keys, mixed = self.attend(block, x, [len(group) for group in groups])
            x = [row + block.ls1(own) for row, own in zip(x, mixed, strict=True)]
            joins = pairs(keys, self.prefix, len(x) - self.prefix - count)
            for i, j in joins.items():
                a, b = len(groups[i]), len(groups[j])
                x[j] = (a * x[i] + b * x[j]) / (a + b)
                groups[j] = groups[j] + groups[i]
            rest = [i for i in range(len(x)) if i not in joins]
            x, groups = [x[i] for i in rest], [groups[i] for i in rest]
            x = [row + block.ls2(block.mlp(block.norm2(row))) for row in x]
        return x, groups

    def attend(self, block: Any, x: list[Tensor], sizes: list[int]) -> tuple[list[Row], list[Tensor]]:
        heads, width = block.attn.num_heads, block.attn.head_dim
        made = [block.attn.qkv(block.norm1(row)).view(3, heads, width) for row in x]
        q = [[block.attn.q_norm(own[0][h]) for h in range(heads)] for own in made]
        k = [[block.attn.k_norm(own[1][h]) for h in range(heads)] for own in made]
        keys = [[sum(float(one[h][c]) for h in range(heads)) / heads for c in range(width)] for one in k]
        out = []
        for i in range(len(x)):
            parts = []
            for h in range(heads):
                logits = [float(q[i][h] @ k[j][h]) / width**0.5 for j in range(len(x))]
                if self.proportional:
                    logits = [a + math.log(s) for a, s in zip(logits, sizes, strict=True)]
                top = max(logits)
                share = [math.exp(a - top) for a in logits]
                parts.append(sum((s / sum(share)) * own[2][h] for s, own in zip(share, made, strict=True)))
            out.append(block.attn.proj(torch.cat(parts)))
        return keys, out


@pytest.mark.parametrize("proportional", [True, False])
@pytest.mark.parametrize("name", ["timm", "timm-average", "timm-registers", "timm-distilled"])
@torch.no_grad()
def test_tome_is_what_its_paper_says(name: str, proportional: bool):
    model, pixels = tower(name), pictures(1)
    x = model.norm_pre(model._pos_embed(model.patch_embed(pixels)))[0]
    left = vtc.ToMe(keep=6).counts(PATCHES, 4)
    rows, groups = ByHand(model, proportional)(list(x), left)
    expected = torch.empty_like(x)
    for row, group in zip(rows, groups, strict=True):
        expected[group] = row
    vtc.wrap(model, "tome", keep=6, proportional=proportional)
    torch.testing.assert_close(run(model, pixels)[0], model.norm(expected), atol=2e-5, rtol=1e-4)
    prefix = model.num_prefix_tokens
    (span,) = vtc.report(model).spans
    found = [sorted((span.source == i).nonzero()[:, 0].tolist()) for i in range(span.tokens_out)]
    assert sorted(found) == sorted([sorted(i - prefix for i in group) for group in groups if group[0] >= prefix])


@pytest.mark.parametrize("name", NAMES)
def test_everything_that_is_handed_over_is_full_length_and_keep_is_exact(name: str):
    model = tower(name)
    whole = run(model, pictures())
    vtc.wrap(model, "tome", keep=0.375)
    short = run(model, pictures())
    assert short.shape == whole.shape
    assert not torch.allclose(short, whole, atol=1e-3)
    report = vtc.report(model)
    assert [span.tokens_out for span in report.spans] == [6, 6]
    for row, span in enumerate(report.spans):
        patches = short[row, -PATCHES:]
        torch.testing.assert_close(patches, patches[span.kept][span.source])
    assert report.tower is not None
    assert report.tower.tokens_by_block[-1] == 12


@pytest.mark.parametrize("name", NAMES)
def test_keeping_everything_changes_nothing_and_unwrapping_leaves_no_trace(name: str):
    model = tower(name)
    before, hooks = run(model, pictures()), count_hooks(model)
    vtc.wrap(model, "tome", keep=1.0)
    torch.testing.assert_close(run(model, pictures()), before, rtol=0, atol=0)
    vtc.wrap(model, "tome", keep=0.5)
    run(model, pictures())
    vtc.unwrap(model)
    torch.testing.assert_close(run(model, pictures()), before, rtol=0, atol=0)
    assert count_hooks(model) == hooks
    assert "_vtc_engine" not in vars(model)


def count_hooks(model: Any) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


@pytest.mark.parametrize("name", NAMES)
def test_merging_exact_copies_changes_nothing(name: str):
    """Every second token after the embedding is a copy of the one before it: ToMe merges those, and with proportional
    attention nobody can tell."""
    model = tower(name)
    facts = tower_for(model)
    first, prefix = facts.blocks(model)[0], facts.prefix(model)

    def copied(module: Any, args: Any) -> Any:
        x = args[0].clone()
        start = prefix % 2 + prefix  # pairs (even, odd), as every second row looks at the others
        x[:, start + 1 :: 2] = x[:, start : -1 if (x.shape[1] - start) % 2 else None : 2]
        return (x, *args[1:])

    handle = first.register_forward_pre_hook(copied)
    whole = run(model, pictures())
    vtc.wrap(model, "tome", keep=9)
    torch.testing.assert_close(run(model, pictures()), whole, atol=1e-4, rtol=1e-4)
    vtc.wrap(model, "tome", keep=9, proportional=False)
    assert not torch.allclose(run(model, pictures()), whole, atol=1e-3)
    handle.remove()


@pytest.mark.parametrize("name", NAMES)
def test_rows_of_a_batch_do_not_meet(name: str):
    model = vtc.wrap(tower(name), "tome", keep=0.5)
    batch = pictures(3)
    together = run(model, batch)
    for row in range(3):
        torch.testing.assert_close(run(model, batch[row : row + 1])[0], together[row], atol=1e-5, rtol=1e-4)


def test_threads_do_not_meet():
    model = vtc.wrap(tower("timm"), "tome", keep=0.5)
    inputs = [pictures(1 + i % 3, seed=i) for i in range(6)]
    expected, found = [run(model, x) for x in inputs], {}

    def work(i: int) -> None:
        for _ in range(5):
            found[i] = run(model, inputs[i]), len(vtc.report(model).spans)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(inputs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, x in enumerate(expected):
        torch.testing.assert_close(found[i][0], x)
        assert found[i][1] == len(inputs[i])


def test_a_deep_copy_is_wrapped_by_itself():
    model = vtc.wrap(tower("clip"), "tome", keep=0.5)
    short = run(model, pictures())
    other = copy.deepcopy(model)
    vtc.unwrap(model)
    whole = run(model, pictures())
    torch.testing.assert_close(run(other, pictures()), short)
    vtc.unwrap(other)
    torch.testing.assert_close(run(other, pictures()), whole)


def test_hidden_states_of_transformers_are_full_length_plain_tensors():
    model = tower("clip")
    with torch.no_grad():
        model(pictures(), output_hidden_states=True)  # its own hooks are there first
        vtc.wrap(model, "tome", keep=0.5)
        states = model(pictures(), output_hidden_states=True).hidden_states
    assert [(type(x), x.shape[1]) for x in states] == [(Tensor, PATCHES + 1)] * 5


def test_intermediates_of_timm_are_full_grids():
    model = vtc.wrap(tower("timm"), "tome", keep=0.5)
    with torch.no_grad():
        final, states = model.forward_intermediates(pictures())
        (early,) = model.forward_intermediates(pictures(), indices=[1], stop_early=True, intermediates_only=True)
    torch.testing.assert_close(final, run(model, pictures()))
    assert [x.shape for x in states] == [(2, 24, 4, 4)] * 4
    torch.testing.assert_close(early, states[1])


def test_gradients_reach_the_pixels_and_the_weights():
    model = vtc.wrap(tower("timm"), "tome", keep=0.5)
    with torch.enable_grad():
        pixels = pictures().requires_grad_()
        model(pixels).sum().backward()
    assert pixels.grad is not None
    assert float(pixels.grad.abs().sum()) > 0
    assert all(p.grad is not None for p in model.blocks.parameters())


def test_the_released_order_is_followed():
    """As the authors' code leaves them: those that looked in vain, then those that were looked at."""
    tokens = torch.tensor([[9.0, 0, 0], [0, 1, 0.2], [1, 0, 0], [0, 1, 0], [1, 0.1, 0], [0, 0, 1], [1, 1, 1]])
    from vtc.methods.base.encoder import BlockTokens

    block = BlockTokens(tokens[None], torch.ones(1, 7), 1, 1, 0, 1)
    joined = vtc.ToMe(order="released").join(block)
    assert joined.stays is not None
    joins = pairs(tokens.tolist(), 1, 1)
    assert joined.target[0].tolist() == [joins.get(i, i) for i in range(7)]
    assert joined.stays[0].tolist() == [i for i in (0, 2, 4, 6) if i not in joins] + [1, 3, 5]
