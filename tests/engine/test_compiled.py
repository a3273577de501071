"""torch.compile, whatever is compiled and whenever: a wrapped model compresses as it does uncompiled, or says why."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch._dynamo.exc
from transformers import AutoModelForImageTextToText

import vtc
from tests.engine.test_engine import traces
from tests.engine.test_oracle_inside import ALL
from tests.families import FAMILIES, batch, model_of

ROWS: list[list[int | str]] = [[0], [1]]


@pytest.fixture(autouse=True)
def _nothing_compiled() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def whole(model: Any, **how: Any) -> Any:
    model.compile(**how)
    return model


def its_forward(model: Any, **how: Any) -> Any:
    model.forward = torch.compile(model.forward, **how)
    return model


def shell(model: Any, **how: Any) -> Any:
    return torch.compile(model, **how)


def language_model(model: Any, **how: Any) -> Any:
    model.model.language_model.compile(**how)
    return model


def layers(model: Any, **how: Any) -> Any:
    for layer in model.model.language_model.layers:
        layer.compile(**how)
    return model


def inside_layers(model: Any, **how: Any) -> Any:
    for layer in model.model.language_model.layers:
        layer.self_attn.compile(**how)
        layer.mlp.compile(**how)
    return model


def tower(model: Any, **how: Any) -> Any:
    base = model.model
    (base.visual if hasattr(base, "visual") else base.vision_tower).compile(**how)
    return model


WHOLE: dict[str, Callable[..., Any]] = {
    "model.compile()": whole,
    "model.forward = torch.compile(model.forward)": its_forward,
    "torch.compile(model)": shell,
}
PARTS: dict[str, Callable[..., Any]] = {
    "language_model.compile()": language_model,
    "layer.compile()": layers,
    "layer.self_attn.compile(), layer.mlp.compile()": inside_layers,
    "tower.compile()": tower,
}
COMPILED = WHOLE | PARTS
METHODS: dict[str, Callable[..., Any]] = {
    **{name: (lambda name=name, **o: vtc.resolve(name, 0.3, **o)) for name in ("divprune", "vtc-cls", "visionzip")},
    **ALL,
}


def shallow(depth: int = 2) -> Any:
    """LLaVA of so many layers, one in its tower: what it costs to compile grows with them."""
    config = FAMILIES["llava"].config()
    config.text_config.num_hidden_layers, config.vision_config.num_hidden_layers = depth, 1
    config.vision_feature_layer = -1
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(config).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.25)
    return model


def check(model: Any, inputs: Any, method: Any, compiled: Callable[..., Any], before: bool, **how: Any) -> None:
    """Compiled `before` the wrap and run, or after it: as eager; and as the plain model once it is unwrapped."""
    plain = model(**inputs).logits
    with vtc.wrapped(copy.deepcopy(model), method) as eager:
        expected, report = eager(**inputs), vtc.report(eager)
    if before:
        made = compiled(model, **how)
        seen = traces(model)
        close(made(**inputs).logits, plain)
        vtc.wrap(made, method)
    else:
        vtc.wrap(model, method)
        made = compiled(model, **how)
        seen = None
    got = made(**inputs)
    close(got.logits, expected.logits)
    assert held(got) == held(expected)
    for of in (made, model):
        assert vtc.report(of).tokens_out == report.tokens_out
        assert vtc.report(of).tokens_by_layer == report.tokens_by_layer
    assert min(held(expected)) < inputs["input_ids"].shape[1]  # there was something to see
    vtc.unwrap(made)
    close(made(**inputs).logits, plain)
    assert seen is None or traces(model) == seen


def held(output: Any) -> list[int]:
    return [layer.keys.shape[2] for layer in output.past_key_values.layers]


def close(one: Any, other: Any) -> None:
    torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("compiled", "before"),
    [
        ("torch.compile(model)", False),
        pytest.param("model.compile()", False, marks=pytest.mark.full),
        pytest.param("model.forward = torch.compile(model.forward)", True, marks=pytest.mark.full),
        pytest.param("model.compile()", True, marks=pytest.mark.full),
        pytest.param("model.forward = torch.compile(model.forward)", False, marks=pytest.mark.full),
        pytest.param("torch.compile(model)", True, marks=pytest.mark.full),
    ],
)
def test_the_whole_model(compiled: str, before: bool) -> None:
    check(shallow(1), batch("llava", [[0]]), vtc.DivPrune(keep=0.3), WHOLE[compiled], before, backend="eager")


def cells() -> list[Any]:
    """What is compiled x family x method x when. To compile takes seconds, so that little of it is run by default."""
    spanning = {
        ("language_model.compile()", "llava", "divprune", False),
        ("layer.compile()", "llava", "h2o", False),
        ("layer.self_attn.compile(), layer.mlp.compile()", "internvl", "transprune", True),
    }
    every = [(c, f, m, b) for c in COMPILED for f in FAMILIES for m in METHODS for b in (True, False)]
    return [pytest.param(*cell, marks=() if cell in spanning else pytest.mark.full) for cell in every]


@pytest.mark.parametrize(("compiled", "family", "method", "before"), cells())
def test_matrix(compiled: str, family: str, method: str, before: bool) -> None:
    model = copy.deepcopy(model_of(family))
    check(model, batch(family, ROWS), METHODS[method](), COMPILED[compiled], before, backend="eager")


@pytest.mark.full
@pytest.mark.parametrize("compiled", ["language_model.compile()", "layer.compile()"])
def test_inductor(compiled: str) -> None:
    check(shallow(), batch("llava", [[0]]), vtc.FastV(keep=0.4, layers=(1,)), PARTS[compiled], True)


def test_generate() -> None:
    model, inputs = shallow(), batch("llava", [[0]])
    how: dict[str, Any] = dict(max_new_tokens=4, do_sample=False, pad_token_id=0)
    with vtc.wrapped(model, "h2o", keep=0.3):
        expected = model.generate(**inputs, **how)
    layers(model, backend="eager")
    with vtc.wrapped(model, "h2o", keep=0.3):
        assert model.generate(**inputs, **how).equal(expected)
        assert vtc.report(model).tokens_in == 36


# -- graphs that know of no hooks ----------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["model", "model.language_model", "model.language_model.layers.1"])
def test_a_graph_without_hooks_says_so(where: str) -> None:
    """A module that runs as it was captured before the wrap (here: as if never asked whether it has hooks)."""
    model, inputs = copy.deepcopy(model_of("llava")), batch("llava", ROWS)
    part: Any = model.get_submodule(where)
    plain = model(**inputs).logits
    vtc.wrap(model, vtc.FastV(keep=0.4, layers=(1,)))
    part._compiled_call_impl = part.forward
    with pytest.raises(RuntimeError, match=r"compiled graph that was made before vtc.wrap.*wrap first") as caught:
        model(**inputs)
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith(".")
    part._compiled_call_impl = None
    model(**inputs)
    assert vtc.report(model).tokens_out < vtc.report(model).tokens_in
    vtc.unwrap(model)
    assert model(**inputs).logits.equal(plain)


def test_graphs_are_forgotten_however_little_is_known_of_them() -> None:
    model, inputs = shallow(), batch("llava", [[0]])
    layers(model, backend="eager")
    full = held(model(**inputs))
    torch._dynamo.utils.counters.clear()  # as scripts that measure compilation do
    vtc.wrap(model, vtc.FastV(keep=0.4, layers=(1,)))
    assert held(model(**inputs)) == [full[0], full[0] - 36 + 14]


def test_a_full_graph_is_refused_with_the_reason() -> None:
    model, inputs = shallow(), batch("llava", [[0]])
    vtc.wrap(model, "divprune", keep=0.3)
    model.model.language_model.compile(backend="eager", fullgraph=True)
    with pytest.raises(RuntimeError, match="no graph can hold; compile without fullgraph=True"):
        model(**inputs)
