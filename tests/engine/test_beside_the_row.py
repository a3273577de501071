"""Families whose visual tokens stand in a memory beside the row: what is left of it, and all that hangs on it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import vtc
from tests.engine.test_oracle import DECODERS, GREEDY, equal_to_oracle
from tests.families import batch, model_of
from tests.listed_cross import CROSS, TOKENS, counted
from tests.memory_oracle import memory_oracle
from tests.oracle import Decisions, decisions, oracle
from vtc.cost import DecoderCost
from vtc.engine.memory_cache import Columns, MemoryLayer, columns_of

FAMILY = "mllama"
pytestmark = pytest.mark.skipif(FAMILY not in CROSS, reason="this transformers has no Mllama")
MIXED: Any = [[0], [1, 2], []]
METHODS = ["random", "pool", "divprune", "tome", "pitome", "vqtoken", vtc.Pool(scope="crop")]
CROSSING = (1, 3)


def cache_in(out: Any) -> Any:
    return out.cache if hasattr(out, "cache") else out.past_key_values


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_oracle(method: Any) -> None:
    report = equal_to_oracle(FAMILY, "sdpa", MIXED, "left", vtc.resolve(method, 0.3))
    assert [span.tokens_in for span in report.spans] == [TOKENS * counted(seed)[1] for seed in (0, 1, 2)]
    assert 0 < report.tokens_out < report.tokens_in / 2


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize(("rows", "side"), [([[0, 1], [3]], "right"), ([[1, 2]], "left")])
def test_oracle_of_several_pictures(rows: Any, side: str, attention: str) -> None:
    assert len(equal_to_oracle(FAMILY, attention, rows, side, "divprune", keep=0.3).spans) == sum(map(len, rows))


@pytest.mark.parametrize("decoder", DECODERS.values(), ids=DECODERS)
def test_decoding(decoder: Any) -> None:
    """Rows keep unequally many columns, and beams change places."""
    model, inputs, arguments = model_of(FAMILY), batch(FAMILY, MIXED), {"max_new_tokens": 6, **decoder}
    with vtc.wrapped(model, "random", keep=0.3):
        model(**inputs)
        made = decisions(model)
        torch.manual_seed(1)
        ids = model.generate(**inputs, **arguments)
    with oracle(model, made, 3, False):
        torch.manual_seed(1)
        assert ids.equal(model.generate(**inputs, **arguments))


def test_candidates_that_are_turned_down_take_no_picture_along() -> None:
    model, inputs = model_of(FAMILY), batch(FAMILY, [[1]])
    with vtc.wrapped(model, "divprune", keep=0.3):
        plain = model.generate(**inputs, max_new_tokens=12, do_sample=False)
        assisted = model.generate(**inputs, max_new_tokens=12, do_sample=False, prompt_lookup_num_tokens=3)
    assert assisted.equal(plain)


def joined(first: dict[str, Tensor], later: dict[str, Tensor], answer: Tensor) -> dict[str, Tensor]:
    """The inputs of a second turn with pictures of its own: ids of all, pixels of the later ones, and a mask that names
    the pictures of both, as a processor makes it of the whole conversation."""
    ids = torch.cat([answer, later["input_ids"]], dim=1)
    old, new = first["cross_attention_mask"], later["cross_attention_mask"]
    mask = torch.zeros(*ids.shape, old.shape[2] + new.shape[2], new.shape[3], dtype=torch.long)
    mask[:, : answer.shape[1], : old.shape[2]] = old[:, -1:]
    mask[:, : old.shape[1], : old.shape[2]] = old
    mask[:, answer.shape[1] :, old.shape[2] :] = new
    mask[:, answer.shape[1] : answer.shape[1] + 2, : old.shape[2]] = old[:, -1:]  # before the new picture: the old one
    more = torch.ones_like(ids[:, first["input_ids"].shape[1] :])
    return {
        **{name: later[name] for name in ("pixel_values", "aspect_ratio_ids", "aspect_ratio_mask")},
        "input_ids": ids,
        "attention_mask": torch.cat([first["attention_mask"], more], dim=1),
        "cross_attention_mask": mask,
    }


@pytest.mark.parametrize("keeps", [(0.3, 0.3), (0.3, 1.0), (1.0, 0.3)], ids=str)
def test_a_second_picture_on_the_cache_of_the_first(keeps: tuple[float, float]) -> None:
    """Its columns stand behind those that are left of the first one."""
    model, first, later = model_of(FAMILY), batch(FAMILY, [[0], [1]]), batch(FAMILY, [[2], [3]])
    own = 4 * TOKENS  # columns of a turn's picture, padding included
    left: list[list[set[int]]] = [[set(), set()]]  # by turn and row, the columns that are there

    def talk(keep: Any) -> Any:
        how: Any = {"max_new_tokens": 4, "do_sample": False, "return_dict_in_generate": True}
        with keep(0):
            one = model.generate(**first, **how)
        with keep(1):
            return model.generate(**joined(first, later, one.sequences), past_key_values=one.past_key_values, **how)

    @contextmanager
    def wrapped(turn: int) -> Iterator[None]:
        with vtc.wrapped(model, "divprune", keep=keeps[turn]):
            yield
            choices = decisions(model).steps[-1][1]
        now = [{*before} for before in left[-1]]
        for choice in choices:  # where nothing is left out, padding stays as well
            places = range(own) if keeps[turn] == 1.0 else choice.slots
            now[choice.row] |= {turn * own + place for place in places}
        left.append(now)

    found = talk(wrapped)
    held = columns_of(found.past_key_values, CROSSING)
    assert held is not None
    assert held.total == 2 * own
    assert [{*row} - {-1} for row in held.at.tolist()] == left[2]
    expected = talk(lambda turn: memory_oracle(model, Decisions(), 2, left[turn + 1]))
    assert found.sequences.equal(expected.sequences)


@pytest.mark.parametrize("told", [True, False], ids=["with a mask", "without"])
def test_more_words_on_the_cache(told: bool) -> None:
    """A second turn without a picture; what the processor makes of it alone has no mask for the pictures before."""
    model, first = model_of(FAMILY), batch(FAMILY, [[0], [1, 2]])
    more = torch.tensor([[40, 41, 42], [43, 44, 45]])

    def talk() -> Tensor:
        one = model.generate(**first, max_new_tokens=4, do_sample=False, return_dict_in_generate=True)
        ids = torch.cat([one.sequences, more], dim=1)
        new = ids.shape[1] - first["input_ids"].shape[1]
        mask = torch.nn.functional.pad(first["attention_mask"], (0, new), value=1)
        seen = first["cross_attention_mask"]
        also = {"cross_attention_mask": torch.cat([seen, seen[:, -1:].expand(-1, new, -1, -1)], dim=1)} if told else {}
        return model.generate(ids, attention_mask=mask, past_key_values=one.past_key_values, **also, **GREEDY)

    with vtc.wrapped(model, "divprune", keep=0.3):
        model(**first)
        made = decisions(model)
        ids = talk()
    with oracle(model, made, 2, False):
        assert ids.equal(talk())


def test_embeddings_handed_in() -> None:
    model, inputs = model_of(FAMILY), batch(FAMILY, [[0], [1]])
    embeds = {**inputs, "inputs_embeds": model.get_input_embeddings()(inputs["input_ids"])}
    del embeds["input_ids"]
    with vtc.wrapped(model, "divprune", keep=0.3):
        assert model(**embeds).logits.equal(model(**inputs).logits)


def test_gradients() -> None:
    """Those of the oracle, layers computed again for theirs or not."""
    model, inputs = model_of(FAMILY), batch(FAMILY, [[0], [1, 2]])
    weight = model.model.multi_modal_projector.weight

    def gradient() -> Tensor:
        with torch.enable_grad():
            model.zero_grad()
            model(**inputs, use_cache=False).logits.square().mean().backward()
        found = weight.grad.clone()
        model.zero_grad()
        return found

    with vtc.wrapped(model, "divprune", keep=0.3):
        model(**inputs)
        made, plain = decisions(model), gradient()
        model.train()
        model.gradient_checkpointing_enable()
        try:
            again = gradient()
        finally:
            model.gradient_checkpointing_disable()
            model.eval()
    with oracle(model, made, 2, False):
        expected = gradient()
    for found in (plain, again):
        assert (found - expected).abs().max() / expected.abs().max() < 1e-4


def test_no_row_depends_on_its_neighbours() -> None:
    """Words before a picture, to which transformers shows everything, see none of the padding that others bring along;
    and a row without a picture is what it is alone."""
    model, inputs = model_of(FAMILY), batch(FAMILY, MIXED)
    alone = [batch(FAMILY, [[0]]), words(inputs, 2)]
    with vtc.wrapped(model, "divprune", keep=0.3):
        together = model(**inputs).logits
        apart = [model(**own).logits[0] for own in alone]
    for row, own in zip((0, 2), apart, strict=True):
        assert (together[row, -len(own) :] - own).abs().max() / own.abs().max() < 1e-5
    assert (together[2, -len(apart[1]) :] - model(**alone[1]).logits[0]).abs().max() < 1e-4


def words(inputs: dict[str, Tensor], row: int) -> dict[str, Tensor]:
    """A row of a batch without its padding, which has no picture."""
    ids = inputs["input_ids"][row][inputs["attention_mask"][row].bool()]
    return {"input_ids": ids[None], "attention_mask": torch.ones_like(ids)[None]}


@pytest.mark.parametrize("rows", [[[0]], [[1]], [[2, 3]]], ids=str)
def test_bytes_are_those_of_the_cache(rows: Any) -> None:
    model, inputs = model_of(FAMILY), batch(FAMILY, rows)
    plain = vtc.cache_bytes(cache_in(model(**inputs, use_cache=True))).rows
    with vtc.wrapped(model, "divprune", keep=0.25):
        cache = cache_in(model(**inputs, use_cache=True))
        report = vtc.report(model)
    assert report.kv_bytes == (plain, vtc.cache_bytes(cache).rows)
    left = report.tokens_out
    assert [cache.layers[i].keys.shape[2] for i in range(5)] == [len(inputs["input_ids"][0]), left] * 2 + [
        len(inputs["input_ids"][0])
    ]
    held = [after for _, after in report.kv_bytes_by_layer]
    assert held[1] == held[3] == left * (held[0] // len(inputs["input_ids"][0]))


def test_flops_are_those_counted() -> None:
    model, inputs = model_of(FAMILY, "eager"), batch(FAMILY, [[1]])
    lm, length = model.model.language_model, inputs["input_ids"].shape[1]
    cost = DecoderCost.of(lm.config)
    square = 3 * 2 * length * length * cost.heads * cost.head_dim  # eager attention computes both halves of it

    def counted_flops() -> int:
        with FlopCounterMode(display=False) as counter:
            model(**inputs, use_cache=True)
        found = counter.get_flop_counts()
        rotary = sum(sum(f.values()) for name, f in found.items() if name.endswith("language_model.rotary_emb"))
        (own,) = [sum(f.values()) for name, f in found.items() if name.endswith("model.language_model")]
        return own - rotary - square

    plain = counted_flops()
    with vtc.wrapped(model, "random", keep=0.25):  # whose choice multiplies nothing
        short = counted_flops()
        report = vtc.report(model)
    assert (plain, short) == tuple(n - report.head_flops for n in report.flops)
    assert report.rows[0].flops == report.flops
    assert plain == cost.prefill_flops(length, memory=4 * TOKENS) - cost.head_flops()


def test_report() -> None:
    model, inputs = model_of(FAMILY), batch(FAMILY, MIXED)
    with vtc.wrapped(model, "divprune", keep=10):
        model(**inputs)
        report = vtc.report(model)
    assert [span.tokens_out for span in report.spans] == [10, 10, 10]
    assert [(row.tokens_in, row.tokens_out) for row in report.rows] == [(17, 10), (17 * 6, 20), (0, 0)]
    assert report.tokens_by_layer == [30] * 5
    assert report.rows[2].kv_bytes[0] == report.rows[2].kv_bytes[1]
    assert report.rows[1].kv_bytes[0] - report.rows[1].kv_bytes[1] == 2 * (2 * 4 * 17 - 20) * 2 * 16 * 4
    assert "30 of 119 visual tokens" in str(report) or "119" in str(report)
    with vtc.wrapped(model, "divprune", keep=1.0):
        model(**inputs)
        whole = vtc.report(model)
    assert whole.kv_bytes[0] == whole.kv_bytes[1] == report.kv_bytes[0]


def test_a_text_alone_is_the_plain_model() -> None:
    model, inputs = model_of(FAMILY), batch(FAMILY, [[], []])
    plain = model.generate(**inputs, **GREEDY)
    with vtc.wrapped(model, "divprune", keep=0.3):
        assert model.generate(**inputs, **GREEDY).equal(plain)
        assert vtc.report(model).spans == []


def test_the_cache_says_what_it_is() -> None:
    model, inputs = model_of(FAMILY), batch(FAMILY, [[1]])
    with vtc.wrapped(model, "divprune", keep=0.3):
        cache = cache_in(model(**inputs, use_cache=True))
    with pytest.raises(RuntimeError, match="compressed by vtc and can only be continued by the wrapped model"):
        model(input_ids=torch.tensor([[7]]), past_key_values=cache)


def test_columns_by_hand() -> None:
    """The docstring's example, and a word that sees the second picture's columns alone, 4 to 7."""
    low = torch.finfo(torch.float32).min
    held = Columns(torch.tensor([[0, 2, 5, 6], [-1, -1, 1, 7]]), 8, True)
    bias = torch.tensor([low] * 4 + [0.0] * 4).expand(2, 1, 1, 8)
    seen = held.seen(bias, torch.zeros(1))
    assert seen is not None
    assert (seen[:, 0, 0] == 0).tolist() == [[False, False, True, True], [False, False, False, True]]
    bare = held.seen(None, torch.zeros(1))
    assert bare is not None
    assert (bare[:, 0, 0] == 0).tolist() == [[True] * 4, [False, False, True, True]]
    assert Columns(held.at[:1], 8, False).seen(None, torch.zeros(1)) is None
    later = held.then(Columns(torch.tensor([[0], [1]]), 2, False))
    assert (later.at.tolist(), later.total, later.ragged) == ([[0, 2, 5, 6, 8], [-1, -1, 1, 7, 9]], 10, True)
    with pytest.raises(ValueError, match="about 8 columns of pictures, and there are 10: it has to name all pictures"):
        later.seen(bias, torch.zeros(1))


def test_a_layer_of_the_cache_keeps_its_columns_in_step() -> None:
    from transformers.cache_utils import DynamicLayer

    plain = DynamicLayer()
    rows = torch.arange(2.0)[:, None, None, None].expand(2, 1, 3, 4)
    plain.update(rows, rows)
    layer = MemoryLayer.of(plain, Columns(torch.tensor([[0, 1, 2], [3, 4, 5]]), 6, False))
    layer.batch_repeat_interleave(2)
    layer.reorder_cache(torch.tensor([2, 0, 1, 3]))
    layer.batch_select_indices(torch.tensor([0, 1]))
    layer.crop(-2)
    assert layer.keys is not None
    assert layer.keys[:, 0, 0, 0].tolist() == [1.0, 0.0]
    assert layer.columns is not None
    assert layer.columns.at.tolist() == [[3, 4, 5], [0, 1, 2]]
    assert layer.get_seq_length() == 3
    layer.reset()
    assert layer.columns is None


REFUSED: dict[str, Any] = {
    "fastv": "works at stage 'layer', and the visual tokens of mllama stand in no row of its language model",
    "h2o": "works at stage 'cache', and the visual tokens of mllama stand in no row of its language model",
    "todre": "works at stage 'layer', and the visual tokens of mllama stand in no row of its language model",
    "tome(stage=encoder)": "works at stage 'encoder', and MllamaVisionModel is no vision tower that vtc knows",
    "pixelprune": "works at stage 'pixels', and MllamaVisionModel is no vision tower that vtc knows",
    "visionzip": r"MllamaVisionModel \(model type 'mllama_vision_model'\) is no vision tower that vtc knows",
    "cdpruner": "compares visual tokens with the embeddings of words, and those of mllama are only made to be attended",
    "evs": "is for videos, and mllama reads none",
}


@pytest.mark.parametrize("method", REFUSED)
def test_refused_at_wrap(method: str) -> None:
    with pytest.raises(ValueError, match=REFUSED[method]) as caught:
        vtc.wrap(model_of(FAMILY), method)
    assert str(caught.value).endswith(".")
    assert not hasattr(model_of(FAMILY), "_vtc_engine")


def test_refused_in_a_call() -> None:
    model, inputs = model_of(FAMILY), batch(FAMILY, [[1]])
    shape = (4, TOKENS, 32)
    states = {name: x for name, x in inputs.items() if not name.startswith(("pixel", "aspect"))}
    with vtc.wrapped(model, "divprune", keep=0.3):
        with pytest.raises(
            ValueError, match=r"cross_attention_states came without their pictures.*hand in pixel_values"
        ):
            model(**states, cross_attention_states=torch.zeros(shape))
        with pytest.raises(ValueError, match="static KV cache"):
            model.generate(**inputs, **GREEDY, cache_implementation="static")
    with pytest.raises(ValueError, match="features of mllama lie together: hand in pixels, not features"):
        vtc.encode(model, "divprune", **inputs)


def test_the_first_layer_has_to_be_one_of_the_text() -> None:
    config = CROSS[FAMILY].config()
    config.text_config.cross_attention_layers = [0, 3]
    model = type(model_of(FAMILY))(config)
    with pytest.raises(ValueError, match="the first decoder layer of this mllama attends to pictures"):
        vtc.wrap(model, "divprune")


@pytest.mark.parametrize("method", ["divprune", "tome"])
def test_check(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = model_of(FAMILY), batch(FAMILY, MIXED)
    found = vtc.check(model, method, 0.5, inputs=inputs, show=None)
    assert found.ok, found
    for name in ("placeholders", "everything kept", "some dropped", "generation", "decoder"):
        assert found.of(name).ok, found
    seen = Columns.seen

    def one_off(self: Columns, bias: Tensor | None, hidden: Tensor) -> Tensor | None:
        return seen(Columns((self.at - 20).clamp(min=0), self.total, self.ragged), bias, hidden)

    monkeypatch.setattr(Columns, "seen", one_off)
    assert not vtc.check(model, method, 0.5, inputs=inputs, show=None).ok
