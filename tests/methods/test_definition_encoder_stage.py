"""What the options of the stage `encoder` mean, on towers whose blocks are run by hand, row by row."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

import vtc
from tests.engine.towers import PATCHES, pictures, run, tower
from tests.families import batch, model_of
from tests.methods.definitions import defines
from vtc.models.tower import tower_for

Row = list[float]


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


@defines("MergingMethod", "proportional")
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


@defines("MergingMethod", "schedule")
def test_schedules_spread_what_goes():
    def gone(schedule: str) -> list[int]:
        counts = (400, *vtc.ToMe(keep=100, schedule=schedule).counts(400, 6))
        return [a - b for a, b in pairwise(counts)]

    assert gone("constant") == [50] * 6
    assert gone("decreasing") == [100, 80, 60, 40, 20, 0]
    left, counts = 400.0, []
    for share in (0, 0.2, 0.4, 0.6, 0.8, 1):  # of twice the mean: 0, 20, ..., 100; the last takes half of 200 at most
        counts.append(share * 100)
        left -= share * 100
    assert left == 100
    assert gone("increasing") == [0, 20, 40, 60, 80, 100]
    kept = [round(400 * (100 / 400) ** ((i + 1) / 6)) for i in range(6)]
    assert gone("geometric") == [a - b for a, b in zip((400, *kept), kept, strict=False)]


@defines("EncoderMethod", "stage", "shorten")
def test_where_a_method_acts_and_what_the_language_model_reads():
    model, inputs = model_of("llava"), batch("llava", [[0]])

    def came_to(**options: Any) -> tuple[bool, int]:
        with vtc.wrapped(model, vtc.ToMe(keep=9, **options)):
            model(**inputs)
            report = vtc.report(model)
        return report.tower is not None, report.tokens_out

    assert came_to() == came_to(stage="input") == (False, 9)  # behind the tower
    assert came_to(stage="encoder") == (True, 9)
    assert came_to(stage="encoder", shorten=False) == (True, 36)
    alone = vtc.wrap(tower("timm"), vtc.ToMe(keep=9))
    run(alone, pictures(1))
    assert vtc.report(alone).tower is not None


@defines("DroppingMethod", "block")
@pytest.mark.parametrize("name", ["clip", "siglip", "timm", "open-clip", "eva-rotary", "dinov3"])
def test_vtc_cls_drops_by_the_attention_of_blocks_so_far(name: str):
    model = tower(name)
    facts, seen = tower_for(model), {}
    prefix = facts.prefix(model)
    for i, attention in enumerate(facts.attentions(model)[:3]):  # the tower's own queries and keys
        block = facts.blocks(model)[i]
        for which, module in zip("qk", facts.listened(block, attention), strict=True):
            module.register_forward_hook(lambda m, a, out, key=(i, which): seen.__setitem__(key, out))
        attention.register_forward_pre_hook(
            lambda m, a, kwargs, i=i: seen.__setitem__((i, "kwargs"), kwargs), with_kwargs=True
        )
    run(model, pictures())
    scores = torch.zeros(2, PATCHES)
    for i in (1, 2):
        attention = facts.attentions(model)[i]
        ((q, k),) = facts.queries_keys(attention, seen[i, "q"], seen[i, "k"], seen[i, "kwargs"], None)
        weights = (q @ k.mT * q.shape[-1] ** -0.5).softmax(dim=-1).mean(dim=1)  # [B, T, T]
        scores += (weights[:, 0] if facts.cls_first(model) else weights.mean(dim=1))[:, prefix:]
    vtc.wrap(model, "vtc-cls", keep=5, block=2, start_layer=1)
    run(model, pictures())
    for row, span in enumerate(vtc.report(model).spans):
        assert span.kept.tolist() == scores[row].topk(5).indices.sort().values.tolist()
