"""The proof for cached tokens that rest: every step equals full attention in which they cannot be seen."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import vtc
from tests.families import FAMILIES, batch, model_of
from tests.oracle import Decisions, decisions, oracle, watched

VIDEOS = [name for name, family in FAMILIES.items() if family.videos is not None]
ROWS: dict[str, list[list[int | str]]] = {
    "one video": [["v0"]],
    "left padded, of each kind": [["v0"], [2], ["v1", 1], []],
}
STEPS: dict[str, Any] = dict(max_new_tokens=7, do_sample=False, output_logits=True, return_dict_in_generate=True)
METHODS: dict[str, Any] = {
    "dycoke": lambda **o: vtc.DyCoke(keep=0.6, **o),
    "stage 2 alone": lambda **o: vtc.DyCoke(keep=1.0, p=0.5, **o),
    "chosen anew in every step": lambda **o: vtc.DyCoke(keep=0.6, refresh=1.0, **o),
    "dycoke + layer": lambda **o: [vtc.DyCoke(keep=0.8, p=None, **o), vtc.FastV(keep=0.5, layers=(2,), **o), resting()],
    "dycoke + cache": lambda **o: [vtc.DyCoke(keep=0.8, p=None, **o), vtc.H2O(keep=0.6), resting()],
}


def resting() -> Any:
    return vtc.DyCoke(p=0.6).parts()[1]


def assert_steps(got: Any, expected: Any) -> None:
    assert got.sequences.equal(expected.sequences)
    scale = max(float(x.abs().max()) for x in expected.logits)
    for a, b in zip(got.logits, expected.logits, strict=True):
        assert (a - b).abs().max() / scale < 1e-5


CELLS = [
    *[("dycoke", positions, rows) for positions in ("original", "compact") for rows in ROWS],
    *[(method, "original", "left padded, of each kind") for method in METHODS if method != "dycoke"],
]


@pytest.mark.core_cells(method=["dycoke"])
@pytest.mark.parametrize(("method", "positions", "rows"), CELLS)
@pytest.mark.parametrize("family", VIDEOS)
def test_greedy(family: str, method: str, positions: str, rows: str) -> None:
    model, inputs = model_of(family), batch(family, ROWS[rows])
    with vtc.wrapped(model, METHODS[method](positions=positions)), watched(model) as rest:
        got = model.generate(**inputs, **STEPS)
        made, compact = decisions(model), model._vtc_engine.compact
    assert {layer for _, layer in rest} == {1, 2}
    assert all(len(slots[0]) > 0 for slots in rest.values())
    made.resting = rest
    with oracle(model, made, len(ROWS[rows]), compact):
        assert_steps(got, model.generate(**inputs, **STEPS))


DECODERS: dict[str, dict[str, Any]] = {
    "beams": dict(num_beams=3, num_return_sequences=2),
    "several samples": dict(do_sample=True, num_return_sequences=3),
}


@pytest.mark.core
@pytest.mark.parametrize("decoder", DECODERS.values(), ids=DECODERS)
@pytest.mark.parametrize("family", VIDEOS)
def test_decoders(family: str, decoder: dict[str, Any]) -> None:
    rows = ROWS["left padded, of each kind"]
    model, inputs = model_of(family), batch(family, rows)
    how = {**STEPS, "output_logits": False, **decoder}
    with vtc.wrapped(model, vtc.DyCoke(keep=0.6, refresh=0.99)), watched(model) as rest:
        torch.manual_seed(1)
        got = model.generate(**inputs, **how)
        made, compact = decisions(model), model._vtc_engine.compact
    made.resting = rest
    copies = len(got.sequences) // len(rows) if "num_beams" not in how else how["num_beams"]
    with oracle(model, made, len(rows) * copies, compact):
        torch.manual_seed(1)
        assert got.sequences.equal(model.generate(**inputs, **how).sequences)


@pytest.mark.core
@pytest.mark.parametrize("positions", ["original", "compact"])
@pytest.mark.parametrize("family", VIDEOS)
def test_second_turn(family: str, positions: str) -> None:
    """A question of several tokens sees everything again; the steps after it choose anew."""
    rows: list[list[int | str]] = [["v0"], ["v1", 0]]
    model, inputs = model_of(family), batch(family, rows)
    more = torch.tensor([[40, 41, 42], [43, 44, 45]])

    def talk() -> Any:
        first = model.generate(**inputs, **STEPS)
        ids = torch.cat([first.sequences, more], dim=1)
        mask = torch.nn.functional.pad(
            inputs["attention_mask"], (0, ids.shape[1] - inputs["input_ids"].shape[1]), value=1
        )
        types = {"mm_token_type_ids": torch.zeros_like(ids)} if "mm_token_type_ids" in inputs else {}
        cache = first.past_key_values
        return model.generate(input_ids=ids, attention_mask=mask, past_key_values=cache, **types, **STEPS)

    with vtc.wrapped(model, vtc.DyCoke(keep=0.6, positions=positions)), watched(model) as rest:
        got = talk()
        made, compact = decisions(model), model._vtc_engine.compact
    made.resting = rest
    asked = inputs["input_ids"].shape[1] + 6  # of seven tokens that were made, the last was not yet read
    assert (asked, 2) not in rest
    assert (asked - 1, 2) in rest
    assert (asked + 4, 2) in rest
    with oracle(model, made, 2, compact):
        assert_steps(got, talk())


@pytest.mark.core
@pytest.mark.parametrize("family", VIDEOS)
def test_a_second_video(family: str) -> None:
    """Decode, another video, decode: the second choice is made among the tokens of both."""
    model, first, second = model_of(family), batch(family, [["v0"]]), batch(family, [["v1"]])
    length, more = first["input_ids"].shape[1], second["input_ids"].shape[1]
    late = {k: v for k, v in second.items() if k != "attention_mask"}
    late["position_ids"] = torch.arange(length + 1, length + 1 + more)[None]

    def talk() -> tuple[list[Tensor], list[Decisions], Any]:
        out = model(**first, use_cache=True)
        made, logits = [decisions(model)] if hasattr(model, "_vtc_engine") else [], []
        out = model(input_ids=torch.tensor([[40]]), past_key_values=out.past_key_values)
        logits.append(out.logits[0])
        out = model(**late, past_key_values=out.past_key_values)
        made += [decisions(model)] if hasattr(model, "_vtc_engine") else []
        logits.append(out.logits[0, -1:])
        out = model(input_ids=torch.tensor([[41]]), past_key_values=out.past_key_values)
        return [*logits, out.logits[0]], made, out.past_key_values

    with vtc.wrapped(model, vtc.DyCoke(keep=1.0, p=0.5)), watched(model) as rest:
        got, _, cache = talk()
    assert cache.get_seq_length() == length + more + 2
    visual = [int((x["input_ids"] == 5).sum()) for x in (first, second)]
    assert len(rest[length, 1][0]) == visual[0] - max(1, round(0.5 * visual[0]))
    assert len(rest[length + 1 + more, 1][0]) == sum(visual) - round(0.5 * sum(visual))
    with oracle(model, Decisions(resting=rest), 1, False):
        expected, _, _ = talk()
    for a, b in zip(got, expected, strict=True):
        assert (a - b).abs().max() / b.abs().max() < 1e-5


@pytest.mark.parametrize("refresh", [-1.0, 0.9, 1.0])
def test_the_choice_is_the_papers(refresh: float) -> None:
    """Top of the head-averaged attention of layer `layer` - 1, kept until its cosine with the last step falls."""
    family = "qwen2_5_vl"
    model, inputs = model_of(family, "eager"), batch(family, [["v2"]])
    places = (inputs["input_ids"][0] == 5).nonzero()[:, 0].tolist()
    with vtc.wrapped(model, vtc.DyCoke(keep=1.0, p=0.7, refresh=refresh)), watched(model) as rest:
        out = model.generate(**inputs, **{**STEPS, "max_new_tokens": 12}, output_attentions=True)
        notes = vtc.report(model).notes
    before, chosen, choices = None, None, 0
    for step, attention in enumerate(out.attentions[1:]):
        heard = attention[0][0, :, 0, places].mean(dim=0)
        if before is None or torch.cosine_similarity(before, heard, dim=0) < refresh:
            best = heard.argsort(descending=True)[: round(0.3 * len(places))].tolist()
            chosen, choices = sorted(set(places) - {places[i] for i in best}), choices + 1
        before = heard
        for layer in (1, 2):
            assert sorted(rest[inputs["input_ids"].shape[1] + step, layer][0]) == chosen
        assert attention[1].shape[-1] == inputs["input_ids"].shape[1] + step + 1 - len(chosen or ())
    active = round(0.3 * len(places))
    assert f"read {active} of {len(places)} visual tokens of the cache from layer 1 on" in notes[-1]
    assert f"chosen {choices} times in 11 steps" in notes[-1]


def test_no_memory_is_freed_and_a_step_reads_less() -> None:
    family = "llava_onevision"
    model, inputs = model_of(family), batch(family, [["v0"]])
    with vtc.wrapped(model, vtc.DyCoke(keep=1.0)), watched(model) as rest:
        cache = model.generate(**inputs, **STEPS).past_key_values
        report = vtc.report(model)
    assert report.kv_bytes[0] == report.kv_bytes[1]
    assert "rest in memory, so the KV cache is no smaller for it" in str(report).replace("\n", " ")
    total = cache.get_seq_length()
    assert {layer.keys.shape[2] for layer in cache.layers} == {total}
    assert {len(unread[0]) for unread in rest.values()} == {37 - round(0.3 * 37)}
    assert {layer for _, layer in rest} == {1, 2}


@pytest.mark.parametrize("family", ["llava_onevision", "qwen3_vl"])
def test_images_and_text_do_not_rest(family: str) -> None:
    model, inputs = model_of(family), batch(family, [[0, 1]])
    expected = model.generate(**inputs, **STEPS)
    with vtc.wrapped(model, "dycoke"), watched(model) as rest:
        assert_steps(model.generate(**inputs, **STEPS), expected)
    assert not rest


@pytest.mark.core
def test_assisted_decoding_is_refused() -> None:
    """Each token chooses what it reads from what the one before read: candidates that come together cannot."""
    model, inputs = model_of("llava_onevision"), batch("llava_onevision", [["v0"]])
    with vtc.wrapped(model, vtc.DyCoke(keep=0.6)), pytest.raises(ValueError, match="chooses step by step"):
        model.generate(**inputs, max_new_tokens=12, do_sample=False, prompt_lookup_num_tokens=3)


@pytest.mark.parametrize(
    ("methods", "says"),
    [
        (lambda: [vtc.DyCoke(p=None), vtc.H2O(every=2), resting()], "h2o with every= drops cached tokens"),
        (lambda: [vtc.DyCoke(p=None), resting(), resting()], "both say which cached tokens are active"),
        (lambda: vtc.DyCoke(layer=3), "acts before decoder layer 3, but this model's layers are 0 to 2"),
    ],
)
def test_refused(methods: Any, says: str) -> None:
    model = model_of("llava_onevision")
    with pytest.raises(ValueError, match=says) as caught:
        vtc.wrap(model, methods())
    assert "\n" not in str(caught.value)
    assert not hasattr(model, "_vtc_engine")


def test_a_cache_is_needed() -> None:
    model, inputs = model_of("llava_onevision"), batch("llava_onevision", [["v0"]])
    with vtc.wrapped(model, "dycoke"), pytest.raises(ValueError, match="dycoke compresses the KV cache, but use_cache"):
        model(**inputs, use_cache=False)
