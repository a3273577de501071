"""The page: a picture or a clip, a question, methods and a budget on the left; answers side by side on the right."""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import gradio as gr

import vtc
from vtc.demos import cards
from vtc.demos.draw import drawn, plain, second
from vtc.demos.examples import shipped_clips, shipped_pictures
from vtc.demos.media import CLIPS, PICTURES, Media, load_media
from vtc.demos.serve import MOST_METHODS
from vtc.demos.studio import Run, Studio

MOST_LETTERS = 500
FIRST_METHODS = ("vtc-cls", "visionzip", "pyramiddrop")
_STAGES = {
    "pixels": "Before the vision tower",
    "encoder": "Inside the vision tower",
    "input": "Before the language model",
    "layer": "Inside it",
    "cache": "In its KV cache",
}
_PAUSE = 0.06  # s between two looks at a growing answer
_CLICKS = """element.addEventListener('click', event => {
    const button = event.target.closest('button[data-index]');
    if (button) trigger('click', {index: Number(button.dataset.index)});
})"""


@dataclass(frozen=True, eq=False)
class View:
    """What a visitor is looking at, and what the sliders and choices were when it was asked for."""

    media: Media
    model: str
    runs: list[Run]
    layer: int
    step: int
    settings: tuple[Any, ...]  # budget and methods


def build(studio: Studio) -> gr.Blocks:
    """The page for a studio whose first model is loaded already."""
    first = studio.names[0]
    depth = studio.load(first).depth
    items = shipped_pictures() + shipped_clips()
    with gr.Blocks(title="vtc: visual-token compression", analytics_enabled=False, delete_cache=(600, 3600)) as page:
        media, view, go = gr.State(items[0][0]), gr.State(None), gr.State(0)
        _html(
            "<header class='top'><h1>vtc</h1><p>What does a vision-language model still know of a picture "
            "when most of its visual tokens are gone?</p></header>"
        )
        with gr.Row(elem_classes="page"):
            with gr.Column(elem_classes="controls", min_width=280):
                shown = _html(cards.preview(items[0][0]))
                strip = _html(cards.examples(items, 0), js_on_load=_CLICKS)
                file = gr.File(
                    label="Upload a picture or a clip", file_types=[*PICTURES, *CLIPS], height=92, elem_classes="drop"
                )
                model = gr.Dropdown(studio.names, value=first, label="Model", visible=len(studio.names) > 1)
                with gr.Row(elem_classes="ask"):
                    question = gr.Textbox(items[0][1], label="Question", max_length=MOST_LETTERS, max_lines=3, scale=4)
                    button = gr.Button("Ask", variant="primary", scale=1, min_width=72)
                budget = gr.Slider(
                    1, 100, value=10, step=1, label="Keep, % of the visual tokens", buttons=[], elem_classes="budget"
                )
                groups = [
                    gr.CheckboxGroup(
                        _choices(stage, "image", studio),
                        value=[
                            name for name in studio.methods or FIRST_METHODS if name in _choices(stage, "image", studio)
                        ],
                        label=label,
                        elem_classes="chips",
                    )
                    for stage, label in _STAGES.items()
                ]
            with gr.Column(elem_classes="results", min_width=320):
                note = _html(elem_classes="notes")
                with gr.Tabs():
                    with gr.Tab("Side by side"):
                        with gr.Row(elem_classes="sliders"):
                            layer = gr.Slider(
                                0,
                                depth,
                                value=depth,
                                step=1,
                                label="Decoder layer (0: as the vision tower hands it over)",
                                buttons=[],
                            )
                            step = gr.Slider(0, 1, value=0, step=1, label="Time step", buttons=[], visible=False)
                        with gr.Row(elem_classes="cards"):
                            slots = [_html(visible=False) for _ in range(MOST_METHODS + 1)]
                        _html(
                            "<p class='legend'><span><i class='kept'></i>kept</span> <span><i class='gone'></i>dropped"
                            "</span> <span><i class='merged'></i>merged: a colour, one token</span></p>"
                        )
                    with gr.Tab("Numbers"):
                        numbers = _html(cards.table([]))
                    with gr.Tab("Methods"):
                        _html(cards.method_list())

        counter = itertools.count(1)
        strip_with = functools.cache(lambda index: cards.examples(items, index))

        def take(chosen: Media, index: int | None, name: str, ticked: Sequence[list[str]]) -> dict[Any, Any]:
            """Show what is going to be asked about; methods that are not for its kind go, and models that are not."""
            reader = _reader_of(studio, chosen, name)
            deepest = studio.load(reader).depth
            notes = list(chosen.notes)
            if reader != name:
                notes.append(f"{name} does not read clips, so {reader} answers.")
            if index is None:
                notes.append(f"{chosen.name} is in place: ask about it.")
            changed: dict[Any, Any] = {
                model: reader,
                media: chosen,
                shown: cards.preview(chosen),
                strip: strip_with(index),
                note: cards.notice("", *notes),
                file: None,
                step: 0,
            }
            if reader != name:
                changed[layer] = gr.Slider(maximum=deepest, value=deepest)
            for group, stage, before in zip(groups, _STAGES, ticked, strict=True):
                names = _choices(stage, chosen.kind, studio)
                changed[group] = gr.CheckboxGroup(choices=names, value=[method for method in before if method in names])
            return changed

        def pick(event: gr.EventData, name: str, *ticked: list[str]) -> dict[Any, Any]:
            index = event._data.get("index")
            if not isinstance(index, int) or not 0 <= index < len(items):
                return gr.skip()
            return take(items[index][0], index, name, ticked) | {question: items[index][1], go: next(counter)}

        def upload(path: str | None, name: str, *ticked: list[str]) -> dict[Any, Any]:
            if path is None:
                return gr.skip()
            try:
                chosen = load_media(path)
            except (ValueError, OSError, ImportError) as error:
                return {note: cards.notice("error", str(error)), file: None}
            return take(chosen, None, name, ticked) | {
                view: None,
                **_hidden(slots),
                step: _time_slider(1, value=0),
            }

        def switch(name: str) -> dict[Any, Any]:
            """Ask another model: the sliders are set for it first."""
            try:
                deepest = studio.load(name).depth
            except (ValueError, OSError, ImportError, RuntimeError) as error:
                return {note: cards.notice("error", str(error))}
            return {layer: gr.Slider(maximum=deepest, value=deepest), step: 0, go: next(counter)}

        def ask(
            media_now: Media, name: str, text: str, at: int, when: int, percent: float, *chosen: list[str]
        ) -> Iterator[dict[Any, Any]]:
            methods = [m for group in chosen for m in group or () if m in _choices(None, media_now.kind, studio)]
            problem = _problem(text, methods, percent)
            if problem:
                yield {note: cards.notice("error", problem)}
                return
            try:
                loaded = studio.load(name)
                base_picture = plain(media_now, loaded.processor)
            except (ValueError, OSError, ImportError, RuntimeError) as error:
                yield {note: cards.notice("error", str(error))}
                return
            runs = [Run(None, 1.0), *(Run(method, percent / 100) for method in methods)]
            runs = [studio.recall(name, media_now, text, run.method, run.keep) or run for run in runs]

            def card(i: int) -> str:
                if runs[i].report is not None:
                    return _card(View(media_now, name, runs, at, when, ()), i, loaded.processor)
                return cards.card(runs[i], runs[0], base_picture if i == 0 else None, base_picture.size, at)

            start = {slot: gr.HTML(visible=i < len(runs)) for i, slot in enumerate(slots)}
            for i in range(len(runs)):
                start[slots[i]] = gr.HTML(card(i), visible=True)
            yield start | {note: cards.notice("", *media_now.notes), view: None}
            steps = 1
            for i in range(len(runs)):
                last = 0.0
                for run in studio.answer(name, media_now, text, runs[i].method, runs[i].keep):
                    runs[i] = run
                    if run.state == "failed" and i == 0:  # then the others cannot answer, either
                        yield {note: cards.notice("error", run.text), **_hidden(slots)}
                        return
                    if i == 0 and run.report is not None:
                        steps = run.report.spans[0].grid[0]
                        when = min(when, steps - 1)
                        yield {step: _time_slider(steps)}
                    if run.state != "running" or time.monotonic() - last > _PAUSE:
                        yield {slots[i]: card(i)}
                        last = time.monotonic()
            yield {
                view: View(media_now, name, runs, at, when, (percent, *chosen)),
                numbers: cards.table(runs),
                step: _time_slider(steps),  # once more: what comes between may be lost when answers come quickly
            }

        def catch_up(now: View | None, name: str, at: int, when: int, *settings: Any) -> dict[Any, Any]:
            """What moved while answers came counts, too: ask again, or only draw again."""
            if now is None:
                return gr.skip()
            if (name, settings) != (now.model, now.settings):
                return {go: next(counter)}
            return gr.skip() if (now.layer, now.step) == (at, when) else look(now, at, when)

        def look(now: View | None, at: int, when: int) -> dict[Any, Any]:
            """Draw the cards again, for another layer or time step."""
            if now is None:
                return gr.skip()
            processor = studio.load(now.model).processor
            done = [i for i, run in enumerate(now.runs) if run.report is not None]
            return {slots[i]: _card(replace(now, layer=at, step=when), i, processor) for i in done}

        quiet: dict[str, Any] = dict(api_visibility="private", show_progress="hidden")
        taken = [media, model, shown, strip, note, file, layer, step, *groups]
        strip.click(pick, [model, *groups], [*taken, question, go], concurrency_id="look", concurrency_limit=8, **quiet)
        file.upload(
            upload,
            [file, model, *groups],
            [*taken, view, *slots],
            concurrency_id="look",
            concurrency_limit=8,
            **quiet,
        )
        model.input(switch, model, [note, layer, step, go], **quiet)
        asked = gr.on(
            [
                page.load,
                button.click,
                question.submit,
                budget.input,
                go.change,
                *(g.input for g in groups),
            ],
            ask,
            [media, model, question, layer, step, budget, *groups],
            [note, view, numbers, step, *slots],
            trigger_mode="always_last",
            concurrency_id="ask",
            concurrency_limit=4,
            **quiet,
        )
        asked.then(catch_up, [view, model, layer, step, budget, *groups], [*slots, go], concurrency_id="look", **quiet)
        gr.on(
            [layer.input, step.input],
            look,
            [view, layer, step],
            slots,
            trigger_mode="always_last",
            concurrency_id="look",
            **quiet,
        )
    page.queue(max_size=32, api_open=False)
    return page


def _html(value: str = "", **options: Any) -> gr.HTML:
    """Markup without gradio's own styles."""
    return gr.HTML(value, apply_default_css=False, **options)


def _choices(stage: str | None, kind: str, studio: Studio) -> list[str]:
    """Methods of a stage (None = all) for pictures ("image") or clips ("video"), the studio's own first."""
    names = dict.fromkeys((*studio.methods, *(info.name for info in vtc.list_methods())))
    offered = [(name, info) for name in names if (info := cards.info_of(name)) and kind in info.modality]
    return [name for name, info in offered if stage in (None, cards.stage_of(info))]


def _card(now: View, i: int, processor: Any) -> str:
    """Card of the i-th answer, as a decoder layer holds the picture or one time step of the clip."""
    run = now.runs[i]
    layer = min(now.layer, run.depth)
    picture = drawn(now.media, processor, run, layer, now.step)
    return cards.card(run, now.runs[0], picture, picture.size, layer, second(now.media, run, now.step))


def _problem(question: str, methods: Sequence[str], percent: float) -> str | None:
    if not question.strip():
        return "The question is empty: ask something about the picture."
    if len(question) > MOST_LETTERS:
        return f"The question has {len(question)} letters, and {MOST_LETTERS} is the limit: ask something shorter."
    if len(methods) > MOST_METHODS:
        return f"{len(methods)} methods are chosen, and {MOST_METHODS} fit side by side: take some away."
    if not 0 < percent <= 100:
        return f"A budget of {percent} % is outside 1 to 100: move the slider."
    return None


def _reader_of(studio: Studio, media: Media, name: str) -> str:
    """The model to ask: another one of the studio's if this one does not read clips and that one does."""
    if media.clip is None or studio.load(name).reads_clips:
        return name
    return next((other for other in studio.names if other != name and studio.load(other).reads_clips), name)


def _time_slider(steps: int, **options: Any) -> gr.Slider:
    """Shown for clips."""
    return gr.Slider(maximum=max(1, steps - 1), visible=steps > 1, **options)


def _hidden(slots: Sequence[gr.HTML]) -> dict[Any, Any]:
    return {slot: gr.HTML(visible=False) for slot in slots}
