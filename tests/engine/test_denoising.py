"""Late-step pruning in a model that denoises: the mechanism, with random weights; no claim about what it costs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import CONFIG_MAPPING

import vtc
from tests.families import model_of
from tests.tiny_parts import BOS, END, IMAGE, PAD, START, TEXT, noise

pytestmark = pytest.mark.skipif("diffusion_gemma" not in CONFIG_MAPPING, reason="transformers has no such model yet")

STEPS, CANVAS, TOKENS, WINDOW = 5, 8, 16, 16
KINDS = ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]


@cache
def tiny(attention: str = "sdpa") -> Any:
    from transformers import DiffusionGemmaConfig, DiffusionGemmaForBlockDiffusion

    text = {
        **TEXT,
        "num_hidden_layers": 4,
        "head_dim": 8,
        "global_head_dim": 8,
        "layer_types": KINDS,
        "sliding_window": WINDOW,
        "num_experts": 4,
        "top_k_experts": 2,
        "moe_intermediate_size": 16,
        "use_bidirectional_attention": "vision",
    }
    vision = {
        "hidden_size": 24,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "num_key_value_heads": 3,
        "head_dim": 8,
        "pooling_kernel_size": 2,
        "patch_size": 4,
        "position_embedding_size": 16,
    }
    config = DiffusionGemmaConfig(
        text_config=text,
        vision_config={"model_type": "gemma4_vision", **vision},
        image_token_id=IMAGE,
        boi_token_id=START,
        eoi_token_id=END,
        canvas_length=CANVAS,
    )
    config._attn_implementation = attention
    torch.manual_seed(0)
    model = DiffusionGemmaForBlockDiffusion._from_config(config, attn_implementation=attention)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.25)
    return model.eval()


def prompt(*pictures: int, rows: int = 1) -> dict[str, Tensor]:
    """Words and square pictures of 16 tokens, the same in every row."""
    ids = [BOS, 10, 11]
    for seed in pictures:
        ids += [START, *[IMAGE] * TOKENS, END, 20 + seed]
    ids += [30, 31]
    side = torch.arange(8)
    places = torch.stack(torch.meshgrid(side, side, indexing="xy"), dim=-1).view(1, 64, 2)
    given = {"input_ids": torch.tensor([ids] * rows)}
    given["mm_token_type_ids"] = (given["input_ids"] == IMAGE).int()
    if pictures:
        given["pixel_values"] = torch.cat([noise(s, 1, 64, 48).sigmoid() for _ in range(rows) for s in pictures])
        given["image_position_ids"] = places.expand(rows * len(pictures), -1, -1)
    return given


def written(model: Any, given: dict[str, Tensor], blocks: int = 1, **more: Any) -> tuple[Tensor, list[Tensor]]:
    """The sequence, and the logits of every denoising step."""
    seen: list[Tensor] = []
    handle = model.lm_head.register_forward_hook(lambda _, args, out: seen.append(out.clone()))
    torch.manual_seed(7)
    try:
        made = model.generate(
            **given,
            max_new_tokens=blocks * CANVAS,
            max_denoising_steps=STEPS,
            confidence_threshold=1e-9,  # no step is left out
            pad_token_id=PAD,
            **more,
        )
    finally:
        handle.remove()
    return getattr(made, "sequences", made), seen


@contextmanager
def rows_read(model: Any) -> Iterator[list[list[int]]]:
    """How many cached rows each layer is handed, step by step."""
    found: list[list[int]] = []

    def before(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        cache: Any = kwargs.get("cache", kwargs.get("past_key_values"))
        found.append([layer.keys.shape[2] for layer in cache.layers])

    first = model.model.decoder.layers[0].register_forward_pre_hook(before, with_kwargs=True)
    try:
        yield found
    finally:
        first.remove()


def test_everything_kept_is_the_plain_model() -> None:
    model, given = tiny(), prompt(1, 2)
    ids, logits = written(model, given, blocks=2)
    with vtc.wrapped(model, "late-step(keep=1.0, after=2)"):
        same, again = written(model, given, blocks=2)
    assert same.equal(ids)
    assert len(again) == 2 * STEPS
    assert all(one.equal(two) for one, two in zip(logits, again, strict=True))


@pytest.mark.parametrize("after", [1, 3, STEPS - 1, STEPS])
def test_the_first_steps_read_everything(after: int) -> None:
    model, given = tiny(), prompt(1)
    length = given["input_ids"].shape[1]
    _, plain = written(model, given)
    with vtc.wrapped(model, vtc.LateStep(keep=0.25, after=after)), rows_read(model) as read:
        _, logits = written(model, given)
        note = vtc.report(model).notes[0]
    same = [one.equal(two) for one, two in zip(plain, logits, strict=True)]
    assert same[:after] == [True] * after
    assert not any(same[after : after + 1])
    full = [rows[1] for rows in read]
    assert full == [length] * after + [length - 12] * (STEPS - after)
    assert f"{STEPS - after} of {STEPS} denoising steps read less" in note
    with rows_read(model) as read:  # unwrapped again
        assert all(one.equal(two) for one, two in zip(plain, written(model, given)[1], strict=True))
    assert [rows[1] for rows in read] == [length] * STEPS


def gone_of(model: Any) -> list[list[int]]:
    return [own.tolist() for own in model._vtc_engine.last.gone]


@contextmanager
def covered(model: Any, gone: list[list[int]], after: int) -> Iterator[None]:
    """The plain model, whose later steps cannot see the positions `gone` of each row, window or not."""
    count = [0]

    def before(module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        count[0] += 1
        if count[0] <= after:
            return None
        cache: Any = kwargs.get("cache", kwargs.get("past_key_values"))
        length, masks = cache.get_seq_length(), {}
        for i, kind in enumerate(KINDS):
            held = cache.layers[i].keys.shape[2]
            mask = torch.zeros(len(gone), 1, CANVAS, held + CANVAS)
            for row, places in enumerate(gone):
                for place in places:
                    if place >= length - held:
                        mask[row, :, :, place - (length - held)] = torch.finfo(torch.float32).min
            masks[kind] = mask
        return args, {**kwargs, "decoder_attention_mask": masks}

    handle = model.model.decoder.register_forward_pre_hook(before, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize(
    "method",
    [vtc.LateStep(keep=0.25, after=2), vtc.LateStep(keep=3, after=1, layer=1), vtc.LateStep(withdraw=True, after=2)],
    ids=str,
)
def test_what_is_gone_cannot_be_seen(method: Any, attention: str) -> None:
    """The oracle: rows that are not there equal rows that a mask covers, in layers with a window and without."""
    model, given = tiny(attention), prompt(1, 2, rows=2)
    with vtc.wrapped(model, method):
        ids, logits = written(model, given)
        gone = gone_of(model)
    assert [len(own) for own in gone] == [32 - 2 * (0 if method.withdraw else 4 if method.keep == 0.25 else 3)] * 2
    assert all(int(given["input_ids"][0, place]) == IMAGE for own in gone for place in own)
    with covered(model, gone, method.after):
        same, expected = written(model, given)
    assert ids.equal(same)
    apart = [float((one - two).abs().max() / two.abs().max()) for one, two in zip(logits, expected, strict=True)]
    assert max(apart[: method.after]) == 0
    assert apart[method.after] < 1e-5
    assert max(apart) < 1e-3  # each step reads the logits of the one before


def test_each_picture_keeps_what_the_block_attended_to_most() -> None:
    """Attention as the decoder itself weighs it, in the last step that reads everything."""
    model, given = tiny("eager"), prompt(1, 2)
    method, weights = vtc.LateStep(keep=4, after=2, layer=2), []
    decider = model.model.decoder.layers[3].self_attn  # the next one that attends to everything
    handle = decider.register_forward_hook(lambda _, args, out: weights.append(out[1]))
    try:
        with vtc.wrapped(model, method):
            written(model, given)
            (gone,) = gone_of(model)
            found = model._vtc_engine.last.attention
    finally:
        handle.remove()
    places = (given["input_ids"][0] == IMAGE).nonzero()[:, 0].tolist()
    length = given["input_ids"].shape[1]
    expected = [float(weights[1][0, :, :, place].mean()) for place in range(length)]
    assert torch.allclose(found[0], torch.tensor(expected), atol=1e-6)
    for picture in (places[:TOKENS], places[TOKENS:]):
        best = sorted(sorted(picture, key=lambda place: -expected[place])[:4])
        assert sorted(set(picture) - set(gone)) == best


def test_the_next_block_reads_everything_again() -> None:
    model, given = tiny(), prompt(1)
    length = given["input_ids"].shape[1]
    with vtc.wrapped(model, vtc.LateStep(keep=0.5, after=2)), rows_read(model) as read:
        ids, _ = written(model, given, blocks=3)
    assert ids.shape[1] == length + 3 * CANVAS
    late = STEPS - 2
    starts = [length + CANVAS * block for block in range(3)]
    assert [rows[1] for rows in read] == [n for start in starts for n in [start] * 2 + [start - 8] * late]
    assert all(rows[0] <= WINDOW for rows in read)


def test_plain_text_and_other_calls() -> None:
    model, given = tiny(), prompt()
    ids, logits = written(model, given)
    with vtc.wrapped(model, vtc.LateStep(after=1)):
        same, again = written(model, given)
        assert "no visual tokens" in str(vtc.report(model))
    assert same.equal(ids)
    assert all(one.equal(two) for one, two in zip(logits, again, strict=True))


def test_a_call_of_the_decoder_alone() -> None:
    """Masks and positions that nobody hands in are those of the whole cache."""
    model, given = tiny(), prompt(1)
    canvas = torch.arange(40, 40 + CANVAS)[None]
    with torch.no_grad(), vtc.wrapped(model, vtc.LateStep(keep=2, after=1)):
        first = model(**given, decoder_input_ids=canvas)
        cache = first.cache if "cache" in first else first.past_key_values
        name = "cache" if "cache" in first else "past_key_values"
        short = model(**{name: cache}, decoder_input_ids=canvas).logits
        gone = gone_of(model)
    with torch.no_grad(), covered(model, gone, 0):
        expected = model(**{name: cache}, decoder_input_ids=canvas).logits
    assert (short - expected).abs().max() / expected.abs().max() < 1e-5
    assert not short.equal(first.logits)


@pytest.mark.parametrize("method", ["divprune", "fastv", "h2o", "tome"])
def test_other_methods_are_refused_there(method: str) -> None:
    with pytest.raises(ValueError, match=rf"diffusion_gemma writes by denoising .* {method} is for models that write"):
        vtc.wrap(tiny(), method)
    assert not hasattr(tiny(), "_vtc_engine")


def test_it_is_refused_elsewhere() -> None:
    with pytest.raises(
        ValueError, match=r"^late-step is for models that denoise blocks of text \(diffusion_gemma\), and llava writes"
    ):
        vtc.wrap(model_of("llava"), "late-step")


BAD: dict[str, Any] = {
    "after=0 is not a whole number of 1 or more: it is a number of denoising steps": dict(after=0),
    "chooses once in each block, for all layers": dict(every=2),
    "leave every= and first= out": dict(first=1),
    "withdraw=1 of late-step is neither True nor False": dict(withdraw=1),
    "layer=0": dict(layer=0),
}


@pytest.mark.parametrize("said", BAD)
def test_bad_options(said: str) -> None:
    with pytest.raises(ValueError, match=said):
        vtc.LateStep(**BAD[said])


def test_caches_of_a_fixed_length_are_refused() -> None:
    model = tiny()
    with (
        vtc.wrapped(model, vtc.LateStep(after=1)),
        pytest.raises(ValueError, match="a static KV cache has a fixed length"),
    ):
        written(model, prompt(1), cache_implementation="static", disable_compile=True)


def test_a_padded_batch_of_unequal_rows() -> None:
    """One picture, two pictures, plain text; masks that the model makes of the padding are cut, too (under "eager",
    generate of transformers 5.24 makes none: it asks for the least of the token ids' type)."""
    model, rows = tiny(), [prompt(1), prompt(1, 2), prompt()]
    length = max(row["input_ids"].shape[1] for row in rows)
    fill = [length - row["input_ids"].shape[1] for row in rows]
    pad = torch.nn.functional.pad
    given = {
        name: torch.cat([pad(row[name], (n, 0)) for row, n in zip(rows, fill, strict=True)])
        for name in ("input_ids", "mm_token_type_ids")
    }
    given["attention_mask"] = torch.stack([(torch.arange(length) >= n).long() for n in fill])
    for name in ("pixel_values", "image_position_ids"):
        given[name] = torch.cat([row[name] for row in rows if name in row])
    with vtc.wrapped(model, vtc.LateStep(keep=0.5, after=1)):
        _, logits = written(model, given)
        gone = gone_of(model)
    assert [len(own) for own in gone] == [8, 16, 0]
    covering = [own + list(range(n)) for own, n in zip(gone, fill, strict=True)]
    with covered(model, covering, 1):
        _, expected = written(model, given)
    assert (logits[1] - expected[1]).abs().max() / expected[1].abs().max() < 1e-5
