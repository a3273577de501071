"""The stage `encoder` in Qwen's towers: 2 x 2 patches merge as a whole, within windows, frames and pictures."""

from __future__ import annotations

import sys
from itertools import accumulate
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

import vtc
from tests.families import batch, model_of
from vtc.engine.tower_blocks import visit_here
from vtc.models.tower import tower_for

QWEN = ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"]


def tower_of(family: str, attention: str = "sdpa") -> Any:
    return model_of(family, attention).model.visual


def packed(family: str, seeds: list[int]) -> dict[str, Tensor]:
    inputs = batch(family, [seeds])
    return {"hidden_states": inputs["pixel_values"], "grid_thw": inputs["image_grid_thw"]}


def groups_of(family: str, inputs: dict[str, Tensor]) -> list[int]:
    """Units that attend within themselves in the first block."""
    tower, found = tower_of(family), []
    handle = tower.blocks[0].register_forward_pre_hook(
        lambda module, args, kwargs: found.append(kwargs["cu_seqlens"]), with_kwargs=True
    )
    tower(**inputs)
    handle.remove()
    return [n // 4 for n in found[0].diff().tolist()]


@pytest.mark.parametrize("family", QWEN)
def test_merging_exact_copies_changes_nothing_where_there_are_no_positions(family: str):
    """Every second unit of a window is a copy of the one before it."""
    tower, inputs = tower_of(family), packed(family, [0, 1])
    groups = groups_of(family, inputs)
    starts = [0, *accumulate(groups)]

    def copied(module: Any, args: Any, kwargs: Any) -> Any:
        units = args[0].view(len(args[0]) // 4, -1).clone()
        for start, size in zip(starts, groups, strict=False):
            for j in range(1, size, 2):
                units[start + j] = units[start + j - 1]
        return (units.view(args[0].shape), *args[1:]), kwargs

    def still(module: Any, args: Any, output: Any) -> Any:
        return torch.ones_like(output[0]), torch.zeros_like(output[1])

    rotary = tower.rotary_pos_emb.register_forward_hook(still)
    handle = tower.blocks[0].register_forward_pre_hook(copied, with_kwargs=True)
    whole = tower(**inputs)
    sizes = [int(grid.prod()) // 4 for grid in inputs["grid_thw"]]
    left = sum(size - size // 2 for size in groups)
    if family == "qwen2_vl":  # one frame is one group: half of each picture
        assert groups == sizes
    try:
        vtc.wrap(tower, "tome", keep=left / sum(sizes))
        short = tower(**inputs)
        assert vtc.report(tower).tokens_out == left
        torch.testing.assert_close(short.pooler_output, whole.pooler_output, atol=1e-4, rtol=1e-3)
        vtc.wrap(tower, "tome", keep=left / sum(sizes), proportional=False)
        assert not torch.allclose(tower(**inputs).pooler_output, whole.pooler_output, atol=1e-3)
    finally:
        vtc.unwrap(tower)
        rotary.remove()
        handle.remove()


@pytest.mark.parametrize("method", ["tome", "pitome"])
@pytest.mark.parametrize("family", QWEN)
def test_units_merge_within_their_group_and_pictures_do_not_meet(family: str, method: str):
    tower, inputs = tower_of(family), packed(family, [0, 1])
    groups = groups_of(family, inputs)
    vtc.wrap(tower, method, keep=0.5)
    try:
        together = tower(**inputs).pooler_output
        (span,) = vtc.report(tower).spans
        group = torch.arange(len(groups)).repeat_interleave(torch.tensor(groups))
        assert torch.equal(group[span.kept][span.source], group)
        sizes = [int(grid.prod()) // 4 for grid in inputs["grid_thw"]]
        assert span.tokens_out == sum(round(size / 2) for size in sizes)
        for i, own in enumerate(together.split(sizes)):
            alone = tower(**packed(family, [i])).pooler_output
            torch.testing.assert_close(alone, own, atol=1e-4, rtol=1e-3)
    finally:
        vtc.unwrap(tower)


@pytest.mark.parametrize("family", QWEN)
def test_a_count_is_meant_of_each_picture_and_one_too_small_is_refused(family: str):
    tower, inputs = tower_of(family), packed(family, [0, 1])
    groups = groups_of(family, inputs)
    many = 15 if family == "qwen2_5_vl" else 9
    with vtc.wrapped(tower, "tome", keep=many):
        tower(**inputs)
        assert vtc.report(tower).tokens_out == 2 * many
    if len(groups) > 2:
        with (
            vtc.wrapped(tower, "tome", keep=1),
            pytest.raises(ValueError, match=r"tome cannot leave 1 of a picture's 24 tokens: it has \d+ windows or fr"),
        ):
            tower(**inputs)


@pytest.mark.parametrize(
    "method", ["vtc-cls", "random", "zerotprune", "tome(order=released)", "pitome(mode=bipartite)"]
)
def test_what_cannot_act_in_packed_rows_is_refused(method: str):
    tower = tower_of("qwen2_vl")
    with pytest.raises(ValueError, match=r"cannot act inside qwen2_vl_vision, whose pictures are packed into one row"):
        vtc.wrap(tower, method)


@pytest.mark.parametrize("family", QWEN)
def test_the_bias_is_what_is_added_to_the_logits(family: str):
    """Queries and keys of one channel more: their products are the old ones, and the bias of the key."""
    facts, attention = tower_for(tower_of(family)), tower_of(family).blocks[0].attn
    heads, rows = attention.num_heads, 8
    d = attention.qkv.out_features // 3 // heads
    made = torch.randn(rows, 3 * heads * d)
    cos, sin = torch.randn(rows, d), torch.randn(rows, d)
    bias = torch.rand(1, rows // 4)
    wide = facts.widened(attention, made, bias).view(rows, 3, heads, -1)
    tables = facts.with_bias(attention, {"position_embeddings": (cos, sin)}, bias)["position_embeddings"]

    def logits(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        a, b = x.chunk(2, dim=-1)
        turned = x * cos[:, None, None] + torch.cat([-b, a], dim=-1) * sin[:, None, None]
        return torch.einsum("ihd,jhd->hij", turned[:, 0], turned[:, 1]) * attention.scaling

    plain = logits(made.view(rows, 3, heads, d)[:, :2], cos, sin)
    expected = plain + bias.repeat_interleave(4, dim=1)
    torch.testing.assert_close(logits(wide[:, :2], *tables), expected, atol=1e-5, rtol=1e-4)
    values = facts.narrowed(attention, wide[:, 2].flatten(1))
    torch.testing.assert_close(values, made.view(rows, 3, -1)[:, 2])


class Probe(vtc.Method):
    """Keeps what it is shown."""

    needs: ClassVar[tuple[str, ...]] = ("received_attention",)
    shown: ClassVar[list[Tensor]] = []

    def tower_layers(self, depth: int, feature_layer: int) -> tuple[int, ...]:
        return tuple(range(feature_layer + 1))

    def select(self, tokens: vtc.VisualTokens) -> vtc.Selection:
        self.shown.append(tokens.signal("received_attention").clone())
        return vtc.Selection.identity(len(tokens.features))


@pytest.mark.parametrize("proportional", [True, False])
def test_signals_of_later_blocks_are_those_of_the_models_own_attention(proportional: bool, monkeypatch: Any):
    family = "qwen2_vl"
    model, inputs = model_of(family, "eager"), batch(family, [[0]])
    attentions, said, rows = [b.attn for b in model.model.visual.blocks], [], []
    source = sys.modules[type(attentions[0]).__module__]
    eager = source.eager_attention_forward

    def spy(module: Any, query: Tensor, key: Tensor, *args: Any, **kwargs: Any) -> Any:
        output, weights = eager(module, query, key, *args, **kwargs)
        if module is attentions[2]:
            said.append(weights)
        return output, weights

    def before(module: Any, args: Any) -> None:
        visit = visit_here()
        assert visit is not None
        rows.append(visit.passed.rows)

    monkeypatch.setattr(source, "eager_attention_forward", spy)
    Probe.shown.clear()
    method = vtc.ToMe(stage="encoder", keep=0.4, proportional=proportional)
    with vtc.wrapped(model, [method, Probe()]):
        handle = attentions[2].register_forward_pre_hook(before)
        model(**inputs)
        handle.remove()
    (weights,), (row,) = said, rows
    size = row.size[0].repeat_interleave(4)
    shared = (weights[0].mean(dim=0) / size).unflatten(1, (-1, 4)).sum(dim=-1)  # a token is its four patches
    queries = row.shown[0]
    received = shared.unflatten(0, (-1, 4))[queries].flatten(0, 1).mean(dim=0)[queries]
    torch.testing.assert_close(Probe.shown[0][2], received, atol=1e-6, rtol=1e-4)
    assert len(Probe.shown[0][2]) == 24


@pytest.mark.parametrize("family", QWEN)
def test_pictures_may_be_made_smaller_before(family: str):
    """pixels + encoder + input: what the tower is given, what it spends on it, and what the language model reads."""
    model, inputs = model_of(family), batch(family, [[0], [1]])
    with vtc.wrapped(model, ["downsample(keep=0.5)", "tome(stage=encoder, keep=0.5)", "divprune(keep=0.5)"]):
        model.generate(**inputs, max_new_tokens=2)
        report = vtc.report(model)
    assert [stage.name for stage in report.stages] == ["downsample", "tome", "divprune"]
    assert report.tower is not None
    small = report.stages[0].tokens_out
    assert report.tower.tokens == 4 * report.tokens_in
    assert report.tower.tokens_by_block[-1] == 4 * sum(round(0.5 * n) for n in (12, 18))
    assert report.stages[2].tokens_in == small
    text = str(report)
    assert "encoder" in text
