"""What is read inside a language model equals what its own eager attention computes, or is refused at wrap."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import cache
from inspect import signature
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, DynamicCache, LlamaModel

import vtc
from tests.families import BOS, IMAGE, PAD, VISION
from tests.models.toy_decoder import ToyDecoder
from vtc.engine.attention import LayerView
from vtc.engine.sight import Range
from vtc.models import decoder, text_models
from vtc.models.decoder import Decoder, decoder_for, register_decoder
from vtc.models.decoder_check import check_decoder

WIDTH, LAYERS, VOCAB = 64, 3, 99
BASE = dict(
    hidden_size=WIDTH,
    intermediate_size=48,
    num_hidden_layers=LAYERS,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    vocab_size=VOCAB,
    max_position_embeddings=512,
    pad_token_id=PAD,
    bos_token_id=BOS,
    eos_token_id=None,
)
FULL = dict(layer_types=["full_attention"] * LAYERS)
WINDOWS = dict(layer_types=["sliding_attention", "full_attention", "full_attention"], sliding_window=4)
EXPERTS = dict(moe_intermediate_size=16, num_experts_per_tok=2, n_routed_experts=4, num_experts=4)
LATENT = dict(
    EXPERTS,
    num_key_value_heads=4,
    kv_lora_rank=16,
    qk_nope_head_dim=8,
    qk_rope_head_dim=8,
    v_head_dim=12,
    first_k_dense_replace=1,
    n_group=1,
    topk_group=1,
)


def axes(*sections: int, **more: float) -> dict[str, Any]:
    """A rotary embedding of three axes, which turn so many pairs each."""
    return dict(rope_parameters={"rope_type": "default", "mrope_section": list(sections), "rope_theta": 1e4, **more})


#: name -> (model type, what its configuration has beside BASE)
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "mistral": ("mistral", dict(sliding_window=None)),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {}),
    "qwen3_moe": ("qwen3_moe", EXPERTS),
    "gemma": ("gemma", {}),
    "gemma2": ("gemma2", dict(FULL, attn_logit_softcapping=None, query_pre_attn_scalar=16)),
    "gemma3_text": ("gemma3_text", dict(FULL, query_pre_attn_scalar=16)),
    "cohere": ("cohere", {}),
    "cohere, norms": ("cohere", dict(use_qk_norm=True)),
    "cohere2": ("cohere2", FULL),
    "glm": ("glm", dict(partial_rotary_factor=0.5)),
    "glm4": ("glm4", dict(partial_rotary_factor=0.5)),
    "helium": ("helium", dict(head_dim=16)),
    "ernie4_5": ("ernie4_5", {}),
    "olmo2": ("olmo2", {}),
    "granite": ("granite", dict(attention_multiplier=0.2)),
    "smollm3": ("smollm3", dict(no_rope_layers=[1, 0, 1])),
    "stablelm": ("stablelm", dict(head_dim=16, partial_rotary_factor=0.5)),
    "stablelm, norms": ("stablelm", dict(head_dim=16, partial_rotary_factor=0.5, qk_layernorm=True)),
    "phi3": ("phi3", {}),
    "phi3, partial": ("phi3", dict(head_dim=16, partial_rotary_factor=0.5)),
    "deepseek_v2": ("deepseek_v2", dict(LATENT, q_lora_rank=None)),
    "deepseek_v2, low rank": ("deepseek_v2", dict(LATENT, q_lora_rank=16)),
    "deepseek_v3": ("deepseek_v3", dict(LATENT, q_lora_rank=16)),
    "deepseek_v3, halves": ("deepseek_v3", dict(LATENT, q_lora_rank=None, rope_interleave=False)),
    "exaone4": ("exaone4", dict(FULL, sliding_window=None)),
    "exaone4, one window": ("exaone4", dict(FULL, sliding_window=8)),
    "lfm2": ("lfm2", FULL),
    "nemotron_h": ("nemotron_h", dict(layers_block_type=["full_attention"] * LAYERS)),
    "qwen3_5_text": ("qwen3_5_text", dict(FULL, **axes(1, 1, 2, partial_rotary_factor=1.0))),
    "qwen3_5_text, partial": ("qwen3_5_text", dict(FULL, head_dim=16, **axes(1, 1, 2, partial_rotary_factor=0.5))),
    "qwen3_5_moe_text": ("qwen3_5_moe_text", dict(EXPERTS, **FULL, **axes(1, 1, 2, partial_rotary_factor=1.0))),
    "qwen2_vl_text": ("qwen2_vl_text", dict(head_dim=16, **axes(2, 3, 3))),
    "qwen2_5_vl_text": ("qwen2_5_vl_text", dict(head_dim=16, **axes(2, 3, 3))),
    "qwen3_vl_text": ("qwen3_vl_text", axes(1, 1, 2)),
    "mistral, windows": ("mistral", dict(sliding_window=4)),
    "qwen2, windows": ("qwen2", dict(use_sliding_window=True, sliding_window=4, max_window_layers=1)),
    "gemma2, windows": ("gemma2", dict(WINDOWS, attn_logit_softcapping=None, query_pre_attn_scalar=16)),
    "gemma3_text, windows": ("gemma3_text", dict(WINDOWS, query_pre_attn_scalar=16)),
    "cohere2, windows": ("cohere2", WINDOWS),
    "gemma4_text": ("gemma4_text", dict(WINDOWS, global_head_dim=16, hidden_size_per_layer_input=0)),
    "gemma3n_text": (
        "gemma3n_text",
        dict(
            WINDOWS,
            num_kv_shared_layers=0,
            hidden_size_per_layer_input=4,
            vocab_size_per_layer_input=VOCAB,
            laurel_rank=4,
            altup_num_inputs=2,
            activation_sparsity_pattern=[0.0] * LAYERS,
        ),
    ),
}
#: where a cap is in force, or a layer does not attend, signals are refused; these are such models
REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "gemma2, capped": ("gemma2", FULL, "caps the logits"),
    "chunked": ("llama", dict(layer_types=["chunked_attention"] * LAYERS), "has layers of the kind chunked_attention"),
}


def text_model(model_type: str, extra: dict[str, Any]) -> Any:
    """A bare text model with weights large enough that its attention is far from even."""
    config = AutoConfig.for_model(model_type, **{**BASE, **extra})
    torch.manual_seed(0)
    model = AutoModel.from_config(config, attn_implementation="eager").eval()
    enlarge(model)
    return model


def enlarge(model: Any) -> None:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 2:
                weight.normal_(std=0.3, generator=generator)
            elif weight.dim() == 1:
                weight.add_(0.3 * torch.randn(weight.shape, generator=generator))


@cache
def model_named(name: str) -> Any:
    return text_model(*MODELS[name])


@torch.no_grad()
def run(lm: Any, length: int, past: int) -> Iterator[tuple[LayerView, LayerView, Tensor, Tensor | None]]:
    """Per layer: views of a layer about to run and of one that has run, its weights [B, H, S, P + S], its keys.

    Two rows, of which the first begins with two tokens of padding; no cache if `past` is 0.
    """
    facts, total = decoder_for(lm), past + length
    generator = torch.Generator().manual_seed(2)
    embeds = torch.randn(2, total, WIDTH, generator=generator)
    mask = torch.ones(2, total, dtype=torch.long)
    mask[0, :2] = 0
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    if "mrope_section" in (getattr(lm.config, "rope_parameters", None) or {}):
        positions = positions + torch.randint(0, 9, (3, 2, total), generator=generator)
    store = DynamicCache() if past else None
    if store is not None:
        lm(
            inputs_embeds=embeds[:, :past],
            attention_mask=mask[:, :past],
            position_ids=positions[..., :past],
            **on(store),
        )
    before = copy.deepcopy(store)
    hidden: list[Tensor] = []
    inside: list[tuple[Tensor, Any]] = []
    handles = []
    for layer in facts.layers(lm):
        handles.append(layer.register_forward_pre_hook(lambda _, args: hidden.append(args[0])))
        handles.append(
            facts.attention(layer).register_forward_hook(
                lambda _, args, kwargs, out: inside.append(
                    (args[0] if args else kwargs["hidden_states"], kwargs.get("position_embeddings"))
                ),
                with_kwargs=True,
            )
        )
    given = dict(inputs_embeds=embeds[:, past:], attention_mask=mask, position_ids=positions[..., past:])
    output = lm(**given, **on(store), use_cache=bool(past), output_attentions=True)
    for handle in handles:
        handle.remove()
    for number, layer in enumerate(facts.layers(lm)):
        attention, seen, window = facts.attention(layer), mask.bool(), facts.windows(lm.config)[number]
        first = None if window is None else (torch.arange(past, total) - window + 1).clamp(min=0).expand(2, -1)
        x, tables = inside[number]
        keys = None if store is None else facts.cached_keys(attention, store.layers[number])
        held = None if before is None else facts.cached_keys(attention, before.layers[number])
        sees = Range(first)
        coming = LayerView(facts, attention, facts.normed(layer, hidden[number]), tables, held, False, seen, sees)
        yield coming, LayerView(facts, attention, x, tables, keys, True, seen, sees), output.attentions[number], keys


def on(store: Any) -> dict[str, Any]:
    """The keyword argument by which a model takes a cache."""
    name = "cache" if "cache" in signature(LlamaModel.forward).parameters else "past_key_values"
    return {} if store is None else {name: store}


@pytest.mark.parametrize("past", [0, 5], ids=["no cache", "cache"])
@pytest.mark.parametrize("name", MODELS)
def test_every_signal_of_every_layer_is_the_eager_attention(name: str, past: int) -> None:
    lm = model_named(name)
    check_decoder(decoder_for(lm), lm)  # accepted
    at = torch.tensor([[8, 6, 3, -1], [8, 7, 0, 2]])
    there = (at >= 0)[..., None]
    layers = list(run(lm, 9, past))
    assert len(layers) == LAYERS
    for coming, gone, weights, keys in layers:
        asked = torch.stack([weights[row][:, at[row].clamp(min=0)] for row in range(2)])  # [B, H, R, K]
        assert float(asked.amax()) > 0.2  # far from even, or every rotation would do
        rows, peak = asked.mean(dim=1) * there, (asked * there[:, None]).amax(dim=(1, 2))
        received = rows.sum(dim=1) / there.sum(dim=1)
        for view in (coming, gone):
            assert view.past == past
            close(view.rows(at), rows)
            close(view.rows(at[:, :1])[:, 0], rows[:, 0])
            close(view.peak(at), peak)
            close(torch.stack(list(view.heads(at)), dim=1) * there[:, None], asked * there[:, None])
            bias = view.rotation_bias(at)
            own = bias.gather(2, at.clamp(min=0)[..., None])  # of a place with itself: every rotation keeps lengths
            close(own, own[:1, :1].expand_as(own))
            assert bool((bias <= own + 1e-5).all())
            close(view.received(at), received)
            close(view.of_row(1).rows(at[1:]), rows[1:])
            if keys is not None:
                close(view.keys, keys)


def close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_every_type_that_is_believed_is_tested() -> None:
    believed = {t for t, facts in decoder._DECODERS.items() if type(facts).__module__ == text_models.__name__}
    assert believed == {model_type for model_type, _ in MODELS.values()}


@pytest.mark.parametrize("name", MODELS)
def test_the_proof_agrees_with_what_is_believed(name: str) -> None:
    lm = model_named(name)
    known = type(decoder_for(lm))
    check_decoder(type(known.__name__, (known,), {})(), lm)  # the same facts from elsewhere: proven, not believed


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_read_is_refused(name: str) -> None:
    model_type, extra, reason = REFUSED[name]
    with torch.device("meta"):
        lm = AutoModel.from_config(AutoConfig.for_model(model_type, **{**BASE, **extra}))
    with pytest.raises(ValueError, match=reason):
        check_decoder(decoder_for(lm), lm)


# -- types that nobody has described -----------------------------------------------------------------------------


@pytest.mark.parametrize("model_type", ["seed_oss", "starcoder2", "olmo"])
def test_an_undescribed_model_that_is_as_usual_is_proven(model_type: str) -> None:
    lm = text_model(model_type, dict(sliding_window=None))
    assert type(decoder_for(lm)) is Decoder
    state = torch.get_rng_state()
    check_decoder(decoder_for(lm), lm)
    assert torch.get_rng_state().equal(state)
    for coming, gone, weights, keys in run(lm, 9, 5):
        for view in (coming, gone):
            close(view.rows(torch.tensor([[8], [8]]))[:, 0], weights.mean(dim=1)[:, -1])
            assert keys is not None
            close(view.keys, keys)


@pytest.mark.parametrize(
    ("model_type", "extra", "reason"),
    [
        ("apertus", {}, "input_layernorm"),  # its norm has another name
        ("minicpm3", dict(LATENT, q_lora_rank=16), "does not fit it"),  # latent attention
        ("gpt_oss", dict(FULL, num_local_experts=4), "does not fit it"),  # tables of half the width, and sinks
    ],
)
def test_an_undescribed_model_that_is_not_as_usual_is_refused(
    model_type: str, extra: dict[str, Any], reason: str
) -> None:
    lm = text_model(model_type, extra)
    with pytest.raises(ValueError, match=reason):
        check_decoder(decoder_for(lm), lm)


# -- a decoder from outside the package --------------------------------------------------------------------------


class Halves(ToyDecoder):
    """Wrong: rotates half-split, as most do."""

    def rotated(self, attention: Any, x: Tensor, tables: Any) -> Tensor:
        half = x.shape[-1] // 2
        cos, sin = (table[:, None, :, : half // 2].repeat(1, 1, 1, 2) for table in tables)
        front, rest = x[..., :half], x[..., half:]
        one, two = front.chunk(2, dim=-1)
        return torch.cat([front * cos + torch.cat([-two, one], dim=-1) * sin, rest], dim=-1)


class Scaled(ToyDecoder):
    """Wrong: the usual scaling."""

    def scaling(self, attention: Any) -> float:
        return attention.head_dim**-0.5


class Unnormed(ToyDecoder):
    """Wrong: takes the layer for one that normalises afterwards."""

    def normed(self, layer: Any, hidden: Tensor) -> Tensor:
        return hidden


class OtherKeys(ToyDecoder):
    """Wrong: looks for something else in the cache."""

    def cached_keys(self, attention: Any, cached: Any) -> Tensor:
        return cached.values


def toy() -> Any:
    return llava("toy_text", {})


def llava(model_type: str, extra: dict[str, Any]) -> Any:
    """LLaVA with a text model of this type; eager."""
    config = AutoConfig.for_model(
        "llava",
        vision_config={"model_type": "clip_vision_model", **VISION, "projection_dim": 16},
        text_config={"model_type": model_type, **BASE, **extra},
        image_token_index=IMAGE,
    )
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(config, attn_implementation="eager").eval()
    enlarge(model.model.language_model)
    return model


def pictures() -> dict[str, Tensor]:
    """Two rows, the first of which begins with padding."""
    ids = torch.tensor([[PAD, PAD, BOS, *[IMAGE] * 36, 7, 8], [BOS, 9, *[IMAGE] * 36, 11, 12, 13]])
    pixels = torch.randn(2, 3, 24, 24, generator=torch.Generator().manual_seed(3))
    return {"input_ids": ids, "pixel_values": pixels, "attention_mask": (ids != PAD).long()}


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (Halves, r"\(Halves\) is off by up to .* in its keys as the KV cache holds them"),
        (Scaled, r"\(Scaled\) is off by up to .* in its attention weights"),
        (Unnormed, r"\(Unnormed\) is off by up to .* in what goes into its attention"),
        (OtherKeys, r"\(OtherKeys\) is off by up to .* in its keys as the KV cache holds them"),
        (Decoder, r"\(Decoder\) does not fit it: AttributeError"),
    ],
)
@pytest.mark.parametrize("method", ["fastv", "h2o", "dycoke"])
def test_a_wrong_fact_is_refused_at_wrap(
    wrong: type[Decoder], reason: str, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(decoder._DECODERS, "toy_text", wrong())
    model = toy()
    words = (
        rf"^{method} works inside .*\(toy_text\), but what is known of such models {reason}.*divprune.*register_decoder"
    )
    with pytest.raises(ValueError, match=words):
        vtc.wrap(model, method, keep=0.25)
    with vtc.wrapped(model, "divprune", keep=9):
        model(**pictures())
        assert [len(span.kept) for span in vtc.report(model).spans] == [9, 9]


def test_a_right_fact_is_accepted_and_chooses_as_the_model_attends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoder, "_DECODERS", dict(decoder._DECODERS))
    assert register_decoder(ToyDecoder) is ToyDecoder
    check_fastv(toy())


@pytest.mark.parametrize("place", ["attention", "feed_forward"])
def test_a_part_that_is_not_there_is_refused_at_wrap(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def elsewhere(layer: Any) -> Any:
        return layer.elsewhere

    facts = ToyDecoder()
    monkeypatch.setattr(facts, place, elsewhere)
    monkeypatch.setitem(decoder._DECODERS, "toy_text", facts)
    model = toy()
    words = r"^transprune works inside .*\(toy_text\), but no .* is where others have it.*divprune"
    with pytest.raises(ValueError, match=words):
        vtc.wrap(model, vtc.TransPrune(keep=0.5))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_a_decoder_says_what_it_is_of() -> None:
    class Nameless(Decoder):
        pass

    with pytest.raises(ValueError, match="Nameless names no language model: give it model_types"):
        register_decoder(Nameless)


# -- end to end --------------------------------------------------------------------------------------------------


@torch.no_grad()
def check_fastv(model: Any) -> None:
    inputs = pictures()
    attention = model(**inputs, output_attentions=True).attentions[1].mean(dim=1)[:, -1]  # [B, L]
    with vtc.wrapped(model, vtc.FastV(keep=9, layers=(2,))):
        model(**inputs)
        kept = [span.kept.tolist() for span in vtc.report(model).spans]
    for row in range(2):
        heard = attention[row, inputs["input_ids"][row] == IMAGE]
        best = heard.sort(descending=True).values
        assert float(best[8] - best[9]) > 1e-6  # no tie at the edge
        assert kept[row] == sorted(heard.topk(9).indices.tolist())


#: windows of layer 1 that end behind the picture; layers that hand on several states, between which nothing is dropped
APART = {"mistral, windows", "qwen2, windows", "gemma3n_text"}


@pytest.mark.parametrize("name", [name for name in MODELS if "_vl_" not in name and name not in APART])
def test_fastv_keeps_what_the_eager_attention_ranks_first(name: str) -> None:
    check_fastv(llava(*MODELS[name]))


@pytest.mark.parametrize("method", ["fastv", "h2o"])
def test_a_capped_attention_is_refused_at_wrap(method: str) -> None:
    model = llava("gemma2", FULL)
    with pytest.raises(ValueError, match=rf"{method} works inside .*\(gemma2\), but it caps the logits .*divprune"):
        vtc.wrap(model, method, keep=0.25)
    with vtc.wrapped(model, "divprune", keep=9):
        model(**pictures())
        assert vtc.report(model).tokens_out == 18
