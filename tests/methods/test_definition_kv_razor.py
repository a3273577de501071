"""RazorAttention as its paper defines it, in loops over the keys and values of a plain model."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from PIL import Image

import vtc
from tests.families import model_of
from tests.methods.definitions import defines
from tests.methods.kv import GROUPS, assert_holds, expected, inputs_of, plain, turned
from tests.small_qwen import loaded_from, save
from vtc.calibration import heads


def razor(heads, compensates=True, rotated=False, sinks=4):
    """Section 3.2: heads that are named hold all; others the first, the latest, and the mean of what goes."""

    def rule(one, layer, slots, count):
        held = []
        for g in range(GROUPS):
            if (layer, g) in heads or count >= len(slots):
                held.append({s: one.entry(layer, g, s) for s in slots})
                continue
            first = slots[: min(sinks, count - compensates)] if slots[0] == 0 else []
            late = count - compensates - len(first)
            stays = first + slots[len(slots) - late :]
            own = {s: one.entry(layer, g, s) for s in stays}
            gone = [s for s in slots if s not in stays]
            if compensates:
                middle = gone[len(gone) // 2]
                keys = [one.keys[layer][g][s] if rotated else turned(one.keys[layer][g][s], -s) for s in gone]
                key = [sum(column) / len(gone) for column in zip(*keys, strict=True)]
                value = [
                    sum(column) / len(gone) for column in zip(*(one.values[layer][g][s] for s in gone), strict=True)
                ]
                own[middle] = (key if rotated else turned(key, middle), value)
            held.append(own)
        return held

    return rule


HEADS = ((0, 1), (2, 0), (2, 1))


@defines("razor", "heads", "compensates", "rotated", "sinks")
@pytest.mark.parametrize(("scope", "keep"), [("visual", 6), ("visual", 1), ("all", 20), ("all", 0.3), ("apart", 5)])
@pytest.mark.parametrize(
    "options", [{}, {"rotated": True, "sinks": 0}, {"compensates": False, "sinks": 2}, {"sinks": 9}], ids=str
)
def test_razor(options, scope, keep):
    method = vtc.Razor(keep=keep, scope=scope, heads=HEADS, **options)
    assert_holds(method, expected(razor(HEADS, **options), scope, keep))


@pytest.mark.parametrize("rotated", [True, False])
def test_the_row_for_the_rest_counts_as_often_as_tokens_went(rotated):
    """In the first layer, where nothing has changed what later tokens ask: the odds of the tokens held, against each
    other, are the plain model's; those of the row that stands for 31 tokens are 31 times those of its key alone, whose
    logit is the mean of theirs, where it is the mean of the cached keys."""
    model, inputs, word, attended = model_of("llava", "eager"), inputs_of(1), torch.tensor([[40]]), []
    hear = model.model.language_model.layers[0].self_attn.register_forward_hook(
        lambda *given: attended.append(given[2])
    )
    with torch.no_grad():
        model(**inputs | {"input_ids": torch.cat([inputs["input_ids"], word], dim=1), "attention_mask": None})
        with vtc.wrapped(model, vtc.Razor(keep=6, heads=(), rotated=rotated)):
            cache = model(**inputs, use_cache=True).past_key_values
            model(input_ids=word, past_key_values=cache)
    hear.remove()
    full, mine = attended[0][1][0, :, -1], attended[-1][1][0, :, -1]  # [H, keys]
    kept = [*range(3), *range(34, plain(1).length + 1)]  # three words, the picture's last five tokens, the words behind
    held = torch.cat([mine[:, :3], mine[:, 4:]], dim=1)
    torch.testing.assert_close(held / held[:, -1:], full[:, kept] / full[:, -1:], rtol=1e-3, atol=1e-5)
    if rotated:
        logits = (full[:, 3:34] / full[:, -1:]).log().mean(dim=1)
        torch.testing.assert_close((mine[:, 3] / mine[:, -1]).log(), logits + math.log(31), rtol=1e-3, atol=1e-3)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    folder = save(tmp_path_factory.mktemp("qwen"))
    Image.effect_noise((112, 84), 80).convert("RGB").save(folder / "noise.png")
    return *loaded_from(folder), folder


@defines("razor", "induction", "echo", "period", "visual")
@pytest.mark.parametrize("visual", [False, True])
@pytest.mark.parametrize(("induction", "echo"), [(0.14, 0.01), (0.5, 0.0), (0.0, 0.4)])
def test_calibrated(loaded, tmp_path, visual, induction, echo):
    model, processor, folder = loaded
    pairs = [(folder / "noise.png", "what is there ?")]
    method = vtc.Razor(period=9, induction=induction, echo=echo, visual=visual)
    found = vtc.calibrate(model, method, pairs, out=tmp_path / "razor.json", processor=processor, seed=2)
    with torch.no_grad():
        if visual:
            inputs = vtc.prepare(processor, "what is there ?", [Image.open(folder / "noise.png")] * 2)
            copies, behind = heads.of_pictures(model, dict(inputs))
        else:
            copies, behind = heads.of_text(model, 9, 2)
    wanted = set()
    for score, share in ((behind, induction), (copies, echo)):
        every = sorted((-float(score[layer][g]), layer, g) for layer in range(len(score)) for g in range(len(score[0])))
        wanted |= {(layer, g) for _, layer, g in every[: max(1, round(share * len(every))) if share else 0]}
    assert found.options == {"heads": sorted(wanted)}
    card = json.loads(found.path.read_text())
    assert card["options"]["heads"] == [list(pair) for pair in sorted(wanted)]
    again: Any = vtc.resolve("razor", keep=0.4, calibration=found.path)  # for any budget
    assert again.option("heads") == tuple(sorted(wanted))
    vtc.wrap(model, again)
    vtc.unwrap(model)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (
            lambda: vtc.resolve("razor", heads=((0, 1), 3)),
            "heads=((0, 1), 3) are no pairs of a layer and a KV head, such as ",
        ),
        (lambda: vtc.Razor(heads=((0, -1),)), "heads=((0, -1),) are no pairs of a layer and a KV head, such as "),
        (lambda: vtc.Razor(period=1), "period=1 is not a whole number of 2 or more: it is how many random tokens are "),
        (lambda: vtc.wrap(model_of("llava"), "razor"), "razor needs the retrieval heads of this model: give it "),
        (lambda: run(vtc.Razor(heads=((1, 2),))), "heads=((1, 2),) of razor: layer 1 has 2 KV heads only."),
    ],
)
def test_refused(make, sentence):
    with pytest.raises(ValueError) as refused:  # noqa: PT011, the sentence is compared below
        make()
    assert str(refused.value).startswith(sentence)
    assert "\n" not in str(refused.value)


def run(method):
    with vtc.wrapped(model_of("llava"), method) as model, torch.no_grad():
        model(**inputs_of(1), use_cache=True)
