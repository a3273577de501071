"""dart in loops over Python numbers, from arXiv 2502.11494, section 4, and facts of the released code."""

import math
from typing import Any

import pytest
import torch

import vtc
from tests.methods.definitions import defines
from tests.methods.eager import eager

N, TEXT = 40, 9


def seeded(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def loudest(keys, count):
    """Rows of keys whose numbers' absolute values add up to most, in that order."""
    return sorted(range(len(keys)), key=lambda i: (-sum(map(abs, keys[i])), i))[:count]


def cosine(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True)) / math.hypot(*a) / math.hypot(*b)


def define(lists, keep, pivots, text_pivots, turn=lambda pairs: pairs):
    """Tokens kept, in order. `turn` says whose turn it is, of (is text, number) pairs by falling norm."""
    keys, text_keys, states, text_states = lists
    kept = loudest(keys, min(pivots, keep))
    turns = turn([(False, i) for i in kept] + [(True, i) for i in loudest(text_keys, text_pivots)])
    missing = keep - len(kept)
    for number, (is_text, i) in enumerate(turns):
        pivot = text_states[i] if is_text else states[i]
        left = sorted((j for j in range(len(keys)) if j not in kept), key=lambda j: cosine(pivot, states[j]))
        kept += left[: missing // len(turns) + (number < missing % len(turns))]
    return sorted(kept)


def signals(seed) -> dict[str, Any]:
    return {
        "layer_keys": seeded(N, 2, 5, seed=seed),
        "text_keys": seeded(TEXT, 2, 5, seed=seed + 1),
        "final_states": seeded(N, 8, seed=seed + 2),
        "text_final_states": seeded(TEXT, 8, seed=seed + 3),
    }


def lists(given):
    return [value.flatten(1).tolist() for value in given.values()]


@defines("dart", "pivots", "text_pivots")
@pytest.mark.parametrize(("pivots", "text_pivots"), [(4, 4), (1, 0), (2, 3), (7, 20)])
@pytest.mark.parametrize("keep", [1, 2, 13, 39, 40])
def test_pivots_take_turns(pivots, text_pivots, keep):
    given = signals(keep)
    method = vtc.DART(keep=keep, pivots=pivots, text_pivots=text_pivots)
    chosen = vtc.select(method, torch.zeros(N, 3), **given)  # the states as they are do not matter
    assert chosen.anchor.tolist() == define(lists(given), keep, pivots, text_pivots)


@defines("dart", "order")
@pytest.mark.parametrize(("pivots", "text_pivots", "table"), [(4, 4, 32), (2, 2, 8), (3, 2, 32)])
@pytest.mark.parametrize("seed", range(8))
def test_the_released_order(pivots, text_pivots, table, seed):
    """By place modulo the size of the table of a set, which has 8 entries, and 32 when more than four are filled."""
    given, places = signals(seed), {False: list(range(35, 35 + N)), True: list(range(35 + N, 35 + N + TEXT))}
    slots = []

    def turn(pairs):
        slots[:] = [places[is_text][i] % table for is_text, i in pairs]
        return sorted(pairs, key=lambda pair: places[pair[0]][pair[1]] % table)

    expected = define(lists(given), 21, pivots, text_pivots, turn)
    if len(set(slots)) < len(slots):
        return  # where two fall on one entry, the second is put behind it
    method = vtc.DART(keep=21, pivots=pivots, text_pivots=text_pivots, order="released")
    more: dict[str, Any] = {"places": torch.tensor(places[False]), "text_places": torch.tensor(places[True])}
    assert vtc.select(method, torch.zeros(N, 3), **given, **more).anchor.tolist() == expected


def test_the_orders_differ():
    given = signals(3)
    more: dict[str, Any] = {"places": torch.arange(35, 35 + N), "text_places": torch.arange(35 + N, 35 + N + TEXT)}
    kept = [
        vtc.select(vtc.DART(keep=21, order=order), torch.zeros(N, 3), **given, **more).anchor.tolist()
        for order in ("norm", "released")
    ]
    assert kept[0] != kept[1]


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "internvl"])
@pytest.mark.parametrize("order", ["norm", "released"])
def test_what_is_chosen_in_a_model(family, order):
    """Keys of the layer before from transformers' own cache, states through the language model's own last norm."""
    seen = eager(family)
    keys = seen.keys[0].transpose(0, 1).flatten(1).double().tolist()
    with torch.no_grad():
        states = seen.model.model.language_model.norm(seen.states[1]).double().tolist()
    own, said = [[rows[i] for i in seen.visual] for rows in (keys, states)], seen.text
    text = [[rows[t] for t in said] for rows in (keys, states)]

    def turn(pairs):
        if order == "norm":
            return pairs
        place = {pair: said[pair[1]] if pair[0] else seen.visual[pair[1]] for pair in pairs}
        return sorted(pairs, key=lambda pair: list(set(place.values())).index(place[pair]))

    expected = define((own[0], text[0], own[1], text[1]), 7, 2, 2, turn)
    assert seen.kept(vtc.DART(keep=7, pivots=2, text_pivots=2, layers=(1,), order=order)) == expected


def test_raw_states_would_choose_others():
    """The last norm matters: its weights are not all alike."""
    seen = eager()
    with torch.no_grad():
        normed = seen.model.model.language_model.norm(seen.states[1])
    cosines = [torch.cosine_similarity(x[seen.visual][0], x[seen.visual], dim=-1) for x in (seen.states[1], normed)]
    assert (cosines[0].argsort() != cosines[1].argsort()).any()


def test_places_do_not_count_padding():
    """A row chooses as it does alone, where the order of turns depends on places; keys, too, are turned from 0 on."""
    seen, found = eager(), []
    for pads in (0, 5):
        inputs = dict(seen.inputs)
        for name in ("input_ids", "attention_mask"):
            inputs[name] = torch.nn.functional.pad(inputs[name], (pads, 0))
        inputs["position_ids"] = (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)
        with vtc.wrapped(seen.model, vtc.DART(keep=9, layers=(1,), order="released")) as model:
            model(**inputs)
            found.append(vtc.report(model).spans[0].kept.tolist())
    assert found[0] == found[1]
