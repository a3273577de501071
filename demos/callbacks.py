"""What happens when a visitor picks, uploads, asks or looks closer. The page's state comes in, changes go out."""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import gradio as gr
from PIL import Image

from vtc.demos import cards, words
from vtc.demos.draw import drawn, plain, seconds
from vtc.demos.layout import Parts
from vtc.demos.media import MAX_BYTES, Media, load_media
from vtc.demos.settings import offered, read_settings
from vtc.demos.snippet import snippet
from vtc.demos.studio import MISTAKES, Run, Studio, sentence
from vtc.demos.wishes import Wishes

_PAUSE = 0.06  # s between two looks at a growing answer
_PATIENT = 1000  # visitors whose last wish is remembered

Changes = dict[Any, Any]


@dataclass(frozen=True, eq=False)
class View:
    """What a visitor is looking at, and what it was asked with."""

    media: Media
    model: str
    question: str
    runs: list[Run]
    layer: int
    settings: str


class Callbacks:
    """For a page of `parts` about `items`, which a studio answers."""

    def __init__(self, studio: Studio, parts: Parts, items: list[tuple[Media, str]]) -> None:
        self.studio, self.parts, self.items = studio, parts, items
        self._count = itertools.count(1)
        self._wishes = Wishes(_PATIENT)
        self._strip = functools.cache(lambda index: cards.examples(items, index))

    def pick(self, event: gr.EventData, name: str) -> Changes:
        """An example: asked about at once."""
        index = _sent(event).get("index")
        if not isinstance(index, int) or not 0 <= index < len(self.items):
            return gr.skip()
        media, question = self.items[index]
        try:
            changes = self._take(media, index, name)
        except MISTAKES as error:
            return self.refused(sentence(error))
        return changes | {self.parts.question: question, self.parts.go: next(self._count)}

    def upload(self, path: str | None, name: str) -> Changes:
        """A file: shown, and ready to be asked about."""
        if path is None:
            return gr.skip()
        try:
            media = load_media(path)
            changes = self._take(media, None, name)
        except MISTAKES as error:
            return self.refused(sentence(error)) | {self.parts.file: None}
        ask = gr.Textbox("", placeholder=f"Ask about {media.name}")
        return self._cleared() | changes | {self.parts.question: ask}

    def too_large(self, event: gr.EventData) -> Changes:
        """A file that the page did not send."""
        name, size = _sent(event).get("name"), _sent(event).get("bytes")
        large = f"{(size + 2**19) // 2**20} MB" if isinstance(size, int) and size < 2**50 else "too many bytes"
        return self.refused(f"{name} has {large}, and {MAX_BYTES // 2**20} MB is the limit: make it smaller.")

    def _take(self, media: Media, index: int | None, name: str) -> Changes:
        """Show what is going to be asked about; a model that cannot read it makes way for one that can."""
        reader = _reader_of(self.studio, media, name)
        notes = list(media.notes)
        if reader != name:
            notes.append(f"{name} does not read clips, so {reader} answers.")
        if index is None:
            notes.append(f"{media.name} is in place: ask about it.")
        p = self.parts
        return {
            p.token: media.key if index is None else f"example:{index}",
            p.media: media if index is None else None,
            p.shown: cards.preview(media),
            p.strip: self._strip(index),
            p.file: None,
            p.model: reader,
            p.settings: gr.HTML(kind=media.kind),
            p.note: cards.notice("", *notes),
        }

    def switch(self, name: str) -> Changes:
        """Ask another model."""
        try:
            depth = self.studio.load(name).depth
        except MISTAKES as error:
            return self.refused(sentence(error))
        return {self.parts.layer: f"{depth}/{depth}", self.parts.go: next(self._count)}

    def wish(self, token: str, name: str, text: str, settings: str, order: int, request: gr.Request) -> None:
        """What a visitor wants now: answers to anything else end."""
        self._wishes.put(request.session_hash, order, (token, name, text, settings))

    def ask(
        self, token: str, uploaded: Media | None, name: str, text: str, settings: str, order: int, request: gr.Request
    ) -> Iterator[Changes]:
        """Answer with all visual tokens, then by each method; then measure how long each takes."""
        mine = (request.session_hash, order, (token, name, text, settings))
        self._wishes.put(*mine)  # more may have been typed since the wish
        if self._wishes.overtaken(*mine):
            return
        try:
            media = self._media(token, uploaded)
            percent, methods = read_settings(settings, offered(media.kind, self.studio.methods))
            problem = words.problem(text, methods, percent)
            if problem:
                raise ValueError(problem)
            loaded = self.studio.load(name)
            runs = [Run(None, 1.0), *(Run(method, percent / 100) for method in methods)]
            runs = [self.studio.recall(name, media, text, run.method, run.keep) or run for run in runs]
            view = View(media, name, text, runs, loaded.depth, settings)
            yield self._begun(view)
            for i, run in self._answers(view):
                if self._wishes.overtaken(*mine):
                    return
                runs[i] = run
                if run.state == "failed" and i == 0:  # then the others cannot answer, either
                    raise ValueError(run.text)
                yield {self.parts.slots[i]: self._card(view, i), self.parts.verdict: self._verdict(view)}
            yield self._ended(view)
        except MISTAKES as error:
            yield self.refused(sentence(error))

    def _media(self, token: str, uploaded: Media | None) -> Media:
        """What a question is about. The page remembers which, the server may have forgotten."""
        kind, _, number = str(token).partition(":")
        if kind == "example" and number.isdecimal() and int(number) < len(self.items):
            return self.items[int(number)][0]
        if uploaded is None or uploaded.key != token:
            raise ValueError("The picture that you uploaded is no longer held here: upload it again.")
        return uploaded

    def _answers(self, view: View) -> Iterator[tuple[int, Run]]:
        """(number, what there is of it) of all answers, in turns: first what they say, then how long they take."""
        for timed in (False, True):
            for i in range(len(view.runs)):
                run, last = view.runs[i], 0.0
                if run.state in ("done", "failed"):
                    continue
                answer = self.studio.answer(view.model, view.media, view.question, run.method, run.keep, timed)
                for run in answer:
                    if run.state != "running" or time.monotonic() - last > _PAUSE:
                        yield i, run
                        last = time.monotonic()

    def _begun(self, view: View) -> Changes:
        p, runs = self.parts, view.runs
        inside = any(words.acts_inside(run.method) for run in runs)
        changes: Changes = {slot: gr.HTML(visible=False) for slot in p.slots[len(runs) :]}
        changes |= {p.slots[i]: gr.HTML(self._card(view, i), visible=True) for i in range(len(runs))}
        return changes | {
            p.note: cards.notice("", *view.media.notes),
            p.verdict: self._verdict(view),
            p.layer: gr.HTML(f"{view.layer}/{view.layer}", visible=inside),
            p.film: gr.HTML(visible=view.media.clip is not None),
            p.legend: gr.HTML(visible=len(runs) > 1),
            p.numbers: cards.table([]),
            p.view: None,
        }

    def _ended(self, view: View) -> Changes:
        """Everything once more: what comes between may be lost when answers come quickly."""
        p = self.parts
        changes: Changes = {p.slots[i]: self._card(view, i) for i in range(len(view.runs))}
        return changes | {p.verdict: self._verdict(view), p.numbers: cards.table(view.runs), p.view: view}

    def _verdict(self, view: View) -> str:
        return cards.headline(*words.verdict(view.runs))

    def _card(self, view: View, i: int) -> str:
        """Card of the i-th answer."""
        run, base = view.runs[i], view.runs[0]
        processor = self.studio.load(view.model).processor
        if run.report is None:
            picture = plain(view.media, processor)
            return cards.card(run, base, picture if i == 0 and view.media.clip is None else None, picture.size, 0)
        picture = _picture(view, i, processor)
        code = snippet(view.model, view.media, view.question, run)
        stem = view.media.name.rpartition(".")[0] or view.media.name
        save_as = f"{stem}-{run.method}-{100 * run.keep:g}.webp" if run.method else f"{stem}.webp"
        times = seconds(view.media, run)
        return cards.card(run, base, picture, picture.size, view.layer, times, code, save_as)

    def catch_up(self, view: View | None, name: str, layer: str, settings: str) -> Changes:
        """What moved while answers came counts, too: ask again, or only draw again."""
        if view is None:
            return gr.skip()
        if (name, settings) != (view.model, view.settings):
            return {self.parts.go: next(self._count)}
        return gr.skip() if layer.startswith(f"{view.layer}/") else self.look(view, layer)

    def look(self, view: View | None, layer: str) -> Changes:
        """Draw the cards again, for another layer."""
        at = str(layer).partition("/")[0]
        if view is None or not at.isdecimal():
            return gr.skip()
        now = replace(view, layer=min(int(at), view.runs[0].depth))
        return {self.parts.slots[i]: self._card(now, i) for i, run in enumerate(now.runs) if run.report is not None}

    def refused(self, text: str) -> Changes:
        """A sentence in place of answers."""
        return self._cleared() | {self.parts.note: cards.notice("error", text)}

    def _cleared(self) -> Changes:
        p = self.parts
        changes: Changes = {slot: gr.HTML("", visible=False) for slot in p.slots}
        changes |= {part: gr.HTML(visible=False) for part in (p.film, p.legend)}
        return changes | {
            p.note: "",
            p.verdict: "",
            p.layer: gr.HTML(visible=False),
            p.numbers: cards.table([]),
            p.view: None,
        }


def _sent(event: gr.EventData) -> dict[str, Any]:
    """What the page's own script sent with an event; nothing if it is none of the page's."""
    return event._data if isinstance(event._data, dict) else {}


def _picture(view: View, i: int, processor: Any) -> Image.Image:
    return drawn(view.media, processor, view.runs[i], min(view.layer, view.runs[i].depth))


def _reader_of(studio: Studio, media: Media, name: str) -> str:
    """The model to ask: another one of the studio's if this one does not read clips and that one does."""
    if media.clip is None or studio.load(name).reads_clips:
        return name
    return next((other for other in studio.names if other != name and studio.load(other).reads_clips), name)
