"""Assisted decoding: prompt lookup and draft models change how fast a wrapped model answers, never what it answers."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig

import vtc
from tests.families import FAMILIES, IMAGE, TEXT, batch, model_of
from tests.oracle import Decisions, decisions
from tests.sweep import CACHE, EVERY, INPUT, LAYER, VIDEOS, cells, refused, rows_for
from tests.tiny_parts import VOCAB
from vtc.engine.kv_cache import CompressedLayer

ALWAYS = [*INPUT, *LAYER]
PHRASE = [40, 41, 42, 43, 44, 45]
LATER = [*PHRASE, 50, 39]  # nothing to look up until the model has said 40
STEPS: dict[str, Any] = dict(max_new_tokens=9, do_sample=False, output_logits=True, return_dict_in_generate=True)
LOOKUP: dict[str, Any] = dict(prompt_lookup_num_tokens=3)


@cache
def counting(family: str) -> Any:
    """The family's model with a liking for saying n + 1 after n, so that what is looked up is often right."""
    model = copy.deepcopy(model_of(family))
    words = model.get_input_embeddings().weight.data
    model.get_input_embeddings().weight = nn.Parameter(40 * words)  # the last token is heard through three layers
    model.get_output_embeddings().weight = nn.Parameter(words.roll(1, dims=0))
    return model


def prompt(family: str, rows: list[list[int | str]], more: list[int]) -> dict[str, Tensor]:
    """One row of `batch`, with the words `more` behind it."""
    inputs = batch(family, rows)
    added = {
        "input_ids": torch.tensor([more], dtype=torch.long),
        "attention_mask": torch.ones(1, len(more), dtype=torch.long),
    }
    added["mm_token_type_ids"] = torch.zeros(1, len(more), dtype=torch.int)
    return {k: torch.cat([v, added[k]], dim=1) if k in added else v for k, v in inputs.items()}


@contextmanager
def forwards(model: Any) -> Iterator[list[int]]:
    """Notes how many tokens every forward of `model` was given."""
    lengths: list[int] = []
    hook = lambda m, a, kwargs: lengths.append(kwargs["input_ids"].shape[1])  # noqa: E731
    handle = model.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield lengths
    finally:
        handle.remove()


def assert_same(got: Any, expected: Any) -> None:
    assert got.sequences.equal(expected.sequences)
    scale = max(float(x.abs().max()) for x in expected.logits)
    for a, b in zip(got.logits, expected.logits, strict=True):
        assert (a - b).abs().max() / scale < 1e-4


def kept(model: Any) -> Any:
    """What was chosen, without when."""
    made = decisions(model)
    chosen = [(layer, [(c.row, c.anchor, c.source) for c in choices]) for layer, choices in made.steps]
    return chosen, [(layer, places) for _, layer, places in made.evicted]


def equal_with(model: Any, inputs: Any, how: dict[str, Any]) -> list[int]:
    """Assert that a wrapped model says and keeps the same with `how`; returns the lengths of its forwards then."""
    expected = model.generate(**inputs, **STEPS)
    chosen = kept(model)
    with forwards(model) as lengths:
        got = model.generate(**inputs, **STEPS, **how)
    assert_same(got, expected)
    assert kept(model) == chosen
    return lengths


def test_every_method_is_here() -> None:
    """But for what acts before the vision tower (test_pixels.py) or inside of it (test_encoder_vlm.py), and for models
    that do not write token by token (test_denoising.py)."""
    known = {info.name for info in vtc.list_methods() if info.stage not in ("pixels", "encoder") and not info.only}
    assert {name.split(",")[0] for name in EVERY} == known


@pytest.mark.parametrize(("family", "method"), cells(ALWAYS))
def test_lookup_turned_down(family: str, method: str) -> None:
    """The very first forward holds three candidates, and none of them is what the model would say."""
    model, inputs = model_of(family), prompt(family, rows_for(method), [*PHRASE, *PHRASE[:2]])
    with vtc.wrapped(model, EVERY[method]()):
        lengths = equal_with(model, inputs, LOOKUP)
    assert lengths[0] == inputs["input_ids"].shape[1] + 3
    assert len(lengths) > 6


@pytest.mark.parametrize(("family", "method"), cells(ALWAYS))
def test_lookup_accepted(family: str, method: str) -> None:
    model, inputs = counting(family), prompt(family, rows_for(method), [*PHRASE, *PHRASE[:2]])
    with vtc.wrapped(model, EVERY[method]()):
        lengths = equal_with(model, inputs, LOOKUP)
    assert lengths[0] == inputs["input_ids"].shape[1] + 3
    assert len(lengths) < 9


@pytest.mark.parametrize("positions", ["original", "compact"])
@pytest.mark.parametrize("family", FAMILIES)
def test_two_images(family: str, positions: str) -> None:
    model, inputs = counting(family), prompt(family, [[0, 1]], [*PHRASE, *PHRASE[:2]])
    for method in (vtc.VisionZip(keep=0.3, positions=positions), vtc.PyramidDrop(layers=(1, 2), positions=positions)):
        with vtc.wrapped(model, method):
            equal_with(model, inputs, LOOKUP)


@pytest.mark.parametrize(("family", "method"), cells(CACHE))
def test_lookup_on_an_evicted_cache(family: str, method: str) -> None:
    """Candidates that come once the prompt has lost rows see what is left of it."""
    model, inputs = counting(family), prompt(family, rows_for(method), LATER)
    with vtc.wrapped(model, EVERY[method]()):
        lengths = equal_with(model, inputs, LOOKUP)
    assert lengths[0] == inputs["input_ids"].shape[1]
    assert max(lengths[1:]) > 1


@pytest.mark.parametrize(("family", "method"), cells([*ALWAYS, *CACHE]))
def test_second_turn(family: str, method: str) -> None:
    """A question on the cache of an assisted turn. (With assistance, transformers would read the first turn again.)"""
    model, inputs = counting(family), prompt(family, rows_for(method), LATER)

    def talk(how: Any) -> Any:
        first = model.generate(**inputs, **STEPS, **how)
        ids = torch.cat([first.sequences, torch.tensor([[60, 61, 62, 63, 60, 61]])], dim=1)
        more = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "past_key_values": first.past_key_values}
        return more | ({"mm_token_type_ids": torch.zeros_like(ids)} if "mm_token_type_ids" in inputs else {})

    with vtc.wrapped(model, EVERY[method]()):
        expected = model.generate(**talk({}), **STEPS)
        assert_same(model.generate(**talk(LOOKUP), **STEPS), expected)
        more = talk(LOOKUP)
        with refused(model, "give only what is new", generate=True):
            model.generate(**more, **STEPS, **LOOKUP)


# -- draft models ----------------------------------------------------------------------------------------------


DRAFT: dict[str, Any] = dict(
    num_assistant_tokens=3, num_assistant_tokens_schedule="constant", assistant_confidence_threshold=0.0
)


def draft_of(model: Any, noise: float = 0.0) -> Any:
    draft, generator = copy.deepcopy(model), torch.Generator().manual_seed(1)
    for parameter in draft.parameters():
        parameter.data += noise * torch.randn(parameter.shape, generator=generator)
    draft.generation_config.update(**DRAFT)
    return draft


@pytest.mark.parametrize(("family", "method"), cells(ALWAYS))
def test_draft(family: str, method: str) -> None:
    """A perturbed copy, which says something else."""
    model, inputs = model_of(family), prompt(family, rows_for(method), [])
    with vtc.wrapped(model, EVERY[method]()):
        lengths = equal_with(model, inputs, dict(assistant_model=draft_of(model_of(family), 0.01)))
    assert lengths[0] == inputs["input_ids"].shape[1] + 3


@pytest.mark.parametrize(("family", "method"), cells(ALWAYS))
def test_wrapped_draft(family: str, method: str) -> None:
    """A copy that is wrapped alike, and right from the first candidate on."""
    model, draft = counting(family), draft_of(counting(family))
    inputs = prompt(family, rows_for(method), LATER)
    vtc.wrap(draft, EVERY[method]())
    with vtc.wrapped(model, EVERY[method]()):
        lengths = equal_with(model, inputs, dict(assistant_model=draft))
    assert len(lengths) < 6  # 9 tokens, up to 4 at a time


@pytest.mark.parametrize("family", [name for name in FAMILIES if not name.startswith("qwen")])
def test_draft_of_other_words(family: str) -> None:
    """Universal assistance: a language model whose tokenizer numbers the words the other way round. (transformers hands
    Qwen's mm_token_type_ids to the draft, which knows none.)"""
    tokenizers = pytest.importorskip("tokenizers")
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

    def tokenizer(numbers: Any) -> Any:
        words = {f"w{n}": i for i, n in enumerate(numbers)}
        made = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="w0"))
        made.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
        return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="w0", pad_token="w0")

    model, inputs = model_of(family), prompt(family, [[0, 1]], PHRASE)
    torch.manual_seed(0)  # one that proposes no placeholder, which transformers would look for a picture for
    draft = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **TEXT | {"vocab_size": VOCAB - 1})).eval()
    draft.generation_config.update(**DRAFT)
    words = dict(tokenizer=tokenizer(range(VOCAB)), assistant_tokenizer=tokenizer(reversed(range(VOCAB - 1))))
    with vtc.wrapped(model, "pyramiddrop", keep=0.3):
        lengths = equal_with(model, inputs, dict(assistant_model=draft, **words))
    assert lengths[0] > inputs["input_ids"].shape[1]


@pytest.mark.parametrize("family", FAMILIES)
def test_wrapped_draft_of_an_unwrapped_model(family: str) -> None:
    model, draft, inputs = model_of(family), draft_of(model_of(family), 0.01), prompt(family, [[0, 1]], [])
    vtc.wrap(draft, "fastv", keep=0.3)
    expected = model.generate(**inputs, **STEPS)
    assert_same(model.generate(**inputs, **STEPS, assistant_model=draft), expected)
    vtc.wrap(draft, "h2o", keep=0.3)
    assert_same(model.generate(**inputs, **STEPS, assistant_model=draft), expected)


# -- what cannot -----------------------------------------------------------------------------------------------

CANNOT: dict[str, Any] = {
    "h2o": lambda: vtc.H2O(keep=0.4, every=2),
    "scissorhands": lambda: vtc.Scissorhands(keep=0.4, every=1),
    "streaming": lambda: vtc.Streaming(keep=0.4, every=3, scope="all"),
    "dycoke": lambda: vtc.DyCoke(keep=0.6),
}


@pytest.mark.parametrize(("family", "method"), cells([*CACHE, *(f"{name}, every" for name in CANNOT)]))
def test_refused(family: str, method: str) -> None:
    """Rows that go after the prompt, when candidates have come with it, and whatever goes or rests later."""
    made = CANNOT[method.removesuffix(", every")]() if method.endswith(", every") else EVERY[method]()
    model, inputs = model_of(family), prompt(family, rows_for(method), [*PHRASE, *PHRASE[:2]])
    with vtc.wrapped(model, made):
        expected = model.generate(**inputs, **STEPS)
        for how in (LOOKUP, dict(assistant_model=draft_of(model_of(family), 0.01))):
            with refused(model, "without an assistant and without prompt_lookup_num_tokens", generate=True):
                model.generate(**inputs, **STEPS, **how)
        assert_same(model.generate(**inputs, **STEPS), expected)


@pytest.mark.parametrize("method", CANNOT)
def test_refused_when_candidates_come_later(method: str) -> None:
    """A prompt without repetitions brings no candidates; the first decode step that does is refused."""
    model, inputs = counting(VIDEOS[0]), prompt(VIDEOS[0], rows_for(method), LATER)
    with vtc.wrapped(model, CANNOT[method]()):
        with pytest.raises(ValueError, match="without an assistant and without prompt_lookup_num_tokens"):
            model.generate(**inputs, **STEPS, **LOOKUP)
        model.generate(**inputs, **STEPS)


@pytest.mark.parametrize("method", CANNOT)
def test_plain_text_with_any_method(method: str) -> None:
    """Without visual tokens there is nothing that could be wrong."""
    model, inputs = model_of(VIDEOS[0]), prompt(VIDEOS[0], [[]], [*PHRASE, *PHRASE[:2]])
    expected = model.generate(**inputs, **STEPS)
    with vtc.wrapped(model, CANNOT[method]()):
        assert_same(model.generate(**inputs, **STEPS, **LOOKUP), expected)


def test_candidates_may_be_placeholders() -> None:
    """A draft may propose what stands in the prompt, and be turned down; it is no picture that was read before."""
    model, inputs = model_of("llava"), batch("llava", [[0]])
    with vtc.wrapped(model, "divprune", keep=0.3):
        cache = model(**inputs, use_cache=True).past_key_values
        ids = torch.tensor([[50, IMAGE, IMAGE]])
        one = model(input_ids=ids[:, :1], past_key_values=copy.deepcopy(cache), use_cache=True).logits
        got = model(input_ids=ids, past_key_values=copy.deepcopy(cache), use_cache=True, logits_to_keep=3).logits
        assert (got[:, :1] - one).abs().max() < 1e-4
        with refused(model, "give only what is new"):
            model(input_ids=ids, past_key_values=cache, use_cache=True)


# -- cropping, by hand -----------------------------------------------------------------------------------------


def unbroken(made: Decisions, layer: int, length: int) -> int:
    """How many of a row's last tokens are all in the cache of `layer`."""
    lost = [p for first, choices in made.steps if first <= layer for c in choices for p in {*c.index} - {*c.slots}]
    lost += [p for _, i, places in made.evicted if i == layer for head in places[0] for p in head]
    return length - 1 - max(lost, default=-1)


@pytest.mark.parametrize(("family", "method"), cells([*ALWAYS, *CACHE]))
def test_crop(family: str, method: str) -> None:
    """A cache forgets its last tokens as far back as all of them are there, and refuses to go further."""
    model, inputs = model_of(family), batch(family, rows_for(method))
    more = torch.tensor([[50, 51, 52]])
    with vtc.wrapped(model, EVERY[method]()):
        cache = model(**inputs, use_cache=True).past_key_values
        made, prompt_length = decisions(model), inputs["input_ids"].shape[1]
        expected = model(input_ids=more, past_key_values=copy.deepcopy(cache), use_cache=True).logits
        model(input_ids=torch.tensor([[60, 61]]), past_key_values=cache, use_cache=True)
        cache.crop(-2)
        assert (model(input_ids=more, past_key_values=cache, use_cache=True).logits - expected).abs().max() < 1e-4
    layers: Any = [(i, x) for i, x in enumerate(cache.layers) if isinstance(x, CompressedLayer) and x.dropped]
    assert layers
    free = min(unbroken(made, i, prompt_length) for i in range(len(cache.layers))) + 3  # all layers refuse, or none
    for _, layer in layers:
        held = layer.keys.shape[2]
        with pytest.raises(ValueError, match=r"^cannot remove \d+ tokens from a compressed cache: [^\n]*\.$"):
            layer.crop(-free - 1)
        assert layer.keys.shape[2] == held
        assert layer.get_seq_length() == prompt_length + 3
        layer.crop(-free)
        assert layer.keys.shape[2] == held - free
        assert layer.get_seq_length() == prompt_length + 3 - free


@pytest.mark.parametrize("family", FAMILIES)
def test_the_last_words_of_a_prompt_can_be_asked_again(family: str) -> None:
    """Cropped into the prompt, a cache goes on as that of the shorter prompt."""
    model, inputs = model_of(family), batch(family, [[0]])
    with vtc.wrapped(model, "divprune", keep=0.3):
        out = model(**inputs, use_cache=True)
        cache, expected = out.past_key_values, out.logits[:, -2:]
        cache.crop(-2)
        again = model(input_ids=inputs["input_ids"][:, -2:], past_key_values=cache, use_cache=True).logits
    assert (again - expected).abs().max() / expected.abs().max() < 1e-5
