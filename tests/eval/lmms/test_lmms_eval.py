"""The plug-in under the real lmms-eval: its numbers are those of vtc's own answers. Run by `make test-lmms`."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

import vtc
from tests import listed_saved
from tests.small_qwen import save
from vtc.eval import datasets
from vtc.eval.lmms import FAMILIES, rows
from vtc.eval.metrics import exact, objects

pytestmark = pytest.mark.lmms
ROOT = Path(__file__).resolve().parents[3]
TASKS = "tests/eval/lmms/task"
COUNT = 12
RUNS = {"none": None, "divprune": 0.1, "random": 0.1}


def lmms_eval(module: str) -> Any:
    return importlib.import_module(f"lmms_eval.{module}")


@pytest.fixture(scope="module", autouse=True)
def _offline(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("HF_HOME", str(tmp_path_factory.mktemp("hf")))
        patch.setenv("HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("datasets")))
        yield


@pytest.fixture(scope="module")
def own():
    """vtc's own answers, one question at a time: {method: [answer]}."""
    model, processor = vtc.load("tiny-llava", device="cpu")
    answers: dict[str, list[str]] = {}
    for method, keep in RUNS.items():
        if keep is not None:
            vtc.wrap(model, method, keep)
        answers[method] = []
        for question in datasets.load("tiny").questions[:COUNT]:
            picture = question.media.picture()
            inputs = processor(text=vtc.prompt(processor, question.question), images=picture, return_tensors="pt")
            out = model.generate(**inputs, max_new_tokens=48, do_sample=False)[:, inputs["input_ids"].shape[1] :]
            answers[method].append(processor.batch_decode(out, skip_special_tokens=True)[0].strip())
    return answers


def arguments(method: str, **more: object) -> str:
    given = {"pretrained": "tiny-llava", "method": method, "keep": RUNS[method], "device": "cpu", **more}
    return ",".join(f"{name}={value}" for name, value in given.items() if value is not None)


def command(folder: Path, method: str, *before: str) -> dict[str, Any]:
    """Run the literal command and read what it wrote: its results, and the answers as "answers"."""
    done = subprocess.run(
        [
            *(*before, "--model", "vtc_llava", "--model_args", arguments(method), "--tasks", "vtc_tiny"),
            *("--include_path", TASKS, "--limit", str(COUNT), "--batch_size", "5"),
            *("--output_path", str(folder), "--log_samples"),
        ],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    files = list(folder.rglob("*_results.json"))
    assert len(files) == 1, done.stdout + done.stderr
    samples = [json.loads(line) for line in next(folder.rglob("*_samples_*.jsonl")).read_text().splitlines()]
    samples.sort(key=lambda sample: sample["doc_id"])
    return {**json.loads(files[0].read_text()), "answers": [s["filtered_resps"].strip() for s in samples]}


def evaluate(method: str, task: str = "vtc_tiny", **more: Any) -> dict[str, Any]:
    manager = lmms_eval("tasks").TaskManager(include_path=TASKS, model_name="vtc_llava")
    return lmms_eval("evaluator").simple_evaluate(
        model="vtc_llava",
        model_args=arguments(method),
        tasks=[task],
        task_manager=manager,
        **{"batch_size": 8, "limit": COUNT, "bootstrap_iters": 0, **more},
    )


def mean_score(answers: list[str]) -> float:
    questions = datasets.load("tiny").questions
    scores = [(objects if q.objects else exact)(said, q) for said, q in zip(answers, questions, strict=False)]
    return sum(scores) / len(scores)


def answers_of(results: dict[str, Any], task: str = "vtc_tiny") -> list[str]:
    samples = sorted(results["samples"][task], key=lambda sample: sample["doc_id"])
    return [sample["filtered_resps"][0].strip() for sample in samples]


def test_the_command(own, tmp_path):
    results = command(tmp_path, "divprune", str(Path(sys.executable).with_name("lmms-eval")))
    assert results["answers"] == own["divprune"]
    assert results["results"]["vtc_tiny"]["vtc_score,none"] == pytest.approx(mean_score(own["divprune"]))
    throughput = results["throughput"]
    assert (throughput["avg_visual_tokens_in"], throughput["avg_visual_tokens_out"]) == (576, 58)


def test_two_processes_give_the_same_numbers(own, tmp_path):
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2", "-m", "lmms_eval"]
    results = command(tmp_path, "divprune", *launch)
    assert results["answers"] == own["divprune"]
    assert results["results"]["vtc_tiny"]["vtc_score,none"] == pytest.approx(mean_score(own["divprune"]))


@pytest.mark.parametrize("simple", [False, True])
@pytest.mark.parametrize("method", list(RUNS))
def test_answers_are_those_of_vtc(own, method, simple):
    results = evaluate(method, force_simple=simple)
    assert answers_of(results) == own[method]
    assert results["results"]["vtc_tiny"]["vtc_score,none"] == pytest.approx(mean_score(own[method]))
    tokens = results["throughput"]
    assert tokens["avg_visual_tokens_in"] == 576
    assert tokens["avg_visual_tokens_out"] == (576 if method == "none" else 58)


def test_the_response_cache(own, tmp_path, monkeypatch):
    first = evaluate("divprune", use_cache=str(tmp_path))
    other = evaluate("random", use_cache=str(tmp_path))
    assert answers_of(other) == own["random"]  # a cache holds each configuration for itself
    monkeypatch.setattr(lmms_eval("models").get_model("vtc_llava"), "generate_until", None)
    again = evaluate("divprune", use_cache=str(tmp_path))
    assert answers_of(again) == answers_of(first) == own["divprune"]


def test_multiple_choice(tmp_path):
    choice: Any = {"task": "vtc_tiny_choice", "force_simple": True, "limit": 3, "use_cache": str(tmp_path)}
    for method, accuracy in (("none", 1), ("divprune", 1), ("divprune", 1)):  # the last with a cache that is there
        results = evaluate(method, **choice)["results"]["vtc_tiny_choice"]
        assert results["acc,none"] == accuracy


def test_every_name_is_found():
    registry = lmms_eval("models").MODEL_REGISTRY_V2
    for name in FAMILIES:
        chat, simple = registry.get_model_class(name), registry.get_model_class(name, force_simple=True)
        assert (chat.is_simple, simple.is_simple, chat.name, simple.name) == (False, True, name, name)


def test_mistakes_come_before_weights(monkeypatch):
    monkeypatch.setattr(vtc, "load", lambda *a, **k: pytest.fail("weights were loaded"))
    build = lmms_eval("models").get_model("vtc_qwen3_vl").create_from_arg_string
    for text, sentence in {
        "pretrained=tiny-llava,method=divprune,keep=0.1": "use --model vtc_llava",
        "pretrained=tiny-llava,method=divprun": "Did you mean 'divprune'",
        "pretrained=tiny-llava,method=divprune,keep=1.5": "keep=1.5 is not a number in",
    }.items():
        with pytest.raises(ValueError, match=sentence):
            build(text, {"batch_size": 1, "device": None})


def request(kind: str, number: int, first: str, *others: Any) -> Any:
    metadata = {"task": "t", "doc_id": number, "repeats": 1, "split": "test"}
    return lmms_eval("api.instance").Instance(kind, (first, *others, number, "t", "test"), 0, metadata)


# A Qwen2.5-VL with random weights, asked about anything at once, in batches.


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from tests.media.test_video import write

    folder = save(tmp_path_factory.mktemp("qwen"))
    write(folder / "clip.mp4", 16, (112, 84))
    write(folder / "short.mp4", 3, (112, 84))
    (folder / "broken.mp4").write_bytes(b"no video")
    return folder


@pytest.fixture(scope="module")
def documents(folder):
    red, blue = Image.new("RGB", (112, 84), "red"), Image.new("RGB", (84, 112), "blue")
    shown = [[red], [red, blue], [], [str(folder / "clip.mp4")], [str(folder / "short.mp4")]]
    shown += [[blue, str(folder / "clip.mp4")], [str(folder / "broken.mp4")]]
    return [{"visuals": v, "text": f"what moves {'abcdefg'[i]} ?"} for i, v in enumerate(shown)]


def build(folder, documents, name: str = "vtc_qwen2_5_vl", **more: Any):
    given = {"pretrained": str(folder), "method": "divprune", "keep": 3, "batch_size": 4, "max_frames": 6}
    model = lmms_eval("models").get_model(name, more.pop("simple", False))(**{**given, "device": "cpu", **more})
    model.task_dict = {"t": {"test": documents}}
    return model


def alone(model, document, **options: Any) -> str:
    row = rows.read(rows.user_turn(document["text"], document["visuals"]), model.processor, model._load_clip)
    inputs = rows.batch([row], model.processor)
    out = model._model.generate(**inputs, do_sample=False, **options)[:, inputs["input_ids"].shape[1] :]
    return model.processor.batch_decode(out, skip_special_tokens=True)[0]


@pytest.mark.parametrize("method", ["none", "divprune", "transprune"])
def test_in_batches_as_alone_and_in_order(folder, documents, method):
    keep = None if method == "none" else 3
    model = build(folder, documents, method=method, keep=keep)
    turn = lambda doc: rows.user_turn(doc["text"], doc["visuals"])  # noqa: E731
    asked = [
        request(
            "generate_until", n, d["text"], turn, {"max_new_tokens": 3 + n % 2, "temperature": 0, "until": ["\n\n"]}
        )
        for n, d in enumerate(documents)
    ]
    before = json.dumps([r.args[2] for r in asked])
    results = model.generate_until(asked)
    assert json.dumps([r.args[2] for r in asked]) == before
    assert results[-1].text == ""
    assert model._seen["unread"] == 1
    for n, document in enumerate(documents[:-1]):
        assert results[n].text == alone(model, document, max_new_tokens=3 + n % 2), n
    assert model._seen["visuals"] == 7
    if method == "divprune":
        assert model._seen["out"] == 3 * 7


@pytest.mark.parametrize("family", ["qwen3_vl_moe", "hunyuan_vl", "idefics3"])
def test_listed_families_have_one_name(family, folder, documents, tmp_path):
    """Pictures, and videos where the family reads them, of families that the default one carries."""
    listed = listed_saved.save(tmp_path / "model", family)
    shown = [d for d in documents[:3] if d["visuals"]] if family != "qwen3_vl_moe" else documents[:5]
    model = build(listed, shown, name="vtc_hf")
    turn = lambda doc: rows.user_turn(doc["text"], doc["visuals"])  # noqa: E731
    how = {"max_new_tokens": 3, "temperature": 0, "until": ["\n\n"]}
    results = model.generate_until([request("generate_until", n, d["text"], turn, how) for n, d in enumerate(shown)])
    assert [result.text for result in results] == [alone(model, document, max_new_tokens=3) for document in shown]
    assert model._seen["out"] > 0


def test_until_sampling_and_length(folder, documents):
    model = build(folder, documents)
    said = alone(model, documents[0], max_new_tokens=8)
    stop = said.split()[3]
    turn = lambda doc: rows.user_turn(doc["text"], doc["visuals"])  # noqa: E731

    def ask(**options: Any) -> str:
        return model.generate_until([request("generate_until", 0, "x", turn, options)])[0].text

    assert ask(max_new_tokens=8, until=[stop]) == said.split(stop)[0]
    assert ask(max_new_tokens=2).split() == said.split()[:2]
    torch.manual_seed(0)
    assert len({ask(max_new_tokens=8, temperature=5.0, do_sample=True) for _ in range(3)}) == 3
    assert ask(max_new_tokens=8, temperature=0, do_sample=True, strange=1) == said


@pytest.mark.parametrize("method", ["none", "divprune"])
def test_likelihoods(folder, documents, method):
    model = build(folder, documents, simple=True, method=method, keep=None if method == "none" else 3)
    likely = alone(model, documents[1], max_new_tokens=2)
    show = lambda doc: doc["visuals"]  # noqa: E731
    asked = [
        request("loglikelihood", n, documents[n]["text"], said, show)
        for n, said in ((1, " " + likely), (1, " a b c"), (2, lambda doc: " is there"), (3, " moves"))
    ]
    model._model.generation_config.repetition_penalty = 3.0  # is none of a likelihood's business
    results = [result.text for result in model.loglikelihood(asked)]
    assert results[0][1] is True
    assert results[0][0] < results[1][0]
    for (loss, _), asking, said in zip(results, asked, (" " + likely, " a b c", " is there", " moves"), strict=True):
        document = documents[asking.doc_id]
        row = rows.read(rows.user_turn(document["text"], document["visuals"]), model.processor, model._load_clip)
        length = rows.batch([row], model.processor)["input_ids"].shape[1]
        row.text += said
        inputs = rows.batch([row], model.processor)
        logits = model._model(**inputs).logits[0, length - 1 : -1].log_softmax(dim=-1)
        expected = -logits.gather(1, inputs["input_ids"][0, length:, None]).mean()
        assert loss == pytest.approx(float(expected), abs=1e-4)


def test_refusals(folder, documents):
    model = build(folder, documents)
    with pytest.raises(NotImplementedError, match="several rounds"):
        model.generate_until_multi_round([])
    broken = len(documents) - 1
    turn = lambda doc: rows.user_turn(doc["text"], doc["visuals"])  # noqa: E731
    with pytest.raises(ValueError, match="none of the 1 requests could be read"):
        model.generate_until([request("generate_until", broken, "x", turn, {})])
    likely = request("loglikelihood", broken, "x", " a", lambda doc: doc["visuals"])
    with pytest.raises(ValueError, match="cannot be read as a video"):
        build(folder, documents, simple=True).loglikelihood([likely])
    turn = lambda doc: rows.user_turn("x", [SimpleNamespace()])  # noqa: E731
    with pytest.raises(NotImplementedError, match="a video comes as SimpleNamespace"):
        model.generate_until([request("generate_until", 0, "x", turn, {})])


def test_arguments_win_over_the_command_line(folder):
    text = f"pretrained={folder},method=vtc-cls+transprune,keep=6+2,batch_size=3,attn_implementation=eager"
    cls = lmms_eval("models").get_model("vtc_qwen2_5_vl")
    model = cls.create_from_arg_string(text, {"batch_size": 1, "device": "cpu", "max_batch_size": None})
    assert model.settings.batch_size == 3
    assert model._model.config._attn_implementation == "eager"
    assert model.settings.methods == (vtc.VTCCLS(keep=6), vtc.TransPrune(keep=2))
