"""The page: its parts, and what each event calls."""

from __future__ import annotations

from typing import Any

import gradio as gr

from vtc.demos.callbacks import Callbacks
from vtc.demos.examples import shipped_clips, shipped_pictures
from vtc.demos.layout import lay_out
from vtc.demos.studio import Studio


def build(studio: Studio) -> gr.Blocks:
    """The page for a studio whose first model is loaded already."""
    items = shipped_pictures(studio.names[0]) + shipped_clips()
    with gr.Blocks(title="vtc: visual-token compression", analytics_enabled=False, delete_cache=(600, 3600)) as page:
        parts = lay_out(items, studio.names, studio.methods, studio.load(studio.names[0]).depth)
        calls = Callbacks(studio, parts, items)
        _choosing(calls)
        _asking(page, calls)
    page.queue(max_size=32, api_open=False)
    return page


_QUIET: dict[str, Any] = dict(api_visibility="private", show_progress="hidden")
_LOOK: dict[str, Any] = _QUIET | dict(concurrency_id="look", concurrency_limit=8)
# The last of the values, replaced by how many the page has sent; no part of the page may be there yet.
_COUNTED = "(...values) => [...values.slice(0, -1), window.vtcSent = (window.vtcSent ?? 0) + 1]"
_GO = "() => window.vtc.go()"  # to the answer, if it is out of sight


def _choosing(calls: Callbacks) -> None:
    """Pictures, clips and models."""
    p = calls.parts
    taken = [p.token, p.media, p.shown, p.strip, p.file, p.model, p.settings, p.question, *p.answers]
    p.strip.click(calls.pick, p.model, [*taken, p.go], **_LOOK)
    p.file.upload(calls.upload, [p.file, p.model], taken, **_LOOK).then(None, js="() => window.vtc.next()", **_QUIET)
    p.top.select(calls.too_large, None, p.answers, **_LOOK)
    p.model.input(calls.switch, p.model, [*p.answers, p.go], **_QUIET)


def _asking(page: gr.Blocks, calls: Callbacks) -> None:
    """Questions, and looks at what was answered."""
    p = calls.parts
    triggers = [p.button.click, p.question.submit, p.settings.input, p.go.change]
    gr.on([p.button.click, p.question.submit, p.strip.click], None, js=_GO, **_QUIET)
    gr.on(triggers, calls.wish, [p.token, p.model, p.question, p.settings, p.order], None, js=_COUNTED, **_LOOK)
    asked = gr.on(
        [page.load, *triggers],
        calls.ask,
        [p.token, p.media, p.model, p.question, p.settings, p.order],
        p.answers,
        js=_COUNTED,
        trigger_mode="always_last",
        concurrency_id="ask",
        concurrency_limit=4,
        **_QUIET,
    )
    asked.then(calls.catch_up, [p.view, p.model, p.layer, p.settings], [*p.slots, p.go], **_LOOK)
    p.layer.input(calls.look, [p.view, p.layer], [*p.slots], trigger_mode="always_last", **_LOOK)
