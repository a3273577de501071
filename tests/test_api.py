"""The public calls, and what they say to bad input: one sentence, before any compute, nothing half-applied."""

from __future__ import annotations

import copy
import json
import math
from typing import Any, cast

import pytest
import torch
import transformers
from packaging import version
from transformers import (
    AutoModelForCausalLM,
    DynamicCache,
    LlamaConfig,
    LlavaForConditionalGeneration,
    MistralConfig,
    StaticCache,
)
from transformers.cache_utils import DynamicLayer

import vtc
from tests.engine.test_engine import traces
from tests.families import TEXT, batch, model_of

pytestmark = pytest.mark.core


def one_sentence(error: BaseException) -> bool:
    return "\n" not in str(error) and len(str(error)) < 400


@pytest.fixture
def model() -> Any:
    model = model_of("llava")
    yield model
    vtc.unwrap(model)


BAD_KEEP = [
    (0, ValueError),
    (-3, ValueError),
    (0.0, ValueError),
    (-0.5, ValueError),
    (1.5, ValueError),
    (64.0, ValueError),
    (math.nan, ValueError),
    (math.inf, ValueError),
    ("64", TypeError),
    (True, TypeError),
    ([64], TypeError),
]


@pytest.mark.parametrize(("keep", "error"), BAD_KEEP, ids=[repr(k) for k, _ in BAD_KEEP])
def test_bad_keep(model: Any, keep: Any, error: type[Exception]) -> None:
    seen = traces(model)
    for call in (
        lambda: vtc.wrap(model, "divprune", keep=keep),
        lambda: vtc.DivPrune(keep=keep),
        lambda: vtc.select("divprune", torch.randn(8, 4), keep=keep),
    ):
        with pytest.raises(error, match="keep") as caught:
            call()
        assert one_sentence(caught.value)
    assert traces(model) == seen


def test_a_bad_wrap_leaves_the_old_one(model: Any) -> None:
    vtc.wrap(model, "pool", keep=9)
    bads: list[dict[str, Any]] = [{"method": "divprune", "keep": 0}, {"method": "divprun"}, {"method": []}]
    for bad in bads:
        with pytest.raises(ValueError, match=r"keep|unknown|empty"):
            vtc.wrap(model, **bad)
    model(**batch("llava", [[0]]))
    assert vtc.report(model).tokens_out == 9


def test_unknown_names_suggest_the_nearest(model: Any) -> None:
    with pytest.raises(ValueError, match="Did you mean 'divprune'"):
        vtc.wrap(model, "divprun")
    with pytest.raises(ValueError, match="Did you mean 'vtc-cls'"):
        vtc.wrap(model, "VTC_CLS")
    with pytest.raises(ValueError, match=r"Known methods: .*random"):
        vtc.wrap(model, "zzz")
    with pytest.raises(TypeError, match="Did you mean 'start_layer'"):
        vtc.wrap(model, "vtc-cls", start_layr=3)
    with pytest.raises(TypeError, match="pass an instance"):
        vtc.wrap(model, vtc.DivPrune)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="expected a name"):
        vtc.wrap(model, 7)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="to each"):
        vtc.wrap(model, ["pool", "divprune"], keep=3)
    with pytest.raises(ValueError, match="original"):
        vtc.wrap(model, "divprune", positions="packed")
    with pytest.raises(ValueError, match="outside the vision tower's 3 layers"):
        vtc.wrap(model, "vtc-cls", start_layer=3)


def test_models_that_cannot_be_wrapped() -> None:
    text = AutoModelForCausalLM.from_config(LlamaConfig(**cast(Any, TEXT)))
    with pytest.raises(ValueError, match=r"text-only model.*vtc families"):
        vtc.wrap(text, "divprune")
    with pytest.raises(TypeError, match="expected a model to wrap"):
        vtc.wrap("llava", "divprune")  # type: ignore[type-var]
    with pytest.raises(ValueError, match=r"none of transformers. models.*docs/extend/family.md"):
        vtc.wrap(torch.nn.Linear(2, 2), "divprune")
    with pytest.raises(ValueError, match="whole model"):
        vtc.wrap(model_of("llava").model, "divprune")
    full = copy.deepcopy(model_of("llava"))
    full.config.vision_feature_select_strategy = "full"
    with pytest.raises(ValueError, match="CLS token"):
        vtc.wrap(full, "divprune")


def test_parts_wrapped_through_another_model(model: Any) -> None:
    other = copy.copy(model)
    other._modules = dict(model._modules)  # shares the base model
    vtc.wrap(model, "pool", keep=9)
    seen = traces(model)
    with pytest.raises(ValueError, match="another model object"):
        vtc.wrap(other, "divprune")
    assert traces(model) == seen


def test_a_family_that_cannot_feed_the_method(model: Any) -> None:
    with pytest.raises(ValueError, match="not a signal"):

        class Wants(vtc.Method):
            name = "wants-depth"
            needs = ("depth_map",)

    with pytest.raises(TypeError, match="neither score"):
        vtc.wrap(model, type("Empty", (vtc.Method,), {})())


class Spy:
    """Counts how often a module runs."""

    def __init__(self, module: torch.nn.Module) -> None:
        self.calls = 0
        self.handle = module.register_forward_pre_hook(self)

    def __call__(self, *_: Any) -> None:
        self.calls += 1


def test_what_a_wrapped_forward_refuses(model: Any) -> None:
    vtc.wrap(model, "divprune", keep=4)
    inputs = batch("llava", [[0]])
    embeds = model.get_input_embeddings()(inputs["input_ids"])
    static = StaticCache(config=model.config.text_config, max_cache_len=64)
    spies = [Spy(model.model.vision_tower), Spy(model.model.language_model.layers[0])]
    refused: list[tuple[dict[str, Any], str]] = [
        ({**inputs, "past_key_values": static}, "static KV cache"),
        ({**inputs, "attention_mask": torch.ones(1, 1, 43, 43)}, "2-D"),
        ({"inputs_embeds": embeds}, "which tokens are visual"),
    ]
    for bad, reason in refused:
        with pytest.raises(ValueError, match=reason) as caught:
            model(**bad)
        assert one_sentence(caught.value)
    assert [spy.calls for spy in spies] == [0, 0]
    for spy in spies:
        spy.handle.remove()
    with pytest.raises(ValueError, match="static KV cache"):
        model.generate(**inputs, cache_implementation="static", max_new_tokens=2)
    model(**inputs)
    assert vtc.report(model).tokens_out == 4


def test_embeddings_with_a_mask_are_handled() -> None:
    model, inputs = model_of("qwen2_vl"), batch("qwen2_vl", [[0]])
    captured: dict[str, Any] = {}

    def keep(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        captured.update(kwargs)

    handle = model.model.language_model.register_forward_pre_hook(keep, with_kwargs=True)
    model(**inputs)
    handle.remove()
    ready = {
        "inputs_embeds": captured["inputs_embeds"],
        "position_ids": captured["position_ids"],
        "attention_mask": inputs["attention_mask"],
        "mm_token_type_ids": inputs["mm_token_type_ids"],
        "image_grid_thw": inputs["image_grid_thw"],
    }
    with vtc.wrapped(model, "divprune", keep=5):
        expected = model(**inputs).logits
        assert torch.allclose(model(**ready).logits, expected, atol=1e-5)
        assert vtc.report(model).tokens_out == 5
    with vtc.wrapped(model, "vtc-cls", keep=5), pytest.raises(ValueError, match=r"signal .* is missing"):
        model(**ready)


def test_features_encoded_for_another_method_are_refused(model: Any) -> None:
    inputs = batch("llava", [[0]])
    encoded = vtc.encode(model, "divprune", pixel_values=inputs.pop("pixel_values"))
    vtc.wrap(model, "vtc-cls", keep=4)
    with pytest.raises(ValueError, match=r"vtc.encode"):
        model(**inputs, **encoded.take([0]))
    with pytest.raises(IndexError, match="outside the 1"):
        encoded.take([1])
    with pytest.raises(ValueError, match="pixel_values"):
        vtc.encode(model, "divprune")


def test_select_checks_its_input() -> None:
    x = torch.randn(12, 4)
    for call, reason in [
        (lambda: vtc.select("divprune", torch.randn(3, 4, 5)), r"\[N, D\]"),
        (lambda: vtc.select("divprune", torch.zeros(0, 4)), "N >= 1"),
        (lambda: vtc.select("pool", x), "grid"),
        (lambda: vtc.select("pool", x, grid=(1, 3, 5)), "12 tokens"),
        (lambda: vtc.select("vtc-cls", x), "cls_attention"),
        (lambda: vtc.select("vtc-cls", x, cls_attention=torch.rand(11)), r"expected \[12\]"),
        (lambda: vtc.select("visionzip", x, keep=6, cls_attention=torch.rand(12)), "keys"),
        (lambda: vtc.select("divprune", x, clss_attention=x[:, 0]), "Did you mean 'cls_attention'"),
    ]:
        with pytest.raises(ValueError, match=reason) as caught:
            call()
        assert one_sentence(caught.value)
    assert vtc.select("todre", x, keep=2, pivot="center").tokens_out == 2
    assert vtc.select("vtc-cls", x, keep=3, cls_attention=torch.arange(12.0)).anchor.tolist() == [9, 10, 11]
    assert vtc.select("vtc-cls", x, keep=2, received_attention=torch.arange(12.0)).anchor.tolist() == [10, 11]


def test_report_is_json_and_a_table(model: Any) -> None:
    vtc.wrap(model, "visionzip", keep=9)
    model(**batch("llava", [[0], [1, 2], []]))
    report = vtc.report(model)
    assert [span.row for span in report.spans] == [0, 1, 1]
    assert (report.tokens_in, report.tokens_out) == (108, 27)
    for span in report.spans:
        assert span.grid == (1, 6, 6)
        assert span.boxes.shape == (36, 4)
        assert span.source[span.kept].tolist() == list(range(9))
    data = json.loads(json.dumps(report.as_dict()))
    assert data["tokens_out"] == 27
    assert data["spans"][2]["source"] == report.spans[2].source.tolist()
    assert 0 < data["flops"]["compressed"] < data["flops"]["full"]
    assert 0 < data["kv_bytes"]["compressed"] < data["kv_bytes"]["full"]
    text = str(report)
    assert "108 → 27" in text
    assert "visionzip" in text


def test_methods_lists_the_registry() -> None:
    names = [info.name for info in vtc.list_methods()]
    assert {"random", "pool", "vtc-cls", "divprune", "todre", "visionzip"} <= set(names)
    for info in vtc.list_methods():
        assert info.summary
        assert set(info.stage.split("+")) <= {"pixels", "encoder", "input", "layer", "cache"}


def test_grids_that_are_none() -> None:
    x = torch.randn(9, 4)
    for grid in (9, (1, 3.0, 3), (1, -3, -3), (3, 3)):
        with pytest.raises(ValueError, match="expected"):
            vtc.select("divprune", x, grid=cast(Any, grid))


def test_a_window_of_all_layers() -> None:
    """BakLLaVA, and whatever on Mistral leaves the key out, has a window of 4096 tokens: reached, or not."""
    inputs = batch("llava", [[0]])
    length, greedy = inputs["input_ids"].shape[1], dict(do_sample=False, eos_token_id=None)
    for window in (length // 2, length - 1, length, length + 6, length + 1000):
        config = copy.deepcopy(model_of("llava").config)
        config.text_config = MistralConfig(**cast(Any, TEXT), sliding_window=window)
        model: Any = LlavaForConditionalGeneration(config).eval()
        for method in ("divprune", "fastv(layers=(1,))", "fastv(layers=(2,))"):
            found = vtc.check(model, method, 0.5, inputs=inputs, show=None)
            assert found.ok, found
        with vtc.wrapped(model, "h2o", keep=0.5):
            if window > length:
                assert model.generate(**inputs, max_new_tokens=6, **greedy).shape[1] == length + 6
            if window < length + 12:
                why = (
                    rf"^this language model attends within a window of {window} tokens, .* where h2o works on its .*\.$"
                )
                with pytest.raises(ValueError, match=why):
                    model.generate(**inputs, max_new_tokens=13, **greedy)


def test_hybrid_language_models_are_refused() -> None:
    model = copy.deepcopy(model_of("llava_onevision"))
    model.config.text_config.layer_types = ["full_attention", "chunked_attention", "full_attention"]
    with pytest.raises(ValueError, match="chunked_attention, which is not supported"):
        vtc.wrap(model, "divprune")


def test_caches_that_cannot_lose_rows(model: Any) -> None:
    inputs = batch("llava", [[0]])
    with vtc.wrapped(model, vtc.FastV(layers=(1,))):
        offloaded = DynamicCache(config=model.config.text_config)
        offloaded.offloading = True  # as offloading=True leaves it, which takes a GPU
        with pytest.raises(ValueError, match="offloaded KV cache"):
            model(**inputs, past_key_values=offloaded)
        quantised: Any = DynamicCache(config=model.config.text_config)
        quantised.layers = [type("QuantizedLayer", (DynamicLayer,), {})() for _ in quantised.layers]
        with pytest.raises(ValueError, match="QuantizedLayer KV cache is not supported"):
            model(**inputs, past_key_values=quantised)
        assert model(**inputs, past_key_values=DynamicCache()).past_key_values.get_seq_length() == 43


def test_methods_in_an_order_that_cannot_be(model: Any) -> None:
    for methods, reason in [
        ([vtc.H2O(), vtc.FastV(layers=(1,))], "input before layer before cache"),
        ([vtc.FastV(layers=(1,)), vtc.DivPrune()], "input before layer before cache"),
        ([vtc.FastV(layers=(1,)), vtc.DART(layers=(1,))], "both act before decoder layer 1"),
        (vtc.FastV(layers=(3,)), "this model's layers are 0 to 2"),
        (vtc.FastV(keep=0.01, average=True, layers=(2,)), "cannot keep 100 of 10000 visual tokens on average"),
    ]:
        with pytest.raises(ValueError, match=reason) as caught:
            vtc.wrap(model, methods)
        assert one_sentence(caught.value)


def test_an_average_that_cannot_be_is_refused_before_the_language_model(model: Any) -> None:
    spy = Spy(model.model.language_model.layers[0])
    reason = "cannot keep 3 of 36 visual tokens on average"
    with vtc.wrapped(model, vtc.FastV(keep=3, average=True, layers=(2,))), pytest.raises(ValueError, match=reason):
        model(**batch("llava", [[0]]))
    assert spy.calls == 0
    spy.handle.remove()


def test_what_needs_the_grid_comes_first(model: Any) -> None:
    with pytest.raises(ValueError, match="whole grid"):
        vtc.wrap(model, ["random", "pool"])


@pytest.mark.skipif(version.parse(transformers.__version__) < version.parse("5.23"), reason="generate drops the pixels")
def test_chunked_prefill_is_refused(model: Any) -> None:
    vtc.wrap(model, "divprune", keep=4)
    with pytest.raises(ValueError, match="prefill_chunk_size"):
        model.generate(**batch("llava", [[0]]), max_new_tokens=2, prefill_chunk_size=16)


def test_a_pipeline_in_one_string():
    model, inputs = model_of("llava"), batch("llava", [[0]])
    reports = []
    for method in (
        "vtc-cls(keep=20) + fastv(keep=6, layers=(1,))",
        [vtc.VTCCLS(keep=20), "fastv(keep=6, layers=(1,))"],
    ):
        with vtc.wrapped(model, method):
            model(**inputs)
            reports.append(vtc.report(model).tokens_by_layer)
    assert reports == [[20, 6, 6]] * 2
    with pytest.raises(TypeError, match="with several methods, give keep and options to each"):
        vtc.wrap(model, "vtc-cls + fastv", keep=3)
    with pytest.raises(ValueError, match=r"^'' does not name a method"):
        vtc.wrap(model, "vtc-cls +")
    assert "_vtc_engine" not in model.__dict__
