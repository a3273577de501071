"""What the cache of a plain model holds and what its heads attend to, for definitions of methods that choose per head.

A definition is a rule: of a layer and some slots of the prompt, what each KV head holds of them. `expected` applies it
to each picture, or to all of the row; `held` reads the same from the outside, from the cache of the wrapped model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

import vtc
from tests.families import IMAGE, batch, model_of

HEADS, GROUPS, DEPTH = 4, 2, 3
Vector = list[float]
#: what a head holds in a slot: its key and its value
Entry = tuple[Vector, Vector]
Rule = Callable[["Plain", int, list[int], int], list[dict[int, Entry]]]


@dataclass(frozen=True)
class Plain:
    """One prompt in a model without vtc.

    Attributes:
        attention: [layer][KV head][query][key], the mean over the query heads that share it.
        keys, values: [layer][KV head][slot], keys rotated. states: [layer][slot], what goes into attention.
        pictures: the slots of each picture. length: slots of the prompt.
    """

    attention: list[list[list[Vector]]]
    keys: list[list[list[Vector]]]
    values: list[list[list[Vector]]]
    states: list[list[Vector]]
    pictures: list[list[int]]
    length: int

    def entry(self, layer: int, head: int, slot: int) -> Entry:
        return self.keys[layer][head][slot], self.values[layer][head][slot]

    def entries(self, layer: int, kept: Sequence[Sequence[int]]) -> list[dict[int, Entry]]:
        """Those of the slots that each head keeps."""
        return [{slot: self.entry(layer, head, slot) for slot in own} for head, own in enumerate(kept)]

    def text(self) -> list[int]:
        """Slots behind the pictures."""
        return list(range(self.pictures[-1][-1] + 1, self.length))


def inputs_of(images: int) -> dict[str, torch.Tensor]:
    return batch("llava", [list(range(images))])


@cache
def plain(images: int = 2) -> Plain:
    model, inputs, states = model_of("llava", "eager"), inputs_of(images), []
    hooks = [
        layer.self_attn.register_forward_pre_hook(
            lambda module, args, kwargs: states.append((args[0] if args else kwargs["hidden_states"])[0].tolist()),
            with_kwargs=True,
        )
        for layer in model.model.language_model.layers
    ]
    with torch.no_grad():
        out = model(**inputs, use_cache=True, output_attentions=True)
    for hook in hooks:
        hook.remove()
    share = HEADS // GROUPS
    attention = []
    for layer in out.attentions:
        heads = layer[0].double().tolist()
        groups = [heads[g * share : (g + 1) * share] for g in range(GROUPS)]
        attention.append(
            [
                [[sum(row) / share for row in zip(*rows, strict=True)] for rows in zip(*group, strict=True)]
                for group in groups
            ]
        )
    slots = [i for i, token in enumerate(inputs["input_ids"][0].tolist()) if token == IMAGE]
    rows = [(layer.keys[0].tolist(), layer.values[0].tolist()) for layer in out.past_key_values.layers]
    keys, values = [row[0] for row in rows], [row[1] for row in rows]
    return Plain(attention, keys, values, states, [slots[:36], slots[36:]][:images], inputs["input_ids"].shape[1])


def turned(vector: Vector, angle: float) -> Vector:
    """LLaMA's rotation by `angle` positions: halves of a vector are the two sides of each plane, base 10000."""
    half, out = len(vector) // 2, list(vector)
    for i in range(half):
        a = angle * 10000 ** (-i / half)
        out[i] = vector[i] * math.cos(a) - vector[i + half] * math.sin(a)
        out[i + half] = vector[i] * math.sin(a) + vector[i + half] * math.cos(a)
    return out


def units(one: Plain, scope: str) -> list[list[int]]:
    """What is chosen among: each picture, or all of the row; apart: each picture, and the text."""
    seen = [slot for picture in one.pictures for slot in picture]
    text = [slot for slot in range(one.length) if slot not in seen]
    return {"visual": one.pictures, "all": [list(range(one.length))], "apart": [*one.pictures, text]}[scope]


def count_of(keep: float, slots: Sequence[int]) -> int:
    return min(len(slots), keep) if isinstance(keep, int) else max(1, round(keep * len(slots)))


def expected(
    rule: Rule, scope: str, keep: float, images: int = 2, budgets: Mapping[int, int] | None = None, first: int = 0
) -> list[list[list[tuple[int, Entry]]]]:
    """[layer][KV head]: the slots held and what is in them; `budgets` by layer where they are not `keep`."""
    one, found = plain(images), []
    for layer in range(DEPTH):
        kept: list[dict[int, Entry]] = [{s: one.entry(layer, g, s) for s in range(one.length)} for g in range(GROUPS)]
        for slots in units(one, scope) if layer >= first else ():
            count = count_of(keep, slots) if budgets is None else budgets[layer]
            for own, chosen in zip(kept, rule(one, layer, slots, count), strict=True):
                for slot in slots:
                    del own[slot]
                own |= chosen
        found.append([sorted(own.items()) for own in kept])
    return found


def held(method: vtc.Method, images: int = 2) -> list[list[tuple[torch.Tensor, torch.Tensor]]]:
    """[layer][KV head]: keys and values [rows, d] in the cache of the wrapped model after the prefill."""
    model, found = model_of("llava", "eager"), []
    with vtc.wrapped(model, method), torch.no_grad():
        layers: Any = model(**inputs_of(images), use_cache=True).past_key_values.layers
    for layer in layers:
        keys, values = layer.whole() if hasattr(layer, "whole") else (layer.keys, layer.values)
        real = getattr(layer, "tags", {}).get("real")
        real = torch.ones(keys.shape[:3], dtype=torch.bool) if real is None else real
        found.append([(keys[0, g][real[0, g]], values[0, g][real[0, g]]) for g in range(keys.shape[1])])
    return found


def assert_holds(method: vtc.Method, wanted: list[list[list[tuple[int, Entry]]]], images: int = 2) -> None:
    """The wrapped model's cache holds, in each layer and head, what a definition says, in the order of the slots."""
    for layer, (heads, own) in enumerate(zip(held(method, images), wanted, strict=True)):
        for head, ((keys, values), entries) in enumerate(zip(heads, own, strict=True)):
            assert len(keys) == len(entries), f"layer {layer}, head {head}: {len(keys)} rows, not {len(entries)}"
            for mine, place in ((keys, 0), (values, 1)):
                other = torch.tensor([entry[place] for _, entry in entries]).view(mine.shape)
                slots = [slot for slot, _ in entries]
                torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-4, msg=f"layer {layer}, {head}: {slots}")


# -- words that definitions share ------------------------------------------------------------------------------


def together(per_head: bool, number: Callable[[int], Mapping[int, float]]) -> list[dict[int, float]]:
    """What `number` says of each KV head; their mean for all, where they do not choose for themselves."""
    own = [dict(number(g)) for g in range(GROUPS)]
    if per_head:
        return own
    return [{slot: sum(scores[slot] for scores in own) / GROUPS for slot in own[0]}] * GROUPS


def received(one: Plain, layer: int, queries: Sequence[int], slots: Sequence[int]) -> Callable[[int], dict[int, float]]:
    """Attention of a KV head, summed over queries."""
    return lambda g: {s: sum(one.attention[layer][g][q][s] for q in queries) for s in slots}


def best(score: Mapping[int, float], count: int) -> list[int]:
    return sorted(score, key=lambda slot: (-score[slot], slot))[:count]


def with_forced(score: Mapping[int, float], slots: list[int], count: int, sinks: int, late: int) -> list[int]:
    """First the sinks, then the latest, then the best of the others, until there are `count`."""
    kept = slots[: min(sinks, count)]
    late = min(late, count - len(kept))
    kept = kept + [slot for slot in slots[len(slots) - late :] if slot not in kept]
    others = {slot: score[slot] for slot in slots if slot not in kept}
    return sorted(kept + best(others, count - len(kept)))


def is_text(one: Plain, slots: Sequence[int]) -> bool:
    """Whether text is among the slots."""
    return not any(list(slots) == picture for picture in one.pictures)
