"""What holds a model inside (PEFT, torch.compile, DataParallel, DDP): every call looks through it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

import vtc
from tests.engine.cells import GREEDY, METHODS, cells, one_sentence, prompts, told
from tests.engine.test_engine import traces
from tests.families import FAMILIES, batch, model_of

NAMES = [
    "divprune",
    "vtc-cls",
    "visionzip",
    "fastv",
    "transprune",
    "sparsevlm",
    "h2o",
    "input + layer + cache",
    "dycoke",
]
#: of the tower and the language model; the towers of Qwen fuse queries and keys
ADAPTED = ["q_proj", "v_proj", "qkv", "gate_proj", "fc1"]


def adapted(model: Any, task: str | None = "CAUSAL_LM", **options: Any) -> Any:
    torch.manual_seed(1)
    options = {"target_modules": ADAPTED, "r": 4, "init_lora_weights": False} | options
    return get_peft_model(model, LoraConfig(task_type=task, **options)).eval()


def fresh(family: str) -> Any:
    model = copy.deepcopy(model_of(family))
    model(**batch(family, [[0]]))  # transformers places hooks of its own in a first forward
    return model


def close(one: Any, other: Any) -> None:
    torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


@pytest.fixture(scope="module")
def _one_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    file: Path = tmp_path_factory.mktemp("group") / "store"
    torch.distributed.init_process_group("gloo", init_method=f"file://{file}", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


SHELLS: dict[str, Callable[[Any], Any]] = {
    "peft": lambda model: adapted(model, target_modules=["lm_head"], init_lora_weights=True),  # changes nothing yet
    "torch.compile": lambda model: torch.compile(model, backend=lambda graph, inputs: graph),
    "DataParallel": nn.DataParallel,
    "DistributedDataParallel": nn.parallel.DistributedDataParallel,
    "DistributedDataParallel of peft": lambda model: nn.parallel.DistributedDataParallel(SHELLS["peft"](model)),
}


@pytest.mark.usefixtures("_one_process")
@pytest.mark.parametrize("shell", SHELLS)
def test_every_call_looks_through(shell: str) -> None:
    model, inputs, method = fresh("llava"), batch("llava", [[0], [1]]), vtc.FastV(keep=0.3, layers=(1,))
    plain = model(**inputs).logits
    with vtc.wrapped(model, method):
        expected, report = model(**inputs).logits, told(vtc.report(model))
    with vtc.wrapped(model, "vtc-cls", keep=7):
        first = model(**inputs).logits
    around = SHELLS[shell](model)
    compiled = shell == "torch.compile"
    if compiled:
        torch.compiler.set_stance("force_eager")  # what is compiled has tests of its own
    seen = traces(around)
    ask: Any = around
    try:
        assert vtc.wrap(around, "vtc-cls", keep=7) is around
        close(ask(**inputs).logits, first)
        encoded = vtc.encode(around, "vtc-cls", pixel_values=inputs["pixel_values"])
        text = {k: v for k, v in inputs.items() if k != "pixel_values"}
        close(ask(**text, **encoded.take([0, 1])).logits, first)
        vtc.wrap(around, method)  # replaces
        close(ask(**inputs).logits, expected)
        assert told(vtc.report(around)) == told(vtc.report(model)) == report
        with vtc.wrapped(around, "pool", keep=9):
            ask(**inputs)
            assert vtc.report(model).tokens_out == 18
        close(ask(**inputs).logits, expected)
        vtc.wrap(model, method)  # through the model inside
        close(ask(**inputs).logits, expected)
        assert told(vtc.report(around)) == report
        assert vtc.unwrap(around) is around
        assert traces(around) == seen
        close(ask(**inputs).logits, plain)
        for of in (around, model):
            with pytest.raises(ValueError, match="not wrapped"):
                vtc.report(of)
    finally:
        torch.compiler.set_stance("default")


@pytest.mark.parametrize("task", ["CAUSAL_LM", None])
@pytest.mark.parametrize(("family", "method"), cells(FAMILIES, NAMES))
def test_adapters(family: str, method: str, task: str | None) -> None:
    """As the same adapters merged into the weights; disabled, as without them."""
    made = METHODS[method]
    inputs = prompts(family, method, many=1)[0]
    labels = inputs["input_ids"].clone()
    labels[:, :-2] = -100
    model = fresh(family)
    with vtc.wrapped(model, made()):
        bare = model(**inputs).logits
    peft = adapted(model, task)
    merged = copy.deepcopy(peft).merge_and_unload()
    with vtc.wrapped(merged, made()):
        expected, report = merged(**inputs).logits, told(vtc.report(merged))
        ids = merged.generate(**inputs, **GREEDY)
        loss = merged(**inputs, labels=labels).loss
        judged = told(vtc.report(merged))
    plain, _ = peft(**inputs).logits, peft.generate(**inputs, **GREEDY)  # peft notes settings of its own there
    seen = traces(peft)
    assert not torch.allclose(expected, bare, atol=1e-2)
    vtc.wrap(peft, made())
    close(peft(**inputs).logits, expected)
    assert told(vtc.report(peft)) == report
    assert peft.generate(**inputs, **GREEDY).equal(ids)
    close(peft(**inputs, labels=labels).loss, loss)
    assert told(vtc.report(peft)) == judged
    with peft.disable_adapter():
        close(peft(**inputs).logits, bare)
    vtc.unwrap(peft)
    assert traces(peft) == seen
    assert peft(**inputs).logits.equal(plain)


@pytest.mark.parametrize("around", [True, False], ids=["adapters first", "wrap first"])
@pytest.mark.parametrize("task", ["CAUSAL_LM", None])
def test_labels_end_the_prompt(task: str | None, around: bool) -> None:
    """A method that listens to the question hears its last token, not the answer that is scored."""
    model, inputs = fresh("llava"), batch("llava", [[0], [1]])
    labels = inputs["input_ids"].clone()
    labels[:, :-2] = -100
    method = vtc.FastV(keep=6, layers=(1,))

    def kept(model: Any, **more: Any) -> list[list[int]]:
        model(**inputs, **more)
        return [span.kept.tolist() for span in vtc.report(model).spans]

    with vtc.wrapped(copy.deepcopy(adapted(copy.deepcopy(model), task)).merge_and_unload(), method) as merged:
        question, answer = kept(merged, labels=labels), kept(merged)
    assert question != answer
    peft = vtc.wrap(adapted(model, task), method) if around else adapted(vtc.wrap(model, method), task)
    assert kept(peft, labels=labels) == question
    assert kept(peft) == answer


@pytest.mark.parametrize(("family", "method"), cells(FAMILIES, NAMES))
def test_adapters_put_in_later(family: str, method: str) -> None:
    """Wrapped first: it acts, adapters included, or says that what it listened to has been replaced."""
    model, inputs = fresh(family), prompts(family, method, many=1)[0]
    merged = copy.deepcopy(adapted(copy.deepcopy(model))).merge_and_unload()
    plain = merged(**inputs).logits
    with vtc.wrapped(merged, METHODS[method]()):
        expected, report = merged(**inputs).logits, told(vtc.report(merged))
    vtc.wrap(model, METHODS[method]())
    peft = adapted(model)
    if method in ("vtc-cls", "visionzip", "input + layer + cache"):  # they listen to projections of the tower
        with pytest.raises(ValueError, match=r"has been replaced since vtc\.wrap") as caught:
            peft(**inputs)
        assert one_sentence(caught.value)
        vtc.wrap(peft, METHODS[method]())  # the remedy
    close(peft(**inputs).logits, expected)
    assert told(vtc.report(peft)) == told(vtc.report(model)) == report
    alone = vtc.wrap(peft.merge_and_unload(), METHODS[method]())
    close(alone(**inputs).logits, expected)
    vtc.unwrap(alone)
    close(alone(**inputs).logits, plain)
    assert not any(m._forward_pre_hooks for m in alone.modules())
    assert not any("_vtc_engine" in vars(m) for m in alone.modules())


@pytest.mark.parametrize(
    ("method", "options", "what"),
    [
        ("vtc-cls", {}, r"model\.vision_tower\.encoder\.layers\.1\.self_attn\.q_proj"),
        ("divprune", {"target_modules": ["o_proj"], "modules_to_save": ["vision_tower"]}, r"model\.vision_tower"),
    ],
)
def test_what_was_replaced_is_told_before_any_compute(method: str, options: Any, what: str) -> None:
    model, inputs = fresh("llava"), batch("llava", [[0]])
    vtc.wrap(model, method, keep=0.3)
    peft, ran = adapted(model, **options), []
    model.model.language_model.layers[0].register_forward_hook(lambda *_: ran.append("layer"))
    model.model.multi_modal_projector.register_forward_hook(lambda *_: ran.append("projector"))
    with pytest.raises(ValueError, match=rf"^{what} has been replaced since vtc\.wrap .*: call vtc\.wrap again\.$"):
        peft(**inputs)
    assert not ran
    text = {k: v[:, :3] for k, v in inputs.items() if k != "pixel_values"}
    assert peft(**text).logits.isfinite().all()  # nothing to compress
    vtc.wrap(peft, method, keep=0.3)
    peft(**inputs)
    assert vtc.report(peft).tokens_out == 11
    assert ran
