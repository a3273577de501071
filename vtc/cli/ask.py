"""One question about some pictures or videos, answered with all visual tokens and with fewer, timed and drawn."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

import vtc
from vtc.draw.filmstrip import save_film
from vtc.methods.base.notation import read_methods
from vtc.speedup import SpeedUp, first_token, in_turns, speed_up

if TYPE_CHECKING:
    from vtc.media.video import Clip
    from vtc.reports import Report


@dataclass(frozen=True)
class Answer:
    """What the model said, and the report if a method was at work.

    `shown` are the pictures and clips that the processor was given; `seconds` those to the first token, round by round,
    and `speed` how much sooner it comes than uncompressed.
    """

    method: str | None
    text: str
    report: Report | None
    shown: list[Any] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    speed: SpeedUp | None = None


def ask(
    model,
    processor,
    pictures: list[Image.Image],
    question: str,
    method: str | None = None,
    keep: int | float | None = None,
    max_new_tokens: int = 48,
    clips: Sequence[Clip] = (),
    **options: Any,
) -> list[Answer]:
    """Answer greedily with all visual tokens and, if `method` is given, once more with that and
    its `options`.

    Time to first token is that of a whole `generate` of one token, vision tower included, in rounds in which both take
    their turns; see `vtc.speedup`.
    """
    plain = vtc.prepare(processor, question, pictures, clips).to(model.device, model.dtype)
    answers: list[Answer] = []
    works: list[Callable[[], float]] = []
    for name in [None, method] if method else [None]:
        inputs, resized = plain, _resized(name, keep, options)
        shown: list[Any] = [*pictures, *clips]
        if resized is not None:
            small, more = vtc.downsample_all(shown, processor, resized)
            shown = [one.media for one in small]
            images = [one for one in shown if isinstance(one, Image.Image)]
            films = [one for one in shown if not isinstance(one, Image.Image)]
            inputs = vtc.prepare(processor, question, images, films, **more).to(model.device, model.dtype)
        at_work = name is not None and resized is None
        wrapped: Any = partial(vtc.wrapped, model, name or "", keep, processor=processor, **options)
        wrapped = wrapped if at_work else nullcontext
        with torch.inference_mode(), wrapped():
            out = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
            report = vtc.report(model) if at_work else None
        works.append(partial(first_token, model, inputs, wrapped))
        if resized is not None:
            whole, own = (_account(model, processor, given) for given in (plain, inputs))
            report = own.made_smaller(whole, [one.note for one in small])
        said = processor.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)[0]
        answers.append(Answer(name, said.strip(), report, shown))
    seconds = in_turns(works)
    speeds = [None, *(speed_up(seconds[0], own) for own in seconds[1:])]
    return [
        replace(answer, seconds=own, speed=speed) for answer, own, speed in zip(answers, seconds, speeds, strict=True)
    ]


def _resized(method: str | None, keep: int | float | None, options: dict[str, Any]) -> int | float | None:
    """The budget of a method that makes pictures smaller before the processor sees them; None for all others."""
    if method is None or [name for name, _ in read_methods(method)] != ["downsample"]:
        return None
    return vtc.resolve(method, keep, **options).keep


def _account(model, processor, inputs) -> Report:
    """The report of a method that keeps everything."""
    with torch.inference_mode(), vtc.wrapped(model, "random", 1.0, processor=processor):
        model.generate(**inputs, max_new_tokens=1, do_sample=False)
        return vtc.report(model)


def show(answers: list[Answer]) -> None:
    """Print one column per answer; the last one's report has the numbers of both."""
    full, last = answers[0], answers[-1]
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    for answer in answers:
        table.add_column(escape(answer.method or "all visual tokens"), overflow="fold")
    table.add_row("answer", *(escape(answer.text) for answer in answers))
    if last.report:
        tokens_in, tokens_out = last.report.tokens_in, last.report.tokens_out
        table.add_row("visual tokens", f"{tokens_in}", f"{tokens_out} ({100 * tokens_out / max(1, tokens_in):.0f} %)")
    table.add_row("time to first token", *(f"{1000 * statistics.median(answer.seconds):.0f} ms" for answer in answers))
    if last.speed:
        table.add_row("", "", str(last.speed))
    if last.report:
        table.add_row("prefill FLOPs", *(_si(value) for value in last.report.flops))
        table.add_row("KV cache", *(f"{_si(value)}B" for value in last.report.kv_bytes))
    console = Console(highlight=False)
    console.print(table)
    rounds = len(full.seconds)
    about = f"Time to first token: median of {rounds} rounds after a warm-up, vision tower included"
    spread = "; in brackets where the ratio lies" if last.speed and last.speed.clear else ""
    console.print(f"{about}{spread}.", style="dim")
    for note in last.report.notes if last.report else []:
        console.print(f"note: {note}", markup=False)


def _si(value: float) -> str:
    for unit, scale in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= scale:
            return f"{value / scale:.3g} {unit}"
    return f"{value:.3g} "


def save_overlays(
    pictures: list[Image.Image], processor, answer: Answer, path: Path, clips: Sequence[Clip] = ()
) -> list[Path]:
    """Draw what was kept of each picture and video; `out.png` becomes `out-1.png`, `out-2.png` for several."""
    assert answer.report is not None
    path.parent.mkdir(parents=True, exist_ok=True)
    paths = []
    shown = answer.shown or [*pictures, *clips]
    for number, (item, span) in enumerate(zip(shown, answer.report.spans, strict=True), 1):
        file = path if len(shown) == 1 else path.with_stem(f"{path.stem}-{number}")
        if isinstance(item, Image.Image):
            vtc.overlay(vtc.seen(item, processor), span).save(file)
        else:
            save_film(item, span, file)
        paths.append(file)
    return paths
