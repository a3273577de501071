"""Rows that are added to visual tokens between decoder layers go where the tokens go: Qwen3-VL's behind layers, Granite
4 Vision's before."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

import vtc
from tests.engine.test_gradients import asked, assert_close, trained, whole_calls
from tests.engine.test_oracle import equal_to_oracle
from tests.engine.test_oracle_inside import equal_to_oracle as equal_inside
from tests.families import batch, model_of
from vtc.engine.companions import CompanionRows
from vtc.engine.plan import Places, Plan
from vtc.models.family import Companions
from vtc.selection import Selection

ROWS: Any = [[0], [1, 2], []]
BEHIND, BEFORE = Companions("where", "added"), Companions("where", "added", before=True)
LATE = pytest.mark.skipif("granite4_vision" not in vtc.list_families(), reason="newer than this transformers")


def plan() -> Plan:
    """A row of four tokens, of which the second and third are visual; the third stays."""
    places = Places((0,), (2,), torch.tensor([[0, 0], [1, 2]]))
    return Plan.of(1, 4, places, [Selection.prune(torch.tensor([1]), 2)])


def rows(names: Companions, layers: list[int]) -> CompanionRows:
    """Rows (10, 20), (11, 21), ... of those layers."""
    mask = torch.tensor([[False, True, True, False]])
    made = {i: torch.tensor([[10.0 + i], [20.0 + i]]) for i in layers}
    given: Any = made if names.before else [made[i] for i in layers]
    found = CompanionRows.take(names, {"where": mask[..., None] if names.before else mask, "added": given})
    assert found is not None
    return found


def shown(found: CompanionRows, layer: int, width: int) -> list[float] | None:
    made = found.add(layer, torch.zeros(1, width, 1))
    return None if made is None else made[0, :, 0].tolist()


def test_added_behind_layers() -> None:
    found = rows(BEHIND, [0, 1, 2])
    assert found.last == 2
    found.shorten(plan(), 1)
    assert shown(found, 0, 4) == [0, 10, 20, 0]
    assert shown(found, 1, 3) == [0, 21, 0]
    assert shown(found, 2, 3) == [0, 22, 0]
    assert shown(found, 3, 3) is None


def test_added_before_layers() -> None:
    found = rows(BEFORE, [0, 2, 3])
    assert found.last == 2  # behind which the last of them is added
    found.shorten(plan(), 2)  # after those of layer 2
    assert shown(found, 0, 4) == [0, 10, 20, 0]
    assert shown(found, 1, 4) is None
    assert shown(found, 2, 4) == [0, 12, 22, 0]
    assert shown(found, 3, 3) == [0, 23, 0]


def test_shortened_before_the_first_layer() -> None:
    found = rows(BEFORE, [0, 2])
    assert found.entering(torch.zeros(1, 4, 1))[0, :, 0].tolist() == [0, 10, 20, 0]
    embeds = torch.zeros(1, 3, 1)
    assert found.enter(plan(), embeds) is embeds
    assert shown(found, 0, 3) == [0, 20, 0]
    assert shown(found, 2, 3) == [0, 22, 0]


def test_what_a_method_writes_stands_in_for_the_first() -> None:
    """It lies in the embeddings, which go in empty."""
    found, made = rows(BEFORE, [1, 2]), plan()
    anchor, source = torch.tensor([1]), torch.tensor([-1, 0])
    selection = Selection(anchor, source, torch.tensor([0.0, 1.0]), torch.tensor([[7.0]]))
    made = Plan.of(1, 4, made.places, [selection])
    embeds = found.enter(made, torch.tensor([[[1.0], [7.0], [1.0]]]))
    assert embeds[0, :, 0].tolist() == [1, 0, 1]
    assert shown(found, 1, 3) == [0, 7, 0]
    assert shown(found, 2, 3) == [0, 22, 0]


def test_handed_back_as_they_came() -> None:
    for names, layers in ((BEHIND, [0, 1]), (BEFORE, [0, 3])):
        found = rows(names, layers)
        found.shorten(plan(), 0)
        kwargs: dict[str, Any] = {"added": {} if names.before else []}
        found.hand(kwargs, ours=False)
        assert kwargs["where"].flatten().tolist() == [False, True, False]
        assert kwargs["where"].dim() == (3 if names.before else 2)
        made: Any = kwargs["added"]
        assert type(made) is (dict if names.before else list)
        rows_made = list(made.values()) if isinstance(made, dict) else made
        assert [x.tolist() for x in rows_made] == [[[20.0 + i]] for i in layers]
        found.hand(kwargs, ours=True)
        assert kwargs == {"where": None, "added": None}


@LATE
@pytest.mark.parametrize("layer", [1, 2, 3, 4])
def test_tokens_may_go_before_any_layer(layer: int) -> None:
    equal_inside("granite4_vision", vtc.FastV(keep=0.4, layers=(layer,)), (ROWS, "left"))


@LATE
@pytest.mark.parametrize("method", ["tome", "prumerge", "vqtoken", "recoverable"])
def test_methods_that_write_tokens(method: str) -> None:
    equal_to_oracle("granite4_vision", "sdpa", ROWS, "left", method, keep=0.3)


@LATE
def test_hidden_states_are_the_models_own() -> None:
    """Of layers before the one at which tokens go: what goes into the first has the rows of the first already."""
    model, inputs = model_of("granite4_vision"), batch("granite4_vision", ROWS)
    real = inputs["attention_mask"].bool()
    with torch.no_grad():
        plain = model(**inputs, output_hidden_states=True).hidden_states
        for method in (vtc.FastV(keep=0.4, layers=(3,)), vtc.Random(keep=1.0)):
            with vtc.wrapped(model, method):
                found = model(**inputs, output_hidden_states=True).hidden_states
            for ours, theirs in zip(found[:4], plain[:4], strict=True):
                torch.testing.assert_close(ours[real], theirs[real])


@pytest.mark.parametrize(
    ("family", "method"),
    [
        ("qwen3_vl", "fastv(keep=0.4, layers=(1,))"),
        pytest.param("granite4_vision", "fastv(keep=0.4, layers=(2,))", marks=LATE),
        pytest.param("granite4_vision", "divprune(keep=0.4)", marks=LATE),
        pytest.param("granite4_vision", "prumerge(keep=0.4)", marks=LATE),
    ],
)
def test_checkpointing(family: str, method: str) -> None:
    """Layers that are computed again have the same rows; gradients of what makes these come along."""
    model, inputs = copy.deepcopy(model_of(family)).train(), asked(family, "divprune")
    tower = getattr(model.model, "vision_tower", None) or model.model.visual
    tower.requires_grad_(False)
    for name, module in model.model.named_children():
        module.requires_grad_(name != "language_model" and module is not tower)
    if family == "qwen3_vl":
        tower.deepstack_merger_list.requires_grad_(True)
    with vtc.wrapped(model, method):
        expected = trained(model, inputs)
        for reentrant in (False, True):
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
            assert_close(trained(model, inputs), expected)
            if not reentrant:
                with whole_calls(model, reentrant):
                    assert_close(trained(model, inputs), expected)
    assert len(expected[1]) > 4


@LATE
def test_signals_of_the_tower_come_along() -> None:
    """Its features travel in an output of their own, which `generate` makes before the forward."""
    report = equal_to_oracle("granite4_vision", "sdpa", ROWS, "left", "visionzip", keep=0.3)
    assert report.tokens_out < report.tokens_in


@LATE
def test_pictures_side_by_side() -> None:
    """Without a word between them: the sizes of the pictures say where one ends."""
    model, inputs = model_of("granite4_vision"), batch("granite4_vision", [[1, 2]])
    ids = inputs["input_ids"]
    keep = torch.ones_like(ids[0], dtype=torch.bool)
    visual = (ids[0] == 2).nonzero()[:, 0]
    keep[visual[visual.diff(append=visual[-1:] + 1) > 1] + 1] = False
    inputs |= {"input_ids": ids[:, keep], "attention_mask": inputs["attention_mask"][:, keep]}
    with torch.no_grad(), vtc.wrapped(model, "divprune", keep=0.5):
        model(**inputs)
        before = [(span.tokens_in, span.grid) for span in vtc.report(model).spans]
        model.generate(**inputs, max_new_tokens=1)
        assert [(span.tokens_in, span.grid) for span in vtc.report(model).spans] == before
    assert len(before) == 2
