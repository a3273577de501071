"""The parts of the page and where they stand: asking on the left, answers on the right, or below it on a phone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from vtc.demos import cards, settings
from vtc.demos.media import CLIPS, MAX_BYTES, PICTURES, Media
from vtc.demos.serve import MOST_METHODS
from vtc.demos.words import MOST_LETTERS

_PICKED = """element.addEventListener('click', event => {
    const button = event.target.closest('button[data-index]');
    if (button) trigger('click', {index: Number(button.dataset.index)});
})"""
_LEGEND = (
    "<p class='legend'><span><i class='kept'></i>kept</span> <span><i class='gone'></i>dropped</span> "
    "<span><i class='merged'></i>merged: a colour, one token</span></p>"
)
_LAYER = (
    "<div class='bar-of'><label for='layer'>Decoder layer</label>"
    "<input type='range' id='layer' min='0' max='1'><output for='layer'></output></div>"
)
_FILM = (
    "<div class='bar-of film-bar'><button type='button' class='play'>Pause</button>"
    "<input type='range' min='0' max='1' value='0' aria-label='Time step'><output></output></div>"
)


@dataclass(frozen=True, eq=False)
class Parts:
    """What callbacks read and write.

    Attributes:
        token: what the question is about, as the page remembers it: "example:3", or the key of an upload.
        media: the upload itself, on the server. view: what the cards show. go: a new number asks.
        order: number of a question or a wish; the page counts them as it sends them.
        settings: % to keep and methods, as JSON. layer: which one the cards show, and of how many, as "3/4".
        slots: the cards.
    """

    token: gr.Textbox
    media: gr.State
    view: gr.State
    go: gr.State
    order: gr.Number
    top: gr.HTML
    shown: gr.HTML
    strip: gr.HTML
    file: gr.File
    model: gr.Dropdown
    question: gr.Textbox
    button: gr.Button
    settings: gr.HTML
    note: gr.HTML
    verdict: gr.HTML
    layer: gr.HTML
    film: gr.HTML
    slots: tuple[gr.HTML, ...]
    legend: gr.HTML
    numbers: gr.HTML

    @property
    def answers(self) -> list[Any]:
        """All that an answer may change."""
        return [self.note, self.verdict, self.layer, self.film, *self.slots, self.legend, self.numbers, self.view]


def lay_out(items: list[tuple[Media, str]], models: list[str], own: tuple[str, ...], depth: int) -> Parts:
    """The page, inside of an open `gr.Blocks`.

    Args:
        items: examples, each with a question; the page opens with the first.
        own: methods asked for at start. depth: decoder layers of the first model.
    """
    held: dict[str, Any] = {
        "token": gr.Textbox("example:0", visible=False),
        "media": gr.State(None),
        "view": gr.State(None),
        "go": gr.State(0),
        "order": gr.Number(0, precision=0, visible=False),
    }
    held["top"] = html(
        f"<header class='top' data-most='{MAX_BYTES}'><h1>vtc</h1><p>What does a model still know of a picture when "
        "most of its visual tokens are gone?</p></header>",
        js_on_load=_script("page"),
    )
    with gr.Row(elem_classes="page"):
        with gr.Column(elem_classes="controls", min_width=280):
            asking = _asking(items, models, own)
        with gr.Column(elem_classes="results", min_width=320, elem_id="results"):
            answering = _answering(depth)
    return Parts(**held, **asking, **answering)


def html(value: str = "", **options: Any) -> gr.HTML:
    """Markup without gradio's own styles."""
    return gr.HTML(value, apply_default_css=False, **options)


def _script(name: str) -> str:
    return Path(__file__).with_name(f"{name}.js").read_text(encoding="utf-8")


def _asking(items: list[tuple[Media, str]], models: list[str], own: tuple[str, ...]) -> dict[str, Any]:
    parts: dict[str, Any] = {
        "shown": html(cards.preview(items[0][0])),
        "strip": html(cards.examples(items, 0), js_on_load=_PICKED),
    }
    with gr.Row(elem_classes="sources"):
        parts["file"] = gr.File(
            label="Upload a picture or a clip", file_types=[*PICTURES, *CLIPS], height=44, elem_classes="drop"
        )
        parts["model"] = gr.Dropdown(
            models, value=models[0], label="Model", visible=len(models) > 1, elem_classes="model", min_width=120
        )
    with gr.Row(elem_classes="ask"):
        parts["question"] = gr.Textbox(
            items[0][1], label="Question", max_length=MOST_LETTERS, max_lines=3, scale=4, elem_id="question"
        )
        parts["button"] = gr.Button("Ask", variant="primary", scale=1, min_width=72)
    chosen = own or settings.FIRST_METHODS
    parts["settings"] = html(
        settings.write_settings(settings.FIRST_STEP, chosen),
        html_template="${markup}",
        markup=settings.markup(own, chosen),
        kind="image",
        js_on_load=_script("settings"),
        elem_classes="settings",
    )
    return parts


def _answering(depth: int) -> dict[str, Any]:
    parts: dict[str, Any] = {
        "note": html(elem_classes="notes"),
        "verdict": html(elem_id="verdict", html_template='<div role="status">${value}</div>'),
    }
    with gr.Tabs():
        with gr.Tab("Side by side"):
            with gr.Row(elem_classes="bars"):
                parts["layer"] = html(
                    f"{depth}/{depth}", html_template=_LAYER, js_on_load=_script("layer"), visible=False
                )
                parts["film"] = html(_FILM, visible=False)
            with gr.Row(elem_classes="cards"):
                parts["slots"] = tuple(html(visible=False) for _ in range(MOST_METHODS + 1))
            parts["legend"] = html(_LEGEND, visible=False)
        with gr.Tab("Numbers"):
            parts["numbers"] = html(cards.table([]))
        with gr.Tab("Methods"):
            html(cards.method_list())
    return parts
