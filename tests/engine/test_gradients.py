"""Gradients and losses of wrapped models: under checkpointing as without, and those of the masked full-length model."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import vtc
from tests.families import FAMILIES, batch, model_of
from tests.methods.test_vqtoken import weights
from tests.oracle import Decisions, decisions, oracle
from tests.sweep import CACHE, EVERY, INPUT, LAYER, cells, only_videos

ANSWER = 4
IGNORED = -100


def asked(family: str, method: str, side: str = "left") -> dict[str, Tensor]:
    """Two questions with their answers, of four tokens each, and labels on the answers only."""
    rows: list[list[int | str]] = [["v0"], ["v1", 0]] if only_videos(method) else [[0], [1, 2]]
    inputs = batch(family, rows, side)
    length, answers = inputs["input_ids"].shape[1], torch.tensor([[50, 51, 52, 53], [60, 61, 62, 63]])
    ids, mask = F.pad(inputs["input_ids"], (0, ANSWER)), F.pad(inputs["attention_mask"], (0, ANSWER))
    for r, answer in enumerate(answers):
        start = length if side == "left" else int(mask[r].sum())  # padding moves behind it
        ids[r, start : start + ANSWER], mask[r, start : start + ANSWER] = answer, 1
    labels = torch.where(torch.isin(ids, answers), ids, IGNORED)
    inputs |= {"input_ids": ids, "attention_mask": mask, "labels": labels}
    if "mm_token_type_ids" in inputs:
        inputs["mm_token_type_ids"] = F.pad(inputs["mm_token_type_ids"], (0, ANSWER))
    return inputs


def trained(model: Any, inputs: Any) -> tuple[float, dict[str, Tensor]]:
    """The loss of a forward, and the gradients of all that has any."""
    model.zero_grad()
    with torch.enable_grad():
        loss = model(**inputs, use_cache=False).loss
        loss.backward()
    return float(loss), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_close(got: Any, expected: Any) -> None:
    assert got[0] == pytest.approx(expected[0], rel=1e-5)
    assert got[1].keys() == expected[1].keys()
    for name, gradient in expected[1].items():
        assert (got[1][name] - gradient).abs().max() <= 1e-4 * gradient.abs().max() + 1e-7, name


@contextmanager
def whole_calls(model: Any, reentrant: bool) -> Iterator[None]:
    """Decoder layers are computed again with their hooks, as older versions of transformers did; newer ones compute
    `forward` again, which no hook of the layer sees."""
    layers = model.model.language_model.layers
    own, functions = type(layers[0]), [layer._gradient_checkpointing_func for layer in layers]

    class Whole(own):
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return checkpoint(partial(super().__call__, **kwargs), *args, use_reentrant=reentrant)

    try:
        for layer in layers:
            layer.__class__, layer._gradient_checkpointing_func = Whole, lambda function, *args: function(*args)
        yield
    finally:
        for layer, function in zip(layers, functions, strict=True):
            layer.__class__, layer._gradient_checkpointing_func = own, function


def checked(family: str, method: Any, inputs: Any) -> None:
    model = copy.deepcopy(model_of(family)).train()
    vtc.wrap(model, method)
    expected = trained(model, inputs)
    made, compact = decisions(model), model._vtc_engine.compact
    for reentrant in (False, True):
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
        assert_close(trained(model, inputs), expected)
        assert decisions(model).visual() == made.visual()
        with whole_calls(model, reentrant):
            assert_close(trained(model, inputs), expected)
    model.gradient_checkpointing_disable()
    assert_close(trained(model, inputs), expected)
    vtc.unwrap(model)
    if not any(choice.features is not None for _, choices in made.steps for choice in choices):
        with oracle(model, made, 2, compact):
            assert_close(trained(model, inputs), expected)
    assert any("layers.2" in name for name in expected[1])


@pytest.mark.parametrize(("family", "method"), cells([*INPUT, *LAYER], each=3))
def test_checkpointing(family: str, method: str) -> None:
    checked(family, EVERY[method](), asked(family, method))


@pytest.mark.parametrize("family", FAMILIES)
def test_checkpointing_with_a_trained_module(family: str, tmp_path: Any) -> None:
    folder = weights(tmp_path, model_type=model_of(family).config.model_type)
    checked(family, vtc.VQToken(keep=4, weights=folder), asked(family, "vqtoken"))


# -- losses ----------------------------------------------------------------------------------------------------


def shown(made: Decisions, inputs: Any) -> Tensor:
    """LongTensor [B, L]: the position whose logits stand at each: its own, or the last one before it that was kept."""
    length = inputs["input_ids"].shape[1]
    where = torch.arange(length).repeat(len(inputs["input_ids"]), 1)
    gone = {(row, place) for row, places, kept in made.visual() for place in set(places) - set(kept)}
    for row, place in sorted(gone):
        where[row, place] = where[row, place - 1]
    return where


def loss_of(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(("family", "method"), cells([*INPUT, *LAYER, *CACHE]))
def test_loss(family: str, method: str, side: str) -> None:
    """Of the answer, and of all text; logits keep the prompt's length."""
    model, inputs = model_of(family), asked(family, method, side)
    answer = inputs.pop("labels")
    text = inputs["attention_mask"].bool() & ~torch.isin(inputs["input_ids"], torch.tensor([2, 5]))
    text[:, 1:] &= inputs["attention_mask"][:, :-1].bool()  # what padding says of the first word is nobody's concern
    everything = torch.where(text, inputs["input_ids"], IGNORED)
    for labels in (answer, everything):
        with vtc.wrapped(model, EVERY[method]()):
            out = model(**inputs, labels=labels)
            made, compact = decisions(model), model._vtc_engine.compact
        with oracle(model, made, 2, compact):
            expected = model(**inputs).logits
        seen = shown(made, inputs)[..., None].expand_as(expected)
        assert out.logits.shape == expected.shape
        assert out.loss == pytest.approx(float(loss_of(expected.gather(1, seen), labels)), rel=1e-5)


@pytest.mark.parametrize(("family", "method"), cells(name for name in EVERY if name in LAYER or name == "quota"))
def test_the_answer_does_not_choose(family: str, method: str) -> None:
    """With labels the same tokens stay as with the question alone."""
    model, inputs = model_of(family), asked(family, method)
    alone = {k: v[:, :-ANSWER] if k in ("input_ids", "attention_mask", "mm_token_type_ids") else v
             for k, v in inputs.items() if k != "labels"}  # fmt: skip
    with vtc.wrapped(model, EVERY[method]()):
        model(**alone)
        expected = decisions(model).visual()
        model(**inputs)
        assert decisions(model).visual() == expected


def test_answers_do_choose_where_nothing_says_that_they_are_any() -> None:
    """So that the test above can fail."""
    model, inputs = model_of("llava"), asked("llava", "fastv")
    with vtc.wrapped(model, EVERY["fastv"]()):
        model(**inputs)
        told = decisions(model).visual()
        del inputs["labels"]
        model(**inputs)
        assert decisions(model).visual() != told


@pytest.mark.parametrize("family", ["llava", "qwen3_vl"])
@pytest.mark.parametrize("method", ["fastv", "visionzip"])
def test_trainer_evaluates(family: str, method: str, tmp_path: Any) -> None:
    pytest.importorskip("accelerate")
    from transformers import Trainer, TrainingArguments

    model, samples, losses = copy.deepcopy(model_of(family)), [], []
    vtc.wrap(model, EVERY[method]())
    for seed in (0, 2, 3):
        inputs = batch(family, [[seed]])
        samples.append(inputs | {"labels": F.pad(inputs["input_ids"][:, -3:], (inputs["input_ids"].shape[1] - 3, 0),
                                                 value=IGNORED)})  # fmt: skip
        losses.append(float(model(**samples[-1]).loss))
    arguments = TrainingArguments(
        output_dir=str(tmp_path), per_device_eval_batch_size=1, remove_unused_columns=False, report_to=[], use_cpu=True,
        label_names=["labels"], disable_tqdm=True,
    )  # fmt: skip
    trainer = Trainer(model=model, args=arguments, eval_dataset=samples, data_collator=lambda one: one[0])  # type: ignore[arg-type]
    assert trainer.evaluate()["eval_loss"] == pytest.approx(sum(losses) / 3, rel=1e-5)
    assert vtc.report(model).tokens_out < vtc.report(model).tokens_in
