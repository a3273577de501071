"""H2O, Scissorhands and StreamingLLM as their papers define them, in loops over the attention of a plain model.

What is kept is read from the outside: a row of the wrapped model's cache is the plain cache's row with the same key.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import pytest
import torch

import vtc
from tests.families import IMAGE, batch, model_of
from tests.methods.definitions import defines

DEPTH = 3
KEEPS = (5, 18, 0.25)


@cache
def plain(images: int) -> tuple[Any, list[list[list[list[float]]]], list[list[int]]]:
    """(cache of the unwrapped model, attention[layer][head][query][key], slots of each picture) of one prompt."""
    inputs = batch("llava", [list(range(images))])
    out = model_of("llava", "eager")(**inputs, use_cache=True, output_attentions=True)
    slots = [i for i, token in enumerate(inputs["input_ids"][0].tolist()) if token == IMAGE]
    return out.past_key_values, [layer[0].tolist() for layer in out.attentions], [slots[:36], slots[36:]][:images]


def same_rows(keys: torch.Tensor, among: torch.Tensor) -> list[int]:
    """Which rows of `among` [1, G, S, d] those of `keys` [1, G, M, d] are."""
    mine, all_ = [x[0].transpose(0, 1).flatten(1).double() for x in (keys, among)]
    distance = torch.cdist(mine, all_)
    assert distance.amin(dim=1).max() < 1e-4
    return distance.argmin(dim=1).tolist()


def held(method: vtc.Method, images: int) -> list[list[int]]:
    """Slots of the prompt that each layer's cache holds after the prefill."""
    model = model_of("llava", "eager")
    with vtc.wrapped(model, method):
        layers = model(**batch("llava", [list(range(images))]), use_cache=True).past_key_values.layers
    return [same_rows(mine.keys, all_.keys) for mine, all_ in zip(layers, plain(images)[0].layers, strict=True)]


def expected(rule: Any, scope: str, keep: float, images: int, first: int = 0) -> list[list[int]]:
    """The same by `rule(attention[head][query][key], slots to choose among, how many to keep) -> slots kept`."""
    _, attention, pictures = plain(images)
    length = len(attention[0][0])
    units = pictures if scope == "visual" else [list(range(length))]
    kept_by_layer = []
    for layer in range(DEPTH):
        kept = set(range(length))
        for unit in units:
            count = keep if isinstance(keep, int) else round(keep * len(unit))
            if layer >= first:
                kept -= set(unit) - set(rule(attention[layer], unit, count))
        kept_by_layer.append(sorted(kept))
    return kept_by_layer


def best(slots: list[int], score: Mapping[int, float], count: int) -> list[int]:
    return sorted(slots, key=lambda slot: (-score[slot], slot))[:count]


def heavy_hitters(recent: float):
    """H2O, section 4: accumulated attention, here the mean over heads; a share of the budget is for the latest."""

    def rule(attention, slots, count):
        heads, length = len(attention), len(attention[0])
        score = {slot: 0.0 for slot in slots}
        for head in range(heads):
            for query in range(length):
                for slot in slots:
                    score[slot] += attention[head][query][slot] / heads
        latest = slots[len(slots) - int(recent * count) :]
        return best([slot for slot in slots if slot not in latest], score, count - len(latest)) + latest

    return rule


def voted_important(history: int, recent: int):
    """Scissorhands, section 4: each of the last `history` queries votes for what gets more than 1/t from it."""

    def rule(attention, slots, count):
        heads, length = len(attention), len(attention[0])
        votes = {slot: 0 for slot in slots}
        for query in range(max(0, length - history), length):
            for slot in slots:
                if slot <= query:
                    votes[slot] += sum(attention[h][query][slot] for h in range(heads)) / heads > 1 / (query + 1)
        latest = slots[len(slots) - min(recent, count) :]
        return best([slot for slot in slots if slot not in latest], votes, count - len(latest)) + latest

    return rule


def sinks_and_window(sinks: int):
    """StreamingLLM, section 3.2: the first tokens, and the latest ones."""

    def rule(attention, slots, count):
        first = slots[: min(sinks, count)]
        return first + slots[len(slots) - (count - len(first)) :]

    return rule


@defines("h2o", "recent", "scope")
@pytest.mark.parametrize("keep", KEEPS)
@pytest.mark.parametrize(
    ("scope", "recent", "share"),
    [("visual", None, 0.0), ("visual", 0.3, 0.3), ("all", None, 0.5), ("all", 0.0, 0.0), ("all", 0.25, 0.25)],
)
def test_h2o(scope, recent, share, keep):
    method = vtc.H2O(keep=keep, scope=scope, recent=recent)
    assert held(method, 2) == expected(heavy_hitters(share), scope, keep, 2)


@defines("scissorhands", "history", "recent", "scope")
@pytest.mark.parametrize("keep", KEEPS)
@pytest.mark.parametrize("history", [1, 9, 400])
@pytest.mark.parametrize(("scope", "recent", "latest"), [("visual", 10, 0), ("all", 3, 3), ("all", 10, 10)])
def test_scissorhands(scope, recent, latest, history, keep):
    """`recent` is for scope="all": the last tokens of a picture are not the latest of the conversation."""
    method = vtc.Scissorhands(keep=keep, scope=scope, recent=recent, history=history)
    assert held(method, 2) == expected(voted_important(history, latest), scope, keep, 2)


@defines("streaming", "sinks", "scope")
@pytest.mark.parametrize("keep", KEEPS)
@pytest.mark.parametrize("sinks", [0, 4, 99])
@pytest.mark.parametrize("scope", ["visual", "all"])
def test_streaming(scope, sinks, keep):
    method = vtc.Streaming(keep=keep, scope=scope, sinks=sinks)
    assert held(method, 2) == expected(sinks_and_window(sinks), scope, keep, 2)


@defines("CacheMethod", "first")
@pytest.mark.parametrize(("first", "layer"), [(0, 0), (1, 1), (2, 2), (0.34, 1), (0.6, 2)])
def test_the_first_layer_that_is_touched(first, layer):
    """A count of layers from 0, or a share of the depth."""
    assert held(vtc.Streaming(keep=7, first=first), 1) == expected(sinks_and_window(4), "visual", 7, 1, layer)
    assert held(vtc.H2O(keep=7, first=first), 1) == expected(heavy_hitters(0), "visual", 7, 1, layer)


@defines("CacheMethod", "every")
@pytest.mark.parametrize("every", [None, 1, 3])
@pytest.mark.parametrize(
    "method",
    [
        vtc.Streaming(keep=9, scope="all", sinks=2),
        vtc.H2O(keep=9, scope="all"),
        vtc.H2O(keep=9),
        vtc.Scissorhands(keep=9, scope="all", recent=2, history=5),
    ],
    ids=str,
)
def test_choosing_again_while_decoding(method, every):
    """H2O's algorithm 1, token by token: a step attends to what is held, adds to the scores, then some tokens go.

    In the first layer, whose queries and keys no eviction changes: its attention to the tokens held is the plain
    model's, divided by what these get of it.
    """
    model, inputs, said = model_of("llava", "eager"), batch("llava", [[0]]), list(range(40, 48))
    prompt = inputs["input_ids"].shape[1]
    longer = {"input_ids": torch.cat([inputs["input_ids"], torch.tensor([said])], dim=1), "attention_mask": None}
    full = model(**inputs | longer, use_cache=True, output_attentions=True)
    attention = full.attentions[0][0].tolist()
    cached, score = list(range(prompt)), [0.0] * (prompt + len(said))
    with vtc.wrapped(model, vtc.resolve(method, every=every)):
        cache = model(**inputs, use_cache=True).past_key_values
        for step in range(len(said) + 1):
            queries = [prompt + step - 1] if step else range(prompt)
            if step:
                cache = model(input_ids=torch.tensor([[said[step - 1]]]), past_key_values=cache).past_key_values
                cached += queries
            for query in queries:
                for slot in cached:
                    score[slot] += gain(method, attention, query, slot, cached, prompt)
            if step == 0 or (every is not None and step % every == 0):
                mine = cached if method.scope == "all" else [slot for slot in cached if slot in plain(1)[2][0]]
                gone = set(mine) - set(chosen(method, score, mine))
                cached = [slot for slot in cached if slot not in gone]
            assert same_rows(cache.layers[0].keys, full.past_key_values.layers[0].keys) == cached


def gain(method, attention, query, slot, cached, prompt):
    """What a query adds to a token's score: its attention, or a vote; of the prompt's queries only the last 5 vote."""
    share = sum(head[query][slot] / sum(head[query][other] for other in cached) for head in attention) / len(attention)
    if isinstance(method, vtc.Scissorhands):
        return query >= prompt - 5 and share > 1 / sum(other <= query for other in cached)
    return share


def chosen(method, score, slots):
    """Nine of `slots`: two sinks and seven of the latest, or so many of the latest and the highest scores."""
    if isinstance(method, vtc.Streaming):
        return slots[:2] + slots[2:][-7:]
    late = 2 if isinstance(method, vtc.Scissorhands) else 4 if method.scope == "all" else 0
    latest = slots[len(slots) - late :]
    return best([slot for slot in slots if slot not in latest], dict(enumerate(score)), 9 - late) + latest
