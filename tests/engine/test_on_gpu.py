"""Wrapped models on a real GPU, beside the same on the CPU: `pytest -m gpu`."""

from __future__ import annotations

import copy
import inspect
import warnings
from collections import Counter
from functools import cache
from typing import Any

import pytest
import torch

import vtc
from tests.families import batch, model_of
from tests.sweep import EVERY, cells, only_videos

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is available here"),
]
SAME = 1e-4  # of logits of size 1, in fp32


@pytest.fixture(autouse=True)
def _exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Convolutions round to tf32 by default, which a patch embedding would show."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@cache
def on_gpu(family: str) -> Any:
    return copy.deepcopy(model_of(family)).cuda()


def recent(family: str) -> bool:
    """Whether transformers is 5.18 or later."""
    return "mm_encoder_outputs" in inspect.signature(type(model_of(family)).forward).parameters


def rows(method: str) -> list[list[Any]]:
    """Two rows of one and of two pictures, or clips."""
    return [["v0"], ["v1", "v0"]] if only_videos(method) else [[0], [1, 2]]


def run(model: Any, inputs: dict[str, Any], method: str) -> tuple[torch.Tensor, torch.Tensor, list[list[int]]]:
    with vtc.wrapped(model, EVERY[method]()):
        answer = model.generate(**inputs, max_new_tokens=4, do_sample=False)
        logits = model(**inputs, use_cache=True).logits[:, -1]
        kept = [span.kept.tolist() for span in vtc.report(model).spans]
    return logits.cpu(), answer.cpu(), kept


@pytest.mark.parametrize(("family", "method"), [pytest.param(*cell.values) for cell in cells(EVERY)])
def test_a_gpu_chooses_and_answers_as_the_cpu_does(family: str, method: str) -> None:
    if family == "llava_onevision" and only_videos(method) and not recent(family):
        pytest.skip("before transformers 5.18 its clips lie otherwise in the prompt")
    inputs = batch(family, rows(method))
    logits, answer, kept = run(on_gpu(family), {name: x.cuda() for name, x in inputs.items()}, method)
    expected, reply, chosen = run(model_of(family), inputs, method)
    assert kept == chosen
    torch.testing.assert_close(logits, expected, atol=SAME, rtol=SAME)
    assert torch.equal(answer, reply)


@pytest.mark.parametrize(
    "method", ["random", "divprune", "vtc-cls", "fastv", "pyramiddrop", "dart", "h2o", "streaming"]
)
@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_a_prefill_waits_as_seldom_as_was_counted(family: str, method: str) -> None:
    """PyTorch itself reports every synchronisation; test_device_cost.py counts them on a pretended device."""
    model = on_gpu(family)
    inputs = {name: x.cuda() for name, x in batch(family, [[0], [0]]).items() if name != "attention_mask"}

    def waits() -> Counter[str]:
        model(**inputs, use_cache=True)  # kernels are compiled
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as seen:
                warnings.simplefilter("always")
                model(**inputs, use_cache=True)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        return Counter(f"{one.filename}:{one.lineno}" for one in seen if "synchronizing" in str(one.message))

    plain = waits()
    with vtc.wrapped(model, EVERY[method]()):
        more = waits() - plain
    # the ids, Qwen's grid; random draws by the picture, and what evicts may look at once
    assert sum(more.values()) <= 1 + (family == "qwen2_5_vl") + (method in ("random", "h2o", "streaming")), more
