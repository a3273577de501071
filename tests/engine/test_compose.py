"""Patches leave before the tower, merge or leave inside of it, and tokens leave behind it: the whole model equals the
one of full length, in whose tower nothing that is gone can be seen and what has merged lies side by side as copies.

As many copies as patches attract as much attention as one row that weighs as much as all of them, so that the oracle
needs no weights: it takes the mean of what merges, and goes on with a copy of it in each patch's place.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, ClassVar, NamedTuple

import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import vtc
from tests.engine.test_oracle import GREEDY, assert_rows_equal
from tests.engine.test_pixels import small, text_logits
from tests.engine.test_threads import answer, assert_same, together
from tests.families import batch, model_of
from tests.oracle import decisions, oracle
from tests.tower_oracle import tower_oracle
from vtc.engine.tower_blocks import visit_here
from vtc.engine.tower_patches import patches_there
from vtc.media.prompts import prompt
from vtc.models import adapter_for
from vtc.models.tower import tower_for

CROPS = ("llava", "llava_siglip", "llava_next", "internvl")
PACKED = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
FAMILIES = (*CROPS, *PACKED)
INSIDE = {
    "tome": "tome(stage=encoder, keep=0.3)",
    "pitome": "pitome(stage=encoder, keep=0.3)",
    "vtc-cls": "vtc-cls(stage=encoder, keep=0.3)",
    "random": "random(stage=encoder, keep=0.3)",
    "zerotprune": "zerotprune(keep=0.3)",
}
REFUSED = [(family, method) for family in PACKED for method in ("vtc-cls", "random", "zerotprune")]
CELLS = [(family, method) for family in FAMILIES for method in INSIDE if (family, method) not in REFUSED]


class Step(NamedTuple):
    """Behind a block, per patch of a picture that came whole: the place of the one it is shown as, [B, T] (of packed
    rows, units [1, U] in the blocks' order), and whether it has left."""

    shown: Tensor
    gone: Tensor


def steps_of(model: Any, inputs: Any) -> tuple[list[Tensor], list[list[Step]]]:
    """What the runs of a wrapped model's tower see, as `tower_oracle` takes it, and their steps, block by block."""
    tower = adapter_for(model).tower(model)
    facts, seen, steps, handles = tower_for(tower), [], [], []

    def note(i: int, module: Any, args: Any) -> None:
        visit, there = visit_here(), patches_there()
        assert visit is not None
        assert there is not None
        if i == 0:
            prefix = torch.ones(len(there), int(facts.has_cls), dtype=torch.bool)
            seen.append(there if there.dim() == 1 else torch.cat([prefix, there], dim=1))
            steps.append([])
        whole = seen[-1][None] if there.dim() == 1 else seen[-1]
        if there.dim() == 1 and (order := facts.order(tower, grids[-1])) is not None:
            whole = whole[:, order]
        own = torch.arange(whole.shape[1]).repeat(len(whole), 1)
        gone = ~whole
        if visit.rows is not None:
            for b in range(len(whole)):
                at = whole[b].nonzero()[:, 0].tolist()
                for j, place in enumerate(at):
                    own[b, place] = at[int(visit.rows.anchor[b, visit.rows.shown[b, j]])]
                    if visit.rows.gone is not None and bool(visit.rows.gone[b, j]):
                        gone[b, place] = True
        steps[-1].append(Step(own, gone))

    grids: list[Tensor] = []
    handles.append(
        tower.register_forward_pre_hook(lambda _, args, kw: grids.append(kw.get("grid_thw")), with_kwargs=True)
    )
    handles += [block.mlp.register_forward_pre_hook(partial(note, i)) for i, block in enumerate(facts.blocks(tower))]
    model(**inputs)
    for handle in handles:
        handle.remove()
    return seen, steps


@contextmanager
def copies(
    model: Any, seen: list[Tensor], steps: list[list[Step]], received: list[Tensor] | None = None
) -> Iterator[None]:
    """The plain model, in whose tower patches are as the `steps` say; `received` as in `tower_oracle`."""
    tower = adapter_for(model).tower(model)
    facts, handles, run, given = tower_for(tower), [], [-1], {}
    units = seen[0].dim() == 1

    def rows(x: Tensor) -> Tensor:
        return x.view(1, len(x) // 4, -1) if units else x

    def before(i: int, block: Any, args: Any, kwargs: Any) -> Any:
        run[0] += i == 0
        given["x"] = args[0] if args else kwargs["hidden_states"]
        if i == 0:
            return None
        last = steps[run[0] % len(steps)][i - 1]
        if not units:
            masked.seen = ~last.gone
            return None
        places = (4 * last.shown[0][:, None] + torch.arange(4)).flatten()  # a row turns as the one it stands at
        tables = tuple(x[places] for x in kwargs["position_embeddings"])
        return args, {**kwargs, "position_embeddings": tables}

    def after(i: int, block: Any, module: Any, args: Any, output: Any) -> Any:
        step, a = steps[run[0] % len(steps)][i], output[0] if isinstance(output, tuple) else output
        scale = getattr(block, "lambda_1", 1.0)
        x = rows(given["x"])
        y = x + rows(a * scale)
        wanted = y.clone()
        for b in range(len(x)):
            for row in set(step.shown[b].tolist()):
                same = step.shown[b] == row
                if bool((same & ~step.gone[b]).any()):
                    wanted[b, same] = y[b, same & ~step.gone[b]].mean(dim=0)
        a = ((wanted - x).view(a.shape)) / scale
        return (a, *output[1:]) if isinstance(output, tuple) else a

    with tower_oracle(model, seen, received) as masked:
        for i, (block, attention) in enumerate(zip(facts.blocks(tower), facts.attentions(tower), strict=True)):
            handles.append(block.register_forward_pre_hook(partial(before, i), with_kwargs=True))
            handles.append(attention.register_forward_hook(partial(after, i, block)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def assert_the_same_is_left(family: str, model: Any, last: list[Step], made: Any) -> None:
    """The language model reads, of all the tokens that one row has become, the one that stands at it."""
    if family not in ("llava", "llava_siglip", "llava_next"):
        return
    first = int(tower_for(model.model.vision_tower).has_cls)
    shown = torch.cat([step.shown[:, first:] - first for step in last])  # [crops, patches]
    shown = shown + shown.shape[1] * torch.arange(len(shown))[:, None]
    shown, gone = shown.flatten().tolist(), torch.cat([step.gone[:, first:] for step in last]).flatten().tolist()
    for span, choice in zip(model._vtc_engine.trace.spans, made.steps[1][1], strict=True):
        place = {p: int(span.patch[i]) for i, p in enumerate(span.index.tolist())}  # in the row -> patch
        reads: dict[int, list[int]] = {}
        for p in choice.index:
            patch = place[p]
            if patch < 0 or not gone[patch]:
                reads.setdefault(shown[patch] if patch >= 0 else -1 - p, []).append(p)
        wanted = [next((p for p in own if place[p] == row), own[0]) for row, own in reads.items()]
        assert choice.slots == sorted(wanted)
        for p, source in zip(choice.index, choice.source, strict=True):
            row = -1 - p if place[p] < 0 else shown[place[p]]
            at = place[choice.index[choice.anchor[source]]]
            assert (source < 0) == (place[p] >= 0 and gone[place[p]])
            assert source < 0 or at == place[wanted[list(reads).index(row)]]


def equal_to_oracle(family: str, methods: Any, items: Any, side: str = "left") -> Any:
    model, inputs = model_of(family), batch(family, items, side)
    with torch.no_grad(), vtc.wrapped(model, methods):
        seen, steps = steps_of(model, inputs)
        model.model.rope_deltas = None
        logits = model(**inputs).logits
        made, report = decisions(model), vtc.report(model)
        assert_the_same_is_left(family, model, [run[-1] for run in steps], made)
        ids = model.generate(**inputs, **GREEDY) if side == "left" else None
        compact = model._vtc_engine.compact
    with torch.no_grad(), oracle(model, made, len(items), compact), copies(model, seen, steps):
        expected = model(**inputs).logits
        expected_ids = model.generate(**inputs, **GREEDY) if side == "left" else None
    assert_rows_equal(logits, expected, inputs["attention_mask"].bool(), made)
    assert ids is None or ids.equal(expected_ids)
    return report


@pytest.mark.parametrize(("family", "method"), CELLS)
def test_matrix(family: str, method: str) -> None:
    methods = [vtc.PixelPrune(keep=0.6), INSIDE[method], vtc.DivPrune(keep=0.2)]
    report = equal_to_oracle(family, methods, [[0], [1], []] if family == "llava_next" else [[0], [1, 2], []])
    first, inside, last = report.stages
    assert [first.name, inside.name, last.name] == ["pixelprune", method, "divprune"]
    assert first.tokens_out == inside.tokens_in < first.tokens_in
    assert last.tokens_in == inside.tokens_out > last.tokens_out
    shortens = family in ("llava", "llava_siglip", "llava_next")
    assert (inside.tokens_out < inside.tokens_in) == shortens
    assert any("hands over all patches again" in note for note in report.notes) == (not shortens)


@pytest.mark.parametrize("later", [vtc.VTCCLS(keep=0.2, positions="compact"), "fastv(keep=0.2, layers=(1,))", "h2o"])
@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_every_later_stage_follows(family: str, later: Any) -> None:
    report = equal_to_oracle(family, [vtc.PixelPrune(keep=0.6), INSIDE["tome"], later], [[0], [1, 2]], "right")
    assert len(report.stages) == 3


def test_videos_and_pictures_at_once() -> None:
    equal_to_oracle("qwen2_5_vl", [vtc.PixelPrune(keep=0.7), "tome(stage=encoder, keep=0.4)"], [["v0", 1], [2]])


class Probe(vtc.Method):
    """Keeps what it is shown."""

    needs: ClassVar[tuple[str, ...]] = ("cls_attention", "received_attention")
    shown: ClassVar[list[list[Tensor]]] = []

    def tower_layers(self, depth: int, feature_layer: int) -> tuple[int, ...]:
        return (feature_layer,)

    def select(self, tokens: vtc.VisualTokens) -> vtc.Selection:
        self.shown.append([tokens.index, *(tokens.read(name)[0] for name in self.needs)])
        return vtc.Selection.identity(len(tokens.features))


@pytest.mark.parametrize("family", ["llava", "llava_siglip", *PACKED])
def test_signals_are_of_the_whole_picture_and_those_of_the_oracle(family: str) -> None:
    """Added up by hand from the attention of the full-length tower, onto each patch that is there."""
    model, inputs = model_of(family), batch(family, [[0]])
    Probe.shown.clear()
    methods = [vtc.PixelPrune(keep=0.6), "tome(stage=encoder, keep=0.3, shorten=False)", Probe()]
    with torch.no_grad(), vtc.wrapped(model, methods):
        seen, steps = steps_of(model, inputs)
    received: list[Tensor] = []
    with torch.no_grad(), copies(model, seen, steps, received):
        model.model.rope_deltas = None
        model(**inputs)
    tower = adapter_for(model).tower(model)
    last = adapter_for(model).feature_layer(model)
    (index, cls, got), facts = Probe.shown[0], tower_for(tower)
    if family in PACKED:
        units = received[last].view(-1, 4).sum(dim=1)
        order = facts.order(tower, inputs["image_grid_thw"])
        expected = torch.empty(len(units)).index_copy_(0, torch.arange(len(units)) if order is None else order, units)
        (there,), heard = seen, expected
    else:
        first, whole = int(facts.has_cls), seen[0][0]
        expected = received[last][0, whole].mean(dim=0)[first:]
        heard, there = (received[last][0, 0, first:] if first else expected), whole[first:]
    assert len(got) == len(cls) == len(there) > len(index) == int(there.sum())
    torch.testing.assert_close(got, torch.where(there, expected, 0.0), atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(cls, torch.where(there, heard, 0.0), atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_share_is_one_of_whole_pictures(family: str) -> None:
    model, inputs = model_of(family), batch(family, [[0, 1]])
    with torch.no_grad(), vtc.wrapped(model, [vtc.PixelPrune(keep=0.5), "tome(stage=encoder, keep=0.4)"]):
        model(**inputs)
        tower: Any = vtc.report(model).tower
    pictures = [int(grid.prod()) // 4 for grid in inputs["image_grid_thw"]] if family in PACKED else None
    if pictures is None:
        crops = tower.pictures
        assert tower.tokens_by_block[-1] == crops * round(0.4 * tower.tokens / crops)
    else:
        assert tower.tokens == 4 * sum(pictures)
        assert tower.tokens_by_block[-1] == 4 * sum(round(0.4 * n) for n in pictures)
    model.model.rope_deltas = None
    nothing = vtc.ToMe(stage="encoder", keep=0.6, positions="original")
    with torch.no_grad(), vtc.wrapped(model, [vtc.PixelPrune(keep=0.4), nothing]):
        logits = model(**inputs).logits
        (note,) = vtc.report(model).notes
    assert note.startswith("tome: keep=0.6 is meant of whole pictures, and no more than that had been left")
    model.model.rope_deltas = None
    with torch.no_grad(), vtc.wrapped(model, vtc.PixelPrune(keep=0.4)):
        torch.testing.assert_close(model(**inputs).logits, logits)
    model.model.rope_deltas = None


@pytest.mark.parametrize(("family", "method"), [("llava", "random"), ("internvl", "tome"), ("qwen2_5_vl", "tome")])
def test_one_account_is_what_torch_counts(family: str, method: str) -> None:
    """Block by block, but for what choosing costs: products of keys with keys."""
    model, inputs = model_of(family, "eager"), batch(family, [[0, 1]])
    tower = adapter_for(model).tower(model)

    def counted() -> list[int]:
        found, handles = [], []
        for block in tower_for(tower).blocks(tower):
            mode = FlopCounterMode(display=False)
            handles.append(block.register_forward_pre_hook(lambda *_, m=mode: m.__enter__() and None))
            handles.append(block.register_forward_hook(lambda *_, m=mode: m.__exit__(None, None, None), prepend=True))
            found.append(mode)
        with torch.no_grad():
            model(**inputs)
        model.model.rope_deltas = None
        for handle in handles:
            handle.remove()
        return [mode.get_total_flops() for mode in found]

    full = counted()
    with vtc.wrapped(model, [vtc.PixelPrune(keep=0.6), INSIDE[method]]):
        kept = counted()
        said: Any = vtc.report(model).tower
    assert [n for n, _ in said.flops_by_block] == full
    before, chosen = said.tokens, 0
    for (_, ours), theirs, after in zip(said.flops_by_block, kept, said.tokens_by_block, strict=True):
        assert ours <= theirs <= ours + 2 * before**2 * 32
        chosen += theirs > ours
        before = after
    assert chosen
    assert sum(kept) < 0.6 * sum(full)


@pytest.mark.parametrize("method", ["tome", "pitome"])
@pytest.mark.parametrize("family", PACKED)
def test_smaller_pictures_are_those_that_merge(family: str, method: str) -> None:
    """What the small picture alone comes to."""
    model, inputs = model_of(family), batch(family, [[0], [1, 2]])
    less = small(inputs, 12, "left")
    for more in ([], [vtc.PixelPrune(keep=0.6)]):
        methods = [*more, f"{method}(stage=encoder, keep=0.5)", vtc.DivPrune(keep=0.3)]
        with torch.no_grad(), vtc.wrapped(model, methods):
            expected = model(**less).logits
            alone: Any = vtc.report(model)
        model.model.rope_deltas = None
        with torch.no_grad(), vtc.wrapped(model, [vtc.Downsample(keep=12), *methods]):
            found = model(**inputs).logits
            report: Any = vtc.report(model)
        model.model.rope_deltas = None
        assert [span.kept.tolist() for span in report.spans] == [span.kept.tolist() for span in alone.spans]
        assert report.tower.tokens_by_block == alone.tower.tokens_by_block
        for ours, theirs in zip(text_logits(found, inputs), text_logits(expected, less), strict=True):
            torch.testing.assert_close(ours, theirs, atol=2e-4, rtol=2e-4)


def test_threads_do_not_meet() -> None:
    model = model_of("llava")
    asked = [batch("llava", rows) for rows in ([[0]], [[1, 2]], [[2], [3]])]
    with vtc.wrapped(model, [vtc.PixelPrune(keep=0.6), INSIDE["tome"], vtc.VTCCLS(keep=4)]):
        alone = [answer(model, inputs) for inputs in asked]
        for got, right in zip(together([partial(answer, model, x) for x in asked]), alone, strict=True):
            assert_same(got, right)


@pytest.mark.parametrize("method", INSIDE)
@pytest.mark.parametrize("name", ["tiny-llava", "tiny-qwen"])
def test_the_shipped_models_take_all_of_them_or_say_why_not(name: str, method: str) -> None:
    model, processor = vtc.load(name)
    picture = Image.effect_mandelbrot((140, 140), (-2, -1, 1, 1), 50).convert("RGB")
    inputs = processor(images=picture, text=prompt(processor, "What is shown?"), return_tensors="pt")
    for before in ("pixelprune", "downsample"):
        methods = [f"{before}(keep=0.6)", INSIDE[method], "divprune(keep=0.1)"]
        if name == "tiny-llava" and before == "downsample":
            said = "downsample resizes patches that are packed as Qwen's are"
        elif name == "tiny-qwen" and method in ("vtc-cls", "random", "zerotprune"):
            said = "whose pictures are packed into one row: there are tome"
        else:
            with torch.no_grad(), vtc.wrapped(model, methods):
                model.generate(**inputs, max_new_tokens=2)
                report: Any = vtc.report(model)
            assert [stage.name for stage in report.stages] == [before, method, "divprune"]
            assert report.spans[0].tokens_out == round(0.1 * report.stages[1].tokens_in) or before == "pixelprune"
            assert report.tower.flops[1] < 0.7 * report.tower.flops[0]
            continue
        with pytest.raises(ValueError, match=said):
            vtc.wrap(model, methods)
