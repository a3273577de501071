"""Several threads on one wrapped model: every answer and every report is its thread's own."""

from __future__ import annotations

import asyncio
import copy
import io
import pickle
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForImageTextToText, TextIteratorStreamer

import vtc
from tests.engine.cells import GREEDY, METHODS, VIDEOS, cells, continued, prompts, told
from tests.families import FAMILIES, batch, model_of

STAGES = ["divprune", "visionzip", "fastv", "sparsevlm", "h2o", "h2o, all, every", "input + layer + cache", "dycoke"]


@pytest.fixture(autouse=True)
def _restless() -> Iterator[None]:
    """Threads take turns far more often than they would: many times in every layer."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)
    yield
    sys.setswitchinterval(before)


def together(works: Sequence[Callable[[], Any]]) -> list[Any]:
    """What these calls return, each in a thread of its own, begun at the same moment; raises what they raise."""
    start = threading.Barrier(len(works))

    def run(work: Callable[[], Any]) -> Any:
        start.wait()
        with torch.no_grad():
            return work()

    with ThreadPoolExecutor(len(works)) as pool:
        return list(pool.map(run, works))


def answer(model: Any, inputs: dict[str, Tensor]) -> Any:
    """All that a caller gets of one question: ids and report of `generate`, logits and report of `forward`."""
    ids = model.generate(**inputs, **GREEDY)
    said = told(vtc.report(model))
    logits = model(**inputs).logits
    return ids, said, logits, told(vtc.report(model))


def assert_same(got: Any, alone: Any) -> None:
    assert got[0].equal(alone[0])
    assert got[1] == alone[1]
    assert got[2].equal(alone[2])
    assert got[3] == alone[3]


@pytest.mark.parametrize(("family", "method"), cells(FAMILIES, STAGES))
def test_each_thread_gets_its_own(family: str, method: str) -> None:
    model, asked = model_of(family), prompts(family, method)
    with vtc.wrapped(model, METHODS[method]()):
        alone = [answer(model, inputs) for inputs in asked]
        assert len({str(a[1]) for a in alone}) == len(asked)  # reports that can be told apart

        for got, right in zip(together([partial(answer, model, x) for x in asked]), alone, strict=True):
            assert_same(got, right)


@pytest.mark.parametrize(("family", "method"), cells(FAMILIES, STAGES))
def test_conversations_beside_each_other(family: str, method: str) -> None:
    """Every thread has a cache of its own, which it continues, and text between the pictures."""
    model, asked = model_of(family), prompts(family, method)

    def talk(inputs: dict[str, Tensor]) -> Any:
        first = model.generate(**inputs, **GREEDY, return_dict_in_generate=True)
        before = told(vtc.report(model))
        model(input_ids=torch.tensor([[1, 40, 41]]))  # of another conversation, of text
        more = torch.full((len(first.sequences), 2), 42)
        second = continued(inputs, first.sequences, more)
        return model.generate(**second, past_key_values=first.past_key_values, **GREEDY), before

    with vtc.wrapped(model, METHODS[method]()):
        alone = [talk(inputs) for inputs in asked]
        for got, expected in zip(together([lambda x=x: talk(x) for x in asked]), alone, strict=True):
            assert got[0].equal(expected[0])
            assert got[1] == expected[1]


class Words:
    """A tokenizer, as far as a streamer needs one."""

    def decode(self, ids: Any, **_: Any) -> str:
        return "".join(f"w{int(x)} " for x in ids)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_streamer(family: str) -> None:
    """The main thread reads words and report of a generation that runs in another one."""
    model = model_of(family)
    method = "dycoke" if family in VIDEOS else "input + layer + cache"
    with vtc.wrapped(model, METHODS[method]()):
        alone = together([lambda x=x: answer(model, x) for x in prompts(family, method)])
        for inputs, expected in zip(prompts(family, method)[:2], alone, strict=False):  # a streamer has one row
            streamer: Any = TextIteratorStreamer(Words(), skip_prompt=True, timeout=60)  # type: ignore[arg-type]
            thread = threading.Thread(target=model.generate, kwargs={**inputs, **GREEDY, "streamer": streamer})
            thread.start()
            text = "".join(streamer)
            thread.join()
            assert text == Words().decode(expected[0][0, inputs["input_ids"].shape[1] :])
            assert told(vtc.report(model)) == expected[1]


@pytest.mark.parametrize("family", FAMILIES)
def test_two_models_two_methods(family: str) -> None:
    """Wrapped and unwrapped in two threads; a third one uses a model that is not wrapped."""
    models = [copy.deepcopy(model_of(family)) for _ in range(3)]
    used: list[Any] = ["sparsevlm", "dycoke" if family in VIDEOS else "visionzip"]
    asked = [prompts(family, method)[0] for method in used]

    def work(model: Any, method: str, inputs: dict[str, Tensor]) -> list[Any]:
        found = []
        for _ in range(2):
            with vtc.wrapped(model, METHODS[method]()):
                found.append(answer(model, inputs))
        return found

    def plain() -> list[Tensor]:
        return [models[2].generate(**asked[0], **GREEDY) for _ in range(4)]

    alone = [work(*each)[0] for each in zip(models, used, asked, strict=False)]
    expected = models[2].generate(**asked[0], **GREEDY)
    calls = [lambda each=each: work(*each) for each in zip(models, used, asked, strict=False)]
    *answers, unwrapped = together([*calls, plain])
    for each, right in zip(answers, alone, strict=True):
        for got in each:
            assert_same(got, right)
    assert all(got.equal(expected) for got in unwrapped)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_wrapped_draft_and_a_wrapped_target(family: str) -> None:
    """Frames of both are open at once, in two threads that share both models."""
    target, draft = copy.deepcopy(model_of(family)), copy.deepcopy(model_of(family))
    for parameter in draft.parameters():
        parameter += 0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
    vtc.wrap(target, METHODS["fastv"]())
    vtc.wrap(draft, METHODS["vtc-cls"]())
    asked = [batch(family, [[0]]), batch(family, [[1, 2]])]
    expected = [target.generate(**x, **GREEDY) for x in asked]
    reports = [told(vtc.report(target))]

    def work(inputs: dict[str, Tensor]) -> Any:
        ids = target.generate(**inputs, **GREEDY, assistant_model=draft)
        return ids, told(vtc.report(target)), told(vtc.report(draft))

    alone = [work(x) for x in asked]
    assert alone[1][1][0] == reports[0][0]
    for got, own, right in zip(together([lambda x=x: work(x) for x in asked]), alone, expected, strict=True):
        assert got[0].equal(right)
        assert got[1:] == own[1:]


@pytest.mark.parametrize("family", FAMILIES)
def test_coroutines_hand_work_to_threads(family: str) -> None:
    """`asyncio.to_thread` copies the context of the coroutine, and its threads are used again."""
    model, method = model_of(family), "dycoke" if family in VIDEOS else "h2o"
    asked = prompts(family, method)

    async def serve() -> list[Any]:
        with torch.no_grad():
            return await asyncio.gather(*(asyncio.to_thread(ask, x) for x in asked[:3] * 2))

    def ask(inputs: dict[str, Tensor]) -> Any:
        with torch.no_grad():
            return answer(model, inputs)

    with vtc.wrapped(model, METHODS[method]()):
        alone = [answer(model, x) for x in asked]
        for got, expected in zip(asyncio.run(serve()), alone[:3] * 2, strict=True):
            assert_same(got, expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_encoding_beside_generating(family: str) -> None:
    """`vtc.encode` listens for other signals than the wrap, to its own run of the tower alone."""
    model, inputs = model_of(family), batch(family, [[1, 2]])
    vision = {k: v for k, v in inputs.items() if k not in ("attention_mask", "mm_token_type_ids")}
    words = {k: v for k, v in inputs.items() if k in ("input_ids", "attention_mask", "mm_token_type_ids")}

    def encode() -> list[Tensor]:
        found = []
        for _ in range(4):
            taken = vtc.encode(model, "vtc-cls", **vision).take([0, 1])
            found.append(taken["mm_encoder_outputs"]["image"])
        return found

    with vtc.wrapped(model, "vtc-cls", keep=0.3):
        expected = model.generate(**words, **GREEDY, **vtc.encode(model, "vtc-cls", **vision).take([0, 1]))
        assert expected.equal(model.generate(**inputs, **GREEDY))
    with vtc.wrapped(model, METHODS["visionzip"]()):
        right = answer(model, inputs)
        *encoded, got = together([encode, encode, lambda: [answer(model, inputs) for _ in range(3)]])
        for one in got:
            assert_same(one, right)
    with vtc.wrapped(model, "vtc-cls", keep=0.3):
        for output in (x for own in encoded for x in own):
            got = model.generate(**words, **GREEDY, mm_encoder_outputs={"image": output}, **_grids(vision))
            assert got.equal(expected)


def _grids(vision: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k: v for k, v in vision.items() if k == "image_grid_thw"}


@pytest.mark.parametrize(("family", "method"), cells(FAMILIES, STAGES))
def test_a_copy_made_in_the_middle(family: str, method: str) -> None:
    """A copy of a wrapped model is wrapped on its own, also if it is made while a forward is under way."""
    model, inputs = copy.deepcopy(model_of(family)), prompts(family, method)[2]
    vtc.wrap(model, METHODS[method]())
    expected = answer(model, inputs)
    made: list[Any] = []

    def copying(*_: Any) -> None:
        handle.remove()
        made.append(copy.deepcopy(model))

    handle = model.model.language_model.layers[1].register_forward_pre_hook(copying)
    assert_same(answer(model, inputs), expected)
    vtc.unwrap(model)
    plain = model(**inputs).logits
    assert vtc.report(made[0]).spans == []  # it has run nothing
    for got in together([lambda: answer(made[0], inputs)] * 2):
        assert_same(got, expected)
    vtc.unwrap(made[0])
    assert made[0](**inputs).logits.equal(plain)


@pytest.mark.parametrize(("family", "method"), cells(FAMILIES, STAGES))
def test_pickles(family: str, method: str) -> None:
    """A pickled model is wrapped on its own, too; caches and outputs know nothing of the model that made them."""
    model, inputs = AutoModelForImageTextToText.from_config(model_of(family).config), prompts(family, method)[2]
    model.load_state_dict(model_of(family).state_dict())
    model.generation_config = model_of(family).generation_config
    plain = len(pickle.dumps(model.eval()))
    vtc.wrap(model, METHODS[method]())
    written = pickle.dumps(model)
    assert len(written) < plain + 30_000
    twin = pickle.loads(written)
    assert_same(answer(twin, inputs), answer(model, inputs))
    vtc.unwrap(twin)
    assert twin.generate(**inputs, **GREEDY).equal(model_of(family).generate(**inputs, **GREEDY))
    out = model.generate(**inputs, **GREEDY, return_dict_in_generate=True)
    file = io.BytesIO()
    torch.save(out.past_key_values, file)
    for made in (pickle.dumps(out), pickle.dumps(model(**inputs)), file.getvalue()):
        assert b"vtc.engine.engine" not in made
        assert b"torch.nn" not in made
