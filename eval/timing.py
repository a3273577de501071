"""How long a model takes and how much memory: one question at a time, every run in turn, after warm-ups."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from transformers import StoppingCriteria, StoppingCriteriaList

import vtc
from vtc.engine.versions import cache_of
from vtc.eval.answer import Answerer, Item
from vtc.eval.bench.model import peak_bytes
from vtc.eval.questions import Question
from vtc.eval.settings import BLIND, FULL, Spec
from vtc.speedup import speed_up

DECODE_STEPS = 16


class _Clock(StoppingCriteria):
    """Notes when each token has come, and stops nothing."""

    def __init__(self) -> None:
        self.ticks = [time.perf_counter()]

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> Any:
        if input_ids.is_cuda:
            torch.cuda.synchronize(input_ids.device)
        self.ticks.append(time.perf_counter())
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


@torch.inference_mode()
def measure(
    answerer: Answerer,
    specs: Sequence[Spec],
    questions: Sequence[Question],
    samples: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[Spec, dict[str, Any]]:
    """Times and memory of each run over the same `samples` questions, evenly spread.

    Every question goes through all runs before the next one comes, every other one in reverse, so that a machine that
    slows down slows all of them; and through each once before, as a warm-up that does not count. A run that shows grey
    pictures is not timed. Processing of the picture is left out, the vision tower is not.

    Returns:
        per run `ttft_ms` (median time of `generate` to its first token), `decode_tokens_per_s` (from the median time of
        one of the 16 tokens after it), `peak_bytes` (the most that answering had allocated at a time, weights left
        out), `cache_bytes` (what the keys and values of the KV cache occupy after these tokens, mean over questions;
        `vtc.cache_bytes`), `cache_notes_bytes` (what is kept with them: which row is which), `samples`, and `speedup`
        to the first token over the uncompressed run (see `vtc.speedup.SpeedUp`; None where that was not timed, or too
        few questions were).
    """
    timed = [spec for spec in specs if spec.method != BLIND]
    items = _readable(answerer, questions, samples)
    steps: dict[Spec, list[list[float]]] = {spec: [] for spec in timed}  # seconds from token to token, by question
    peak: dict[Spec, int] = {}
    cached: dict[Spec, list[vtc.CacheBytes]] = {spec: [] for spec in timed}
    for number, item in enumerate(items):
        plain = answerer.processed([item])
        inputs = {spec: _resized(answerer, item, spec) if spec.resizes else plain for spec in timed}
        for spec in timed:
            with answerer.compressed(spec):
                warm_up = partial(_generate, answerer.model, inputs[spec], new=1)  # the prefill is what takes most
                if number == 0:
                    peak[spec] = peak_bytes(warm_up, answerer.model.device)
                warm_up()
        for position, spec in enumerate(timed if number % 2 == 0 else reversed(timed)):
            with answerer.compressed(spec):
                ticks, held = _generate(answerer.model, inputs[spec])
            cached[spec].append(held)
            steps[spec].append([after - before for before, after in itertools.pairwise(ticks)])
            progress(number * len(timed) + position + 1, len(items) * len(timed))
    if not items:
        return {}
    first = {spec: [own[0] for own in steps[spec]] for spec in timed}
    full = next((first[spec] for spec in timed if spec.method == FULL), None)
    return {
        spec: {
            "ttft_ms": round(1000 * statistics.median(first[spec]), 3),
            "decode_tokens_per_s": round(1 / statistics.median(step for own in steps[spec] for step in own[1:]), 2),
            "peak_bytes": peak[spec],
            "cache_bytes": round(statistics.mean(held.rows for held in cached[spec])),
            "cache_notes_bytes": round(statistics.mean(held.notes for held in cached[spec])),
            "samples": len(items),
            "speedup": _speedup(full, first[spec]) if spec.compressed else None,
        }
        for spec in timed
    }


def _resized(answerer: Answerer, item: Item, spec: Spec) -> dict[str, Any]:
    """What the processor makes of a question whose picture a run makes smaller."""
    [(shown, options)] = answerer.shown([item], spec)
    return answerer.processed(shown, options)


def _speedup(full: Sequence[float] | None, own: Sequence[float]) -> dict[str, float] | None:
    found = speed_up(full, own) if full is not None else None
    return asdict(found) if found else None


def _generate(model: Any, inputs: dict[str, Any], new: int = DECODE_STEPS + 1) -> tuple[list[float], vtc.CacheBytes]:
    """When it began, and when each of `new` tokens had come, in seconds; and what the KV cache then occupies."""
    clock = _Clock()
    out = model.generate(
        **inputs,
        min_new_tokens=new,
        max_new_tokens=new,
        do_sample=False,
        num_beams=1,
        stopping_criteria=StoppingCriteriaList([clock]),
        return_dict_in_generate=True,
    )
    return clock.ticks, vtc.cache_bytes(cache_of(out))


def _readable(answerer: Answerer, questions: Sequence[Question], samples: int) -> list[Item]:
    """So many questions, evenly spread over the set, whose media can be read."""
    step, found = max(1, len(questions) // max(1, samples)), []
    for question in questions[::step]:
        if len(found) < samples:
            try:
                found.append(Item(question, answerer.read(question)))
            except Exception:  # answering has said what is wrong with it
                continue
    return found
