"""LLaVA in vLLM: the same token ids as vtc on transformers, whatever vLLM does with requests (`make test-vllm`)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.serving.engines.methods import alike, qualifying, reads, reads_behind
from tests.serving.engines.served import Asked, Served
from vtc.eval import datasets

pytestmark = pytest.mark.vllm
KEEP = 64
METHODS = [name for name in qualifying("llava") if not reads_behind(name)]
READING = [name for name in METHODS if reads(name, "llava")]


@pytest.fixture(scope="module")
def llava() -> Iterator[Served]:
    served = Served("tiny-llava", KEEP, options={"limit_mm_per_prompt": {"image": 2}})
    yield served
    served.close()


@pytest.fixture(scope="module")
def asked() -> list[Asked]:
    return [Asked(one.question, (one.media.picture(),)) for one in datasets.load("tiny").questions[:20]]


@pytest.fixture(scope="module")
def mixed(asked) -> list[Asked]:
    """A picture, two of them, none, one of another shape, by turns."""
    first, second, third = (one.pictures[0] for one in asked[:3])
    return [
        asked[0],
        Asked("Do the pictures show the same?", (first, second)),
        Asked("What is a circle?"),
        Asked(asked[2].question, (third.resize((500, 300)),)),
        asked[1],
        Asked("Do the pictures show the same?", (second, first)),
    ]


@pytest.mark.parametrize("method", METHODS)
def test_every_method_answers_as_on_transformers(llava, asked, method):
    llava.swap(method)
    answers = llava.ask(asked)
    assert alike(method, [answer.ids for answer in answers], llava.expected(asked, method))
    whole = [answer.prompt for answer in answers]
    text = [len(llava.reference[1].tokenizer(llava.prompt(one)["prompt"]).input_ids) - 1 for one in asked]
    assert whole == [words + KEEP for words in text]


@pytest.mark.parametrize("method", READING)
def test_signals_are_those_of_transformers(llava, asked, method, monkeypatch):
    llava.check_signals(asked[0], method, monkeypatch)


def test_the_tower_takes_as_many_pictures_in_a_step_as_without_vtc(llava):
    scheduler = llava.core.scheduler
    whole = scheduler.scheduler_config.max_num_batched_tokens // 576
    assert scheduler.max_num_encoder_input_tokens // KEEP == max(1, whole)


@pytest.mark.parametrize("method", ["divprune", "vtc-cls"])
def test_two_pictures_none_and_another_shape_in_one_batch(llava, mixed, method):
    llava.swap(method)
    together = llava.ask(mixed)
    assert [answer.ids for answer in together] == llava.expected(mixed, method)
    assert together[1].prompt - together[2].prompt > 2 * KEEP - 20
    llava.forget()
    assert [answer.ids for answer in llava.ask(mixed, together=False)] == [answer.ids for answer in together]


def test_a_picture_is_cut_by_chunked_prefill(llava, asked, mixed, monkeypatch):
    llava.swap("vtc-cls")
    expected = llava.expected([*asked, *mixed], "vtc-cls")
    steps: list[dict[str, int]] = []
    schedule = llava.core.scheduler.schedule

    def noted(*args, **kwargs):
        found = schedule(*args, **kwargs)
        steps.append(dict(found.num_scheduled_tokens))
        return found

    monkeypatch.setattr(llava.core.scheduler, "schedule", noted)
    monkeypatch.setattr(llava.core.scheduler, "max_num_scheduled_tokens", 48)
    assert [answer.ids for answer in llava.ask([*asked, *mixed])] == expected
    assert max(sum(step.values()) for step in steps) <= 48 < KEEP


def test_a_prefix_is_found_again_and_never_that_of_another_budget(llava, asked):
    llava.swap("divprune")
    few = list({one.pictures[0].tobytes(): one for one in asked}.values())[:4]  # no two of the same picture
    first = llava.ask(few, together=False)
    assert [answer.cached for answer in first] == [0] * 4
    again = llava.ask(few, together=False)
    assert [answer.ids for answer in again] == [answer.ids for answer in first]
    assert [answer.cached for answer in again] == [64] * 4  # two blocks of 32
    for method, keep in (("divprune", 40), ("vtc-cls", KEEP)):
        llava.swap(method, keep, forget=False)
        other = llava.ask(few, together=False)
        assert [answer.cached for answer in other] == [0] * 4
        assert [answer.prompt - keep for answer in other] == [answer.prompt - KEEP for answer in first]
    assert [answer.ids for answer in other] == llava.expected(few, "vtc-cls")
    llava.swap("divprune", forget=False)
    assert [answer.cached for answer in llava.ask(few, together=False)] == [64] * 4


def test_a_fraction_and_more_than_there_is(llava, asked):
    few = asked[:4]
    llava.swap("divprune", 1.0)
    assert [answer.ids for answer in llava.ask(few)] == llava.plain(few)
    llava.swap("divprune", 0.1)
    text = [len(llava.reference[1].tokenizer(llava.prompt(one)["prompt"]).input_ids) - 1 for one in few]
    assert [answer.prompt for answer in llava.ask(few)] == [words + 58 for words in text]  # round(57.6)


@pytest.mark.parametrize("given", [{"keep": 8}, {"method": "divprune"}, {"vtc": {"keep": 8}}])
def test_a_request_cannot_have_a_budget_of_its_own(llava, asked, given):
    llava.swap("divprune")
    prompt = llava.prompt(asked[0]) | {"mm_processor_kwargs": given}
    with pytest.raises(ValueError, match="an engine has one method and one budget") as told:
        llava.llm.generate(prompt, use_tqdm=False)
    assert next(iter(given)) in str(told.value)
    assert len(llava.ask(asked[:1])) == 1  # and the engine goes on


def test_embeddings_of_a_request_are_refused(llava, asked):
    import torch

    llava.swap("divprune")
    prompt = llava.prompt(asked[0])["prompt"]
    with pytest.raises(ValueError, match="enable-mm-embeds"):
        llava.llm.generate({"prompt": prompt, "multi_modal_data": {"image": torch.zeros(1, 576, 192)}}, use_tqdm=False)
