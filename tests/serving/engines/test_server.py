"""The OpenAI server, started as the page "Serve" says, with many clients at once (`make test-vllm`)."""

from __future__ import annotations

import base64
import io
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import vtc
from tests.serving.engines.served import ENVIRONMENT
from vtc.eval import datasets
from vtc.models.tiny import find

pytestmark = pytest.mark.vllm
KEEP = 64
MODULE = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
PLAIN = [*("--dtype", "float32"), "--enforce-eager", *("--max-model-len", "2048"), *("--block-size", "32")]


def flag(method: str, keep: int) -> list[str]:
    """What `vtc serve-args` prints."""
    from vtc.cli.main import main

    words: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("builtins.print", lambda *given, **more: words.extend(map(str, given)))
        assert main(["serve-args", "tiny-llava", "--method", method, "--keep", str(keep)]) == 0
    import shlex

    return shlex.split(" ".join(words))


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


class Server:
    """A server in processes of its own."""

    def __init__(self, log: Path) -> None:
        self.log, self.port = log, free_port()
        environment = {**os.environ, **ENVIRONMENT, "VLLM_LOGGING_LEVEL": "INFO", "VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
        command = [*MODULE, "--model", str(find("tiny-llava")), *flag("vtc-cls", KEEP), *PLAIN]
        command += ["--port", str(self.port), "--served-model-name", "tiny", "--enable-prompt-tokens-details"]
        command += ["--trust-request-mm-kwargs"]  # else vLLM itself refuses any
        with log.open("w") as out:
            self.process = subprocess.Popen(command, stdout=out, stderr=out, env=environment)

    def wait(self, seconds: float = 240) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            assert self.process.poll() is None, self.log.read_text()[-3000:]
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=5).close()
                return
            except OSError:
                time.sleep(0.5)
        raise AssertionError(self.log.read_text()[-3000:])

    def ask(self, question: str, *pictures: Any, **more: Any) -> Any:
        content: list[Any] = [{"type": "image_url", "image_url": {"url": as_url(one)}} for one in pictures]
        content.append({"type": "text", "text": question})
        body = {"model": "tiny", "messages": [{"role": "user", "content": content}], "temperature": 0, "max_tokens": 24}
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/v1/chat/completions",
            json.dumps(body | more).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=120) as answer:
            return json.load(answer)


def as_url(picture: Any) -> str:
    out = io.BytesIO()
    picture.save(out, "PNG")
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Server]:
    one = Server(tmp_path_factory.mktemp("server") / "log.txt")
    try:
        one.wait()
        yield one
    finally:
        one.process.terminate()
        one.process.wait(60)


@pytest.fixture(scope="module")
def questions() -> list[Any]:
    return list(datasets.load("tiny").questions[:20])


@pytest.fixture(scope="module")
def expected(questions) -> list[str]:
    """vtc's answers on transformers to the prompts of the server, which has no token in front of its chat template."""
    model, processor = vtc.load("tiny-llava", "cpu", "float32")
    vtc.wrap(model, "vtc-cls", KEEP, positions="compact")
    found = []
    for one in questions:
        text = vtc.prompt(processor, one.question)
        inputs = processor(text=text, images=one.media.picture(), add_special_tokens=False, return_tensors="pt")
        out = model.generate(**inputs, max_new_tokens=24, do_sample=False)[0, inputs["input_ids"].shape[1] :]
        found.append(processor.decode(out, skip_special_tokens=True))
    return found


def test_eight_clients_at_once_have_vtcs_own_answers(server, questions, expected):
    with ThreadPoolExecutor(8) as clients:
        answers = list(clients.map(lambda one: server.ask(one.question, one.media.picture()), questions))
    assert [one["choices"][0]["message"]["content"].strip() for one in answers] == [one.strip() for one in expected]
    words = [one["usage"]["prompt_tokens"] - KEEP for one in answers]
    assert all(0 < count < 30 for count in words)


def test_the_same_again_comes_from_the_cache(server, questions):
    first, again = (server.ask(questions[0].question, questions[0].media.picture()) for _ in range(2))
    assert again["choices"][0]["message"] == first["choices"][0]["message"]
    assert again["usage"]["prompt_tokens_details"]["cached_tokens"] == 64


def test_two_pictures_in_one_question(server, questions):
    one, two = (questions[number].media.picture() for number in (0, 10))
    alone = server.ask("Do the pictures show the same?", one)["usage"]["prompt_tokens"]
    both = server.ask("Do the pictures show the same?", one, two)["usage"]["prompt_tokens"]
    assert KEEP <= both - alone <= KEEP + 2


def test_the_log_says_how_it_prunes(server):
    assert (
        "vtc vtc-cls(keep=64, positions=compact): 64 of 576 visual tokens of each picture stay"
        in server.log.read_text()
    )


def test_a_request_with_a_budget_of_its_own_is_refused(server, questions):
    with pytest.raises(urllib.error.HTTPError) as told:
        server.ask(questions[0].question, questions[0].media.picture(), mm_processor_kwargs={"keep": 8})
    assert told.value.code == 400
    assert "an engine has one method and one budget" in told.value.read().decode()


def test_a_server_that_cannot_prune_so_does_not_start():
    asked = '{"architectures": ["VtcLlavaForConditionalGeneration"], "vtc": {"method": "divprun"}}'
    command = [*MODULE, "--model", str(find("tiny-llava")), "--hf-overrides", asked, *PLAIN]
    environment = {**os.environ, **ENVIRONMENT, "VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240)
    assert done.returncode
    assert "there is no method 'divprun'. Did you mean 'divprune'?" in done.stdout + done.stderr
