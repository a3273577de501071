"""Decoders with recurrent layers: what is left of a row, fed to the plain layers one after another, is the reference.

No padding, no masks, no batch: `directly` runs a row's own tokens through each layer, without those that are gone from
there on. The oracle of the other families, which `tests/models/test_listed.py` asks, is the full-length model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import DynamicCache

import vtc
from tests.families import batch, model_of
from tests.listed_hybrid import HYBRID
from tests.models.test_decoders import on
from tests.oracle import Choice, decisions, lm_of, round_off
from vtc.cost import DecoderCost
from vtc.models.decoder import decoder_for

FAMILIES = list(HYBRID)
OWN: Any = dict(positions="original")
STAGES: dict[str, Callable[[], Any]] = {
    "input": lambda: vtc.DivPrune(keep=0.3, **OWN),
    "merge": lambda: vtc.ToMe(keep=0.3, **OWN),
    "layer that attends": lambda: vtc.PyramidDrop(keep=0.3, layers=(1,), **OWN),
    "behind one": lambda: vtc.FastV(keep=0.4, layers=(2,), **OWN),
    "cache": lambda: vtc.H2O(keep=0.4),
    "three stages": lambda: [vtc.DivPrune(keep=0.6, **OWN), vtc.FastV(keep=0.3, layers=(2,), **OWN), vtc.H2O(keep=0.1)],
}


def heard(model: Any, inputs: Any) -> dict[str, Any]:
    """What the plain model hands its language model."""
    found: dict[str, Any] = {}
    handle = lm_of(model).register_forward_pre_hook(lambda _, args, kwargs: found.update(kwargs), with_kwargs=True)
    try:
        found["logits"] = model(**inputs, use_cache=True).logits
    finally:
        handle.remove()
    return found


def positions_of(given: dict[str, Any], row: int) -> Tensor:
    """[A, 1, L]: of a row, on each axis."""
    ids, length = given.get("position_ids"), given["inputs_embeds"].shape[1]
    if ids is None:
        return torch.arange(length)[None, None]
    return ids[-3:, row : row + 1] if ids.dim() == 3 else ids[None, min(row, len(ids) - 1)][None]


def through(lm: Any, i: int, x: Tensor, positions: Tensor, cache: Any) -> Tensor:
    """x [1, S, D] at positions [A, 1, S] through the plain layer `i`."""
    if not hasattr(lm, "rotary_emb"):
        return lm.layers[i](x, attention_mask=None, **on(cache))
    tables = lm.rotary_emb(x, position_ids=positions if len(positions) > 1 else positions[0])
    return lm.layers[i](x, position_embeddings=tables, attention_mask=None, **on(cache))


def merged(x: Tensor, places: list[int], choice: Choice) -> Tensor:
    """Rows x [1, S, D] of `places` with a choice's outputs in its slots: weighted sums, one by one."""
    out, where = x.clone(), {place: i for i, place in enumerate(places)}
    for number, slot in enumerate(choice.slots):
        own = [n for n, source in enumerate(choice.source) if source == number]
        parts = [choice.weight[n].double() * x[0, where[choice.index[n]]].double() for n in own]
        out[0, where[slot]] = torch.stack(parts).sum(dim=0).float()
    return out


def directly(model: Any, given: dict[str, Any], row: int, real: list[int], made: Any) -> tuple[Tensor, Any, list[int]]:
    """(hidden states [1, S, D] behind the last layer, the cache, places of these S tokens) of one row's prompt."""
    lm, cache, places = lm_of(model), DynamicCache(config=lm_of(model).config), list(real)
    x, positions = given["inputs_embeds"][row : row + 1, real], positions_of(given, row)
    for i in range(len(lm.layers)):
        for layer, choices in made.steps:
            for choice in choices if layer == i else []:
                if choice.row == row:
                    x = merged(x, places, choice)
                    gone = set(choice.index) - set(choice.slots)
                    stays = [n for n, place in enumerate(places) if place not in gone]
                    x, places = x[:, stays], [places[n] for n in stays]
        x = through(lm, i, x, positions[..., places], cache)
        for _, layer, lost in made.evicted:
            if layer == i:
                (own,) = lost[row]
                stays = [n for n, place in enumerate(places) if place not in own]
                held: Any = cache.layers[i]
                held.keys, held.values = held.keys[:, :, stays], held.values[:, :, stays]
    return x, cache, places


def answered(model: Any, x: Tensor) -> Tensor:
    """Logits of hidden states behind the last layer."""
    lm = lm_of(model)
    head = model.get_output_embeddings() or model.language_model.lm_head
    return head(decoder_for(lm).final_norm(lm)(x))


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_what_is_left_is_fed_directly(family: str, stage: str) -> None:
    """A padded batch of unequal rows: each is what its own tokens alone make."""
    model, inputs = model_of(family), batch(family, [[0], [1, 2], []])
    given = heard(model, inputs)
    with vtc.wrapped(model, STAGES[stage]()):
        logits = model(**inputs).logits
        made = decisions(model)
    assert made.evicted or made.steps
    for row, mask in enumerate(inputs["attention_mask"]):
        expected, _, places = directly(model, given, row, mask.nonzero()[:, 0].tolist(), made)
        expected = answered(model, expected)[0]
        assert (logits[row, places] - expected).abs().max() / expected.abs().max() < round_off(model)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_decoding_goes_on_from_what_is_left(family: str, stage: str) -> None:
    """States and keys after the prompt, step by step, against the reference's."""
    model, inputs = model_of(family), batch(family, [[1]])
    lm, length = lm_of(model), inputs["input_ids"].shape[1]
    given = heard(model, inputs)
    with vtc.wrapped(model, STAGES[stage]()):
        ids = model.generate(**inputs, max_new_tokens=6, do_sample=False)
        made = decisions(model)
    x, cache, _ = directly(model, given, 0, list(range(length)), made)
    offset = int(getattr(getattr(model, "model", model), "rope_deltas", 0))
    suppressed = torch.tensor(model.generation_config.suppress_tokens)
    for step in range(6):
        logits = answered(model, x[:, -1:])[0, -1].index_fill(0, suppressed, -torch.inf)
        token = logits.argmax()
        assert int(token) == int(ids[0, length + step])
        x = model.get_input_embeddings()(token[None, None])
        place = torch.full((3 if given.get("position_ids") is not None else 1, 1, 1), length + step + offset)
        for i in range(len(lm.layers)):
            x = through(lm, i, x, place, cache)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_conversation_of_two_pictures(family: str) -> None:
    """A later turn goes on from states that never met what was dropped: the same as in one go."""
    model, first, second = model_of(family), batch(family, [[0]]), batch(family, [[1]])
    typed = "mm_token_type_ids" in first
    with torch.no_grad(), vtc.wrapped(model, "divprune", keep=0.4, **OWN):
        one = model(**first, use_cache=True)
        kept = [decisions(model).steps[0][1][0].slots]
        length = first["input_ids"].shape[1]
        places = torch.arange(length, length + second["input_ids"].shape[1])
        more = {"position_ids": places.expand(3, 1, -1) if typed else places[None]}
        second["attention_mask"] = torch.ones(1, length + len(places), dtype=torch.long)
        logits = model(**second, **more, past_key_values=one.past_key_values, use_cache=True).logits
        kept.append([length + p for p in decisions(model).steps[0][1][0].slots])
    given = [heard(model, x) for x in (first, {**second, "attention_mask": torch.ones_like(second["input_ids"])})]
    embeds = torch.cat([x["inputs_embeds"] for x in given], dim=1)
    own = positions_of(given[0], 0)
    positions = torch.cat([own, places.expand(len(own), 1, -1)], dim=-1)
    ids = torch.cat([first["input_ids"], second["input_ids"]], dim=1)[0]
    stays = [p for p in range(len(ids)) if ids[p] != model.config.image_token_id or p in {*kept[0], *kept[1]}]
    lm, x = lm_of(model), embeds[:, stays]
    with torch.no_grad():
        for i in range(len(lm.layers)):
            x = through(lm, i, x, positions[..., stays], None)
        expected = answered(model, x)[0]
    behind = [n for n, p in enumerate(stays) if p >= length]
    found = logits[0, [stays[n] - length for n in behind]]
    assert (found - expected[behind]).abs().max() / expected.abs().max() < round_off(model)


@pytest.mark.parametrize("family", FAMILIES)
def test_later_pictures_of_several_conversations_are_refused(family: str) -> None:
    model, inputs = model_of(family), batch(family, [[0], [0]])
    with torch.no_grad(), vtc.wrapped(model, "divprune", keep=0.4, **OWN):
        cache = model(**inputs, use_cache=True).past_key_values
        again = {**inputs, "attention_mask": torch.ones(2, 2 * inputs["input_ids"].shape[1], dtype=torch.long)}
        if "mm_token_type_ids" in inputs:
            again["position_ids"] = torch.arange(inputs["input_ids"].shape[1]).expand(3, 2, -1) + 90
        with pytest.raises(ValueError, match=r"go on from what they have read, .* for one conversation at a time\.$"):
            model(**again, past_key_values=cache, use_cache=True)
    with torch.no_grad(), vtc.wrapped(model, "h2o", keep=0.4):  # which shortens no row
        cache = model(**inputs, use_cache=True).past_key_values
        model(**again, past_key_values=cache, use_cache=True)


#: what needs attention in a layer that has none
NOT_THERE: dict[str, tuple[Any, str]] = {
    "previous": (vtc.FastV(keep=0.4, layers=(1,)), r"fastv reads attention in decoder layer 0, and of \w+ only the "),
    "next": (vtc.PyramidDrop(keep=0.4, layers=(1, 3)), "pyramiddrop reads attention in decoder layer 3"),
    "modules": (vtc.TransPrune(keep=0.4, layers=(2, 3)), r"transprune reads attention in decoder layer [0-3], and of"),
    "neighbours": (vtc.MiniCache(), "minicache lets neighbouring layers share keys and values, and only 2 of the 4"),
}


@pytest.mark.parametrize("what", NOT_THERE)
def test_what_needs_attention_where_there_is_none(what: str) -> None:
    method, said = NOT_THERE[what]
    with pytest.raises(ValueError, match=said) as caught:
        vtc.wrap(model_of("lfm2_vl"), method)
    assert str(caught.value).count(". ") == 0
    assert not hasattr(model_of("lfm2_vl"), "_vtc_engine")


def test_steps_that_read_a_part_decide_in_a_layer_that_attends() -> None:
    model, inputs = model_of("qwen3_5"), batch("qwen3_5", [["v0"]])
    active = vtc.DyCoke(p=0.6).parts()[1]
    with pytest.raises(ValueError, match="reads attention in decoder layer 0, and of qwen3_5_text only the layers"):
        vtc.wrap(model, replace(active, first=1))
    with torch.no_grad(), vtc.wrapped(model, replace(active, first=2)):
        model.generate(**inputs, max_new_tokens=4, do_sample=False)
        notes = vtc.report(model).notes
    assert any("decode steps read" in note and "from layer 2 on" in note for note in notes)
    assert any("acts in the 2 of 4 decoder layers that attend" in note for note in notes)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_report_says_where_the_cache_is(family: str) -> None:
    model, inputs = model_of(family), batch(family, [[0]])
    with torch.no_grad(), vtc.wrapped(model, "h2o", keep=0.4):
        cache = model(**inputs, use_cache=True).past_key_values
        report = vtc.report(model)
    layers = len(lm_of(model).layers)
    assert any(f"h2o acts in the 2 of {layers} decoder layers that attend" in note for note in report.notes)
    measured = vtc.cache_bytes(cache).rows
    assert report.kv_bytes[1] == measured  # keys and values that are left, and states
    with torch.no_grad():
        plain = model(**inputs, use_cache=True).past_key_values
    assert report.kv_bytes[0] == vtc.cache_bytes(plain).rows
    states = [full for full, kept in report.kv_bytes_by_layer if full == kept and full]
    assert len(states) == 2


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tokens", [64, 128])
def test_flops_are_those_counted(family: str, tokens: int) -> None:
    model = model_of(family, "eager")
    lm = lm_of(model)
    experts = getattr(lm.config, "_experts_implementation", None)
    lm.config._experts_implementation = "eager"
    try:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            lm(inputs_embeds=torch.randn(1, tokens, lm.config.hidden_size), use_cache=False)
    finally:
        lm.config._experts_implementation = experts
    by_module = counter.get_flop_counts()
    rotary = sum(sum(f.values()) for name, f in by_module.items() if name.endswith("rotary_emb"))
    cost = DecoderCost.of(lm.config)
    square = sum(layer.pair for layer in cost.each) * tokens * tokens  # eager attention computes both halves
    solved, config = 0, lm.config  # torch does not count triangular systems
    if family not in ("lfm2_vl", "nemotron_h_omni"):
        wide = config.linear_key_head_dim + config.linear_value_head_dim
        solved = 2 * 2 * tokens * config.linear_num_value_heads * 32 * wide
    convolved = counter.get_total_flops() - rotary
    assert convolved == cost.prefill_flops(tokens) - cost.head_flops() + square - solved + _padded(lm) + _scanned(
        lm, tokens
    )


def _scanned(lm: Any, tokens: int) -> int:
    """What state spaces compute besides, as transformers writes them: of each chunk both halves of a square, and each
    chunk's state from those of all chunks, where kernels go from one to the next."""
    config, found = lm.config, 0
    for layer in lm.layers:
        if hasattr(getattr(layer, "mixer", None), "A_log"):
            heads, width, state = config.mamba_num_heads, config.mamba_head_dim, config.ssm_state_size
            found += tokens * heads * config.chunk_size * (state + width)
            found += 2 * (tokens // config.chunk_size + 1) ** 2 * heads * width * state
    return found


def _padded(lm: Any) -> int:
    """What convolutions compute behind the last token, and throw away."""
    found = 0
    for layer in lm.layers:
        mixer = getattr(layer, "linear_attn", getattr(layer, "conv", getattr(layer, "mixer", layer)))
        for weight in [x for name, x in mixer.named_parameters() if name in ("conv1d.weight", "conv.weight")]:
            found += 2 * (weight.shape[-1] - 1) * weight.numel()
    return found
