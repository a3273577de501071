"""What wrapping leaves behind, what it shares, and what it survives."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import vtc
from tests.families import FAMILIES, batch, model_of
from vtc.engine.versions import cache_of

pytestmark = pytest.mark.core

GREEDY: dict[str, Any] = dict(max_new_tokens=4, do_sample=False)


def traces(model: nn.Module) -> dict[str, Any]:
    """Everything about a model that wrapping could change: hooks, attributes, attention implementations."""
    hooks = ("_forward_pre_hooks", "_forward_hooks", "_forward_pre_hooks_with_kwargs", "_forward_hooks_with_kwargs")
    found: dict[str, Any] = {}
    for name, module in model.named_modules():
        found[name] = (
            [len(getattr(module, hook)) for hook in hooks],
            len(module._forward_hooks_always_called),
            sorted(vars(module)),
            getattr(getattr(module, "config", None), "_attn_implementation", None),
            module.forward.__qualname__,
        )
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_unwrap_leaves_no_trace(family: str) -> None:
    model, inputs = model_of(family), batch(family, [[0], [1]])
    before = model(**inputs)
    seen = traces(model)
    vtc.wrap(model, ["vtc-cls", "divprune"])
    assert traces(model) != seen
    model.generate(**inputs, **GREEDY)
    assert vtc.unwrap(model) is model
    assert traces(model) == seen
    after = model(**inputs)
    assert after.logits.equal(before.logits)
    assert len(after.past_key_values.layers) == len(before.past_key_values.layers)
    assert type(after.past_key_values.layers[0]) is type(before.past_key_values.layers[0])


def test_everything_kept_changes_nothing() -> None:
    model, inputs = model_of("llava"), batch("llava", [[0], [1, 2]])
    full = model(**inputs).logits
    with vtc.wrapped(model, "divprune", keep=1.0):
        assert torch.allclose(model(**inputs).logits, full, atol=1e-5, rtol=1e-5)


def test_the_cache_shrinks_and_counts_logically() -> None:
    model, inputs = model_of("llava"), batch("llava", [[0]])
    length = inputs["input_ids"].shape[1]
    with vtc.wrapped(model, "divprune", keep=6):
        cache = model(**inputs, use_cache=True).past_key_values
    assert cache.get_seq_length() == length
    assert cache.layers[0].keys.shape[-2] == length - 36 + 6
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    with vtc.wrapped(model, "divprune", keep=6):
        model(**inputs)
        assert vtc.report(model).kv_bytes[1] == held
    cache.crop(-3)  # the text behind the picture
    assert cache.get_seq_length() == length - 3
    with pytest.raises(ValueError, match="cannot remove 40 tokens from a compressed cache"):
        cache.crop(-40)


def test_two_models_do_not_see_each_other() -> None:
    one, other = copy.deepcopy(model_of("llava")), copy.deepcopy(model_of("llava"))
    inputs = batch("llava", [[0]])
    vtc.wrap(one, "divprune", keep=4)
    vtc.wrap(other, "pool", keep=9)
    one(**inputs)
    other(**inputs)
    assert vtc.report(one).tokens_out == 4
    assert vtc.report(other).tokens_out == 9
    vtc.unwrap(one)
    other(**inputs)
    assert vtc.report(other).tokens_out == 9


def test_wrapped_nests_and_restores() -> None:
    model, inputs = model_of("llava"), batch("llava", [[0]])
    full = model(**inputs).logits
    with vtc.wrapped(model, "divprune", keep=4) as same:
        assert same is model
        outer = model(**inputs).logits
        with vtc.wrapped(model, vtc.Pool(keep=9)):
            model(**inputs)
            assert vtc.report(model).tokens_out == 9
        assert model(**inputs).logits.equal(outer)
        with pytest.raises(KeyError), vtc.wrapped(model, "random", keep=3):
            raise KeyError("inside")
        assert model(**inputs).logits.equal(outer)
    assert model(**inputs).logits.equal(full)
    with pytest.raises(ValueError, match="not wrapped"):
        vtc.report(model)


def test_wrapping_again_replaces() -> None:
    model, inputs = model_of("llava"), batch("llava", [[0]])
    seen = traces(model)
    vtc.wrap(vtc.wrap(model, "divprune", keep=4), "pool", keep=9)
    model(**inputs)
    assert [stage.name for stage in vtc.report(model).stages] == ["pool"]
    vtc.unwrap(model)
    assert traces(model) == seen


def test_deepcopy_is_wrapped_on_its_own() -> None:
    model, inputs = copy.deepcopy(model_of("llava_next")), batch("llava_next", [[0]])
    vtc.wrap(model, "vtc-cls", keep=5)
    expected = model(**inputs).logits
    twin = copy.deepcopy(model)
    vtc.unwrap(model)
    assert twin(**inputs).logits.equal(expected)
    assert vtc.report(twin).tokens_out == 5
    vtc.unwrap(twin)
    assert twin(**inputs).logits.equal(model(**inputs).logits)
    assert traces(twin) == traces(model)


def test_save_pretrained_writes_the_original(tmp_path: Path) -> None:
    model = copy.deepcopy(model_of("llava"))
    model.save_pretrained(tmp_path / "plain")
    vtc.wrap(model, "visionzip", keep=5)
    model.save_pretrained(tmp_path / "wrapped")
    for name in ("config.json", "generation_config.json"):
        assert (tmp_path / "plain" / name).read_text() == (tmp_path / "wrapped" / name).read_text()
    plain, wrapped = (load_file(tmp_path / d / "model.safetensors") for d in ("plain", "wrapped"))
    assert plain.keys() == wrapped.keys()
    assert all(plain[key].equal(wrapped[key]) for key in plain)


def test_an_exception_inside_forward_leaves_the_model_usable() -> None:
    model, inputs = copy.deepcopy(model_of("llava")), batch("llava", [[0]])
    vtc.wrap(model, "divprune", keep=4)
    expected = model(**inputs).logits
    layer = model.model.language_model.layers[1]

    def fail(*_: Any) -> None:
        raise RuntimeError("out of memory, say")

    for place in (layer, model.model.vision_tower):
        handle = place.register_forward_pre_hook(fail)
        with pytest.raises(RuntimeError, match="out of memory"):
            model(**inputs)
        handle.remove()
        assert model(**inputs).logits.equal(expected)
    text = batch("llava", [[]])
    assert model(**text).logits.equal(vtc.unwrap(model)(**text).logits)


def test_text_only_prompts_pass_untouched() -> None:
    for family in FAMILIES:
        model, inputs = model_of(family), batch(family, [[], []])
        expected = model.generate(**inputs, **GREEDY)
        with vtc.wrapped(model, "vtc-cls", keep=4):
            assert model.generate(**inputs, **GREEDY).equal(expected)
            assert vtc.report(model).spans == []
            assert "no visual tokens" in str(vtc.report(model))


def test_eager_and_sdpa_choose_alike() -> None:
    for family in FAMILIES:
        inputs, kept = batch(family, [[0], [1]]), []
        for attention in ("sdpa", "eager"):
            with vtc.wrapped(model_of(family, attention), "vtc-cls", keep=0.4) as model:
                model(**inputs)
                kept.append([span.kept.tolist() for span in vtc.report(model).spans])
        assert kept[0] == kept[1]


def test_a_batch_chooses_like_its_rows() -> None:
    for family in FAMILIES:
        for method in ("random", "vtc-cls", "divprune"):
            with vtc.wrapped(model_of(family), method, keep=0.3) as model:
                model(**batch(family, [[0], [1, 2]]))
                together = [span.kept.tolist() for span in vtc.report(model).spans]
                alone = []
                for row in ([0], [1, 2]):
                    model(**batch(family, [row]))
                    alone += [span.kept.tolist() for span in vtc.report(model).spans]
            assert together == alone


def test_logits_stay_aligned_with_the_prompt() -> None:
    """Row i predicts token i + 1: also where the tokens in between were dropped."""
    model, inputs = model_of("llava"), batch("llava", [[0]])
    with vtc.wrapped(model, "divprune", keep=4):
        out = model(**inputs, output_hidden_states=True)
        kept = vtc.report(model).spans[0].kept
    assert out.logits.shape[1] == inputs["input_ids"].shape[1]
    assert all(state.shape[1] == out.logits.shape[1] for state in out.hidden_states)
    start = int((inputs["input_ids"][0] == 2).nonzero()[0])
    last = start + int(kept[-1])
    assert out.logits[0, last].equal(out.logits[0, start + 35])  # the next text token follows the last kept one


def test_low_precision() -> None:
    for dtype in (torch.bfloat16, torch.float16):
        model, inputs = copy.deepcopy(model_of("qwen3_vl")).to(dtype), batch("qwen3_vl", [[0], [1]])
        for method in ("vtc-cls", "visionzip", "pool"):
            with vtc.wrapped(model, method, keep=0.3):
                out = model.generate(**inputs, **GREEDY, return_dict_in_generate=True, output_logits=True)
            assert out.logits[0].dtype == dtype or out.logits[0].isfinite().all()
            assert out.logits[0].isfinite().all()


def test_layers_have_hooks_only_where_they_may_hold_different_rows() -> None:
    """A hook on every layer is what a wrap costs a decode step; a cache that another wrap left uneven brings them."""
    model, inputs = model_of("llava"), batch("llava", [[0]])
    layers = model.model.language_model.layers

    def hooked() -> bool:
        return any(layer._forward_pre_hooks for layer in layers)

    with vtc.wrapped(model, vtc.Streaming(keep=6, first=2)):
        assert hooked()
        cache = cache_of(model(**inputs, use_cache=True))
        token = {"input_ids": torch.tensor([[7]]), "use_cache": True}
        expected = model(**token, past_key_values=copy.deepcopy(cache)).logits
    with vtc.wrapped(model, "divprune"):
        model(**inputs, use_cache=True)
        assert not hooked()
        torch.testing.assert_close(model(**token, past_key_values=cache).logits, expected)
        assert hooked()
    assert not hooked()
