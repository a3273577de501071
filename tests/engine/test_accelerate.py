"""Models with accelerate's hooks — spread over devices, offloaded to memory or to disk — answer as without them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from accelerate import cpu_offload, dispatch_model, init_empty_weights, load_checkpoint_and_dispatch
from accelerate.hooks import AlignDevicesHook, remove_hook_from_submodules
from accelerate.utils import send_to_device
from safetensors.torch import save_model
from torch import Tensor
from transformers import AutoModelForImageTextToText
from transformers.utils.generic import ModelOutput

import vtc
from tests.engine.cells import GREEDY, METHODS, VIDEOS, cells, prompts, told, walk
from tests.families import FAMILIES, batch, model_of

CPU = torch.device("cpu")
FOLDERS: list[TemporaryDirectory[str]] = []  # removed when Python ends


def new_folder() -> str:
    FOLDERS.append(TemporaryDirectory())
    return FOLDERS[-1].name


@cache
def saved(family: str) -> Path:
    """A folder with the family's tiny model."""
    folder = Path(new_folder())
    model_of(family).save_pretrained(folder)
    (folder / "raw").mkdir()
    file = str(folder / "raw" / "model.safetensors")
    save_model(model_of(family), file, {"format": "pt"})  # its own names, which accelerate looks for
    return folder


def siglip(family: str) -> bool:
    """Whether the tower's head has an attention of torch's own, which the plain model cannot offload."""
    return model_of(family).config.vision_config.model_type == "siglip_vision_model"


def _offloaded(family: str) -> Any:
    """All weights stay in memory until a module needs them; but what the plain model uses outside its own module."""
    model = copy.deepcopy(model_of(family))
    if "next" not in family and not siglip(family):
        return cpu_offload(model, execution_device=CPU)
    for name, part in model.model.named_children():
        if "vision" not in name or not siglip(family):
            cpu_offload(part, execution_device=CPU)
    return model


def _on_disk(family: str) -> Any:
    """The tower and all decoder layers but the first on disk, the rest in memory."""
    parts = {name: "cpu" for name, _ in model_of(family).named_children()}
    inside = {f"model.{name}": "cpu" for name, _ in model_of(family).model.named_children()}
    del parts["model"], inside["model.language_model"]
    layers = {f"model.language_model.layers.{i}": "disk" if i else "cpu" for i in range(3)}
    rest = {f"model.language_model.{name}": "cpu" for name, _ in model_of(family).model.language_model.named_children()}
    del rest["model.language_model.layers"]
    tower = next(name for name in inside if "vision" in name or "visual" in name)
    where = {**parts, **inside, **layers, **rest}
    if not siglip(family):
        where[tower] = "disk"
    if family != "internvl":
        where |= {f"model.{name}": "cpu" for name, _ in model_of(family).model.named_parameters(recurse=False)}
    return AutoModelForImageTextToText.from_pretrained(saved(family), device_map=where, offload_folder=new_folder())


def _empty(family: str) -> Any:
    with init_empty_weights():
        model = AutoModelForImageTextToText.from_config(model_of(family).config)
    model.tie_weights()
    return load_checkpoint_and_dispatch(model, str(saved(family) / "raw"), device_map={"": "cpu"}, force_hooks=True)


SPREAD: dict[str, Callable[[str], Any]] = {
    "hooks everywhere": lambda family: dispatch_model(
        copy.deepcopy(model_of(family)), device_map={"": "cpu"}, force_hooks=True
    ),
    "cpu_offload": _offloaded,
    "partly on disk": _on_disk,
    "load_checkpoint_and_dispatch": _empty,
    "device_map auto": lambda family: AutoModelForImageTextToText.from_pretrained(saved(family), device_map="auto"),
}
HOOKED = ["hooks everywhere", "cpu_offload"]
USED = ["divprune", "divprune, compact", "vtc-cls", "visionzip", "fastv", "dart", "sparsevlm", "visiondrop", "h2o"]
USED += ["transprune", "streaming", "input + layer + cache", "quota", "dycoke"]


@cache
def spread(way: str, family: str) -> Any:
    model = SPREAD[way](family).eval()
    model.generation_config = model_of(family).generation_config
    return model


def answer(model: Any, inputs: dict[str, Tensor], method: str) -> Any:
    with vtc.wrapped(model, METHODS[method]()):
        ids = model.generate(**inputs, **GREEDY)
        said = told(vtc.report(model))
        logits = model(**inputs).logits
        return ids, said, logits, told(vtc.report(model))


def assert_same(got: Any, expected: Any) -> None:
    assert got[0].equal(expected[0])
    assert got[1] == expected[1]
    assert got[2].allclose(expected[2], atol=1e-5, rtol=1e-5)
    assert got[3] == expected[3]


@pytest.mark.parametrize("way", HOOKED)
@pytest.mark.parametrize(("family", "method"), cells(FAMILIES, USED))
def test_answers(family: str, method: str, way: str) -> None:
    model, inputs = spread(way, family), prompts(family, method)[2]
    hooks = [x._hf_hook for x in model.modules() if hasattr(x, "_hf_hook")]
    assert len(hooks) > 20
    assert way == "hooks everywhere" or any(x.is_meta for x in model.parameters())
    assert_same(answer(model, inputs, method), answer(model_of(family), inputs, method))


@pytest.mark.parametrize(("family", "way"), cells(FAMILIES, [way for way in SPREAD if way not in HOOKED]))
def test_other_ways_to_spread(family: str, way: str) -> None:
    model = spread(way, family)
    if way == "partly on disk":
        layer = model.model.language_model.layers[1]
        assert all(x.is_meta for x in layer.parameters())
        assert isinstance(layer.self_attn.q_proj._hf_hook, AlignDevicesHook)
    for method in ("visionzip", "sparsevlm", "h2o", "dycoke" if family in VIDEOS else "vtc-cls"):
        inputs = prompts(family, method)[2]
        assert_same(answer(model, inputs, method), answer(model_of(family), inputs, method))


@pytest.mark.parametrize("family", FAMILIES)
def test_wrapped_before_it_is_spread(family: str) -> None:
    model, inputs = copy.deepcopy(model_of(family)), batch(family, [[0], [1, 2]])
    plain, expected = model(**inputs).logits, answer(model, inputs, "input + layer + cache")
    vtc.wrap(model, METHODS["input + layer + cache"]())
    dispatch_model(model, device_map={"": "cpu"}, force_hooks=True)
    assert model.generate(**inputs, **GREEDY).equal(expected[0])
    assert model(**inputs).logits.equal(expected[2])
    vtc.unwrap(model)
    assert model(**inputs).logits.equal(plain)
    vtc.wrap(model, METHODS["input + layer + cache"]())
    remove_hook_from_submodules(model)
    assert model(**inputs).logits.equal(expected[2])


@pytest.mark.parametrize("way", HOOKED)
@pytest.mark.parametrize(
    ("family", "method"), cells(FAMILIES, ["divprune", "vtc-cls", "visionzip", "sparsevlm", "quota"])
)
def test_encoded_once(family: str, method: str, way: str) -> None:
    """What the tower made is handed from module to module by accelerate's hooks, which copy it."""
    model, inputs = spread(way, family), prompts(family, method)[2]
    words = {k: v for k, v in inputs.items() if k in ("input_ids", "attention_mask", "mm_token_type_ids")}
    vision = {k: v for k, v in inputs.items() if k not in words or k == "input_ids"}
    expected, plain = answer(model_of(family), inputs, method), model_of(family)(**inputs).logits
    for own in (model, model_of(family)):
        encoded = vtc.encode(own, METHODS[method](), **vision)
        taken = encoded.take(range(len(encoded)))
        assert model(**words, **taken).logits.allclose(plain, atol=1e-5, rtol=1e-5)
        with vtc.wrapped(model, METHODS[method]()):
            assert model.generate(**words, **taken, **GREEDY).equal(expected[0])
            assert model(**words, **taken).logits.allclose(expected[2], atol=1e-5, rtol=1e-5)


def extras(value: Any) -> list[str]:
    """Attributes of tensors and outputs, which a copy of accelerate's would lose."""
    found = []
    for x in walk(value):
        if isinstance(x, ModelOutput):
            found += [f"{type(x).__name__}.{k}" for k, v in vars(x).items() if k not in x and v is not None]
        elif isinstance(x, Tensor):
            found += [f"Tensor.{k}" for k in vars(x)]
    return found


@pytest.mark.parametrize(("family", "method"), cells(FAMILIES, USED))
def test_nothing_travels_as_an_attribute(family: str, method: str) -> None:
    """Whatever goes into a module or comes out of one carries no attribute that the plain model's does not."""
    model, inputs = model_of(family), prompts(family, method)[2]

    def run() -> set[str]:
        found: set[str] = set()

        def look(module: Any, args: Any, kwargs: Any, output: Any) -> None:
            found.update(extras([args, kwargs, output]))

        handles = [x.register_forward_hook(look, with_kwargs=True) for x in model.modules()]
        try:
            model.generate(**inputs, **GREEDY)
            model(**inputs)
        finally:
            for handle in handles:
                handle.remove()
        return found

    expected = run()
    with vtc.wrapped(model, METHODS[method]()):
        assert run() <= expected
    vision = {k: v for k, v in inputs.items() if k not in ("attention_mask", "mm_token_type_ids")}
    taken = vtc.encode(model, METHODS[method](), **vision).take([0])
    assert not extras(taken)
    assert str(send_to_device(taken, CPU)) == str(taken)
