"""The page: a picture or a clip, a question, methods and a budget on the left; answers side by side on the right."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

import vtc
from vtc.demos import cards
from vtc.demos.draw import drawn, plain
from vtc.demos.media import CLIPS, PICTURES, Media, load_media
from vtc.demos.studio import Run, Studio

MOST_METHODS = 5
MOST_LETTERS = 500
FIRST_METHODS = ("vtc-cls", "visionzip", "pyramiddrop")
_STAGES = {"input": "Before the language model", "layer": "Inside it", "cache": "In its KV cache"}
_DATA = Path(vtc.__file__).parent / "eval" / "data"
_ASKED = {  # of eval/data/tiny/pictures
    "0001": "Is the yellow star above or below the cone?",
    "0003": "What word is printed?",
    "0006": "What shape is red?",
    "0008": "How many smileys are in the picture?",
    "0004": "Where is the white square?",
    "0012": "What number is printed?",
    "0005": "Describe the picture.",
}
_PAUSE = 0.06  # s between two looks at a growing answer
_CLICKS = """element.addEventListener('click', event => {
    const button = event.target.closest('button[data-index]');
    if (button) trigger('click', {index: Number(button.dataset.index)});
})"""


@dataclass(frozen=True, eq=False)
class View:
    """What a visitor is looking at."""

    media: Media
    model: str
    runs: list[Run]


def shipped_examples(clips: bool) -> list[tuple[Media, str]]:
    """Pictures that come with the package, and clips if the model reads them, each with a question."""
    found = [(load_media(_DATA / "tiny" / "pictures" / f"{name}.webp"), asked) for name, asked in _ASKED.items()]
    films = sorted(path for path in _DATA.glob("*/*/*") if path.suffix in CLIPS)[:3] if clips else []
    return found + [(load_media(path), "What moves?") for path in films]


def build(studio: Studio) -> gr.Blocks:
    """The page for a studio whose first model is loaded already."""
    first = studio.names[0]
    items = shipped_examples(studio.load(first).reads_clips)
    with gr.Blocks(title="vtc: visual-token compression", analytics_enabled=False, delete_cache=(600, 3600)) as page:
        media, view, go = gr.State(items[0][0]), gr.State(None), gr.State(0)
        gr.HTML(
            "<header class='top'><h1>vtc</h1><p>What does a vision-language model still know of a picture "
            "when most of its visual tokens are gone?</p></header>"
        )
        with gr.Row(elem_classes="page"):
            with gr.Column(elem_classes="controls", min_width=280):
                shown = gr.HTML(cards.preview(items[0][0]))
                strip = gr.HTML(cards.examples(items, 0), js_on_load=_CLICKS)
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
                        _choices(stage, "image"),
                        value=[name for name in FIRST_METHODS if name in _choices(stage, "image")],
                        label=label,
                        elem_classes="chips",
                    )
                    for stage, label in _STAGES.items()
                ]
            with gr.Column(elem_classes="results", min_width=320):
                note = gr.HTML(elem_classes="notes")
                with gr.Tabs():
                    with gr.Tab("Side by side"):
                        with gr.Row(elem_classes="sliders"):
                            layer = gr.Slider(
                                0, 1, value=1, step=1, label="Decoder layer", buttons=[], visible=False
                            )
                            step = gr.Slider(0, 1, value=0, step=1, label="Time step", buttons=[], visible=False)
                        with gr.Row(elem_classes="cards"):
                            slots = [gr.HTML(visible=False, padding=False) for _ in range(MOST_METHODS + 1)]
                        gr.HTML(
                            "<p class='legend'><i class='kept'></i>kept <i class='gone'></i>dropped "
                            "<i class='merged'></i>merged: patches of one colour share one token</p>"
                        )
                    with gr.Tab("Numbers"):
                        numbers = gr.HTML(cards.table([]))
                    with gr.Tab("Methods"):
                        gr.HTML(cards.method_list())

        counter = itertools.count(1)

        def take(chosen: Media, index: int | None) -> dict[Any, Any]:
            """Show what is going to be asked about; methods that are not for its kind go."""
            changed = {
                media: chosen,
                shown: cards.preview(chosen),
                strip: cards.examples(items, index),
                note: cards.notice("", *chosen.notes),
                file: None,
            }
            for group, stage in zip(groups, _STAGES, strict=True):
                changed[group] = gr.CheckboxGroup(choices=_choices(stage, chosen.kind))
            return changed

        def pick(event: gr.EventData) -> dict[Any, Any]:
            index = min(max(int(event._data.get("index", 0)), 0), len(items) - 1)
            return take(items[index][0], index) | {question: items[index][1], go: next(counter)}

        def upload(path: str | None) -> dict[Any, Any]:
            if path is None:
                return {}
            try:
                chosen = load_media(path)
            except (ValueError, OSError, ImportError) as error:
                return {note: cards.notice("error", str(error)), file: None}
            return take(chosen, None) | {view: None, **_hidden(slots), layer: _gone(), step: _gone()}

        def ask(
            media_now: Media, name: str, text: str, at: int, when: int, percent: float, *chosen: list[str]
        ) -> Iterator[dict[Any, Any]]:
            methods = [m for group in chosen for m in group or () if m in _choices(None, media_now.kind)]
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

            def card(i: int) -> str:
                run, picture = runs[i], base_picture if i == 0 else None
                if run.report is not None:
                    picture = drawn(media_now, loaded.processor, run, min(at, run.depth), when)
                return cards.card(run, runs[0], picture, at, base_picture.size)

            start = {slot: gr.HTML(visible=i < len(runs)) for i, slot in enumerate(slots)}
            for i in range(len(runs)):
                start[slots[i]] = gr.HTML(card(i), visible=True)
            yield start | {note: cards.notice("", *media_now.notes), view: None}
            for i in range(len(runs)):
                last = 0.0
                for run in studio.answer(name, media_now, text, runs[i].method, runs[i].keep):
                    runs[i] = run
                    if run.state == "failed" and i == 0:  # then the others cannot answer, either
                        yield {note: cards.notice("error", run.text), **_hidden(slots)}
                        return
                    if i == 0 and run.report is not None:
                        depth, steps = run.depth, run.report.spans[0].grid[0]
                        at = at if 0 < at <= depth and at != 1 else depth
                        when = min(when, steps - 1)
                        yield {
                            layer: gr.Slider(maximum=depth, value=at, visible=bool(methods)),
                            step: gr.Slider(maximum=max(1, steps - 1), value=when, visible=steps > 1),
                        }
                    if run.state != "running" or time.monotonic() - last > _PAUSE:
                        yield {slots[i]: card(i)}
                        last = time.monotonic()
            yield {view: View(media_now, name, runs), numbers: cards.table(runs)}

        def look(now: View | None, at: int, when: int) -> dict[Any, Any]:
            """Draw the cards again, for another layer or time step."""
            if now is None:
                return {}
            loaded = studio.load(now.model)
            changed = {}
            for slot, run in zip(slots, now.runs, strict=False):
                if run.report is not None:
                    picture = drawn(now.media, loaded.processor, run, min(at, run.depth), when)
                    changed[slot] = cards.card(run, now.runs[0], picture, min(at, run.depth), picture.size)
            return changed

        quiet: dict[str, Any] = dict(api_visibility="private", show_progress="hidden")
        taken = [media, shown, strip, note, file, *groups]
        strip.click(pick, None, [*taken, question, go], concurrency_id="look", concurrency_limit=8, **quiet)
        file.upload(
            upload, file, [*taken, view, layer, step, *slots], concurrency_id="look", concurrency_limit=8, **quiet
        )
        gr.on(
            [page.load, button.click, question.submit, model.input, budget.input, go.change, *(g.input for g in groups)],
            ask,
            [media, model, question, layer, step, budget, *groups],
            [note, view, numbers, layer, step, *slots],
            trigger_mode="always_last",
            concurrency_id="ask",
            concurrency_limit=4,
            **quiet,
        )
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


def _choices(stage: str | None, kind: str) -> list[str]:
    """Methods of a stage (None = all) for pictures ("image") or clips ("video")."""
    return [m.name for m in vtc.methods() if kind in m.modality and stage in (None, cards.stage_of(m))]


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


def _hidden(slots: Sequence[gr.HTML]) -> dict[Any, Any]:
    return {slot: gr.HTML(visible=False) for slot in slots}


def _gone() -> Any:
    return gr.Slider(visible=False)
