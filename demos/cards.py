"""The HTML of the page's own parts: examples, cards, the table of numbers, the list of methods, notices."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from html import escape

from PIL import Image

import vtc
from vtc.demos.draw import held_by_step, thumbnail, uri
from vtc.demos.media import Media
from vtc.demos.sentences import presentable
from vtc.demos.studio import Run
from vtc.demos.words import WHERE, info_of, same_answer, stage_of


def card(
    run: Run,
    base: Run | None,
    picture: Image.Image | None,
    shape: tuple[int, int],
    layer: int,
    seconds: Sequence[float] = (),
    code: str = "",
    save_as: str = "",
) -> str:
    """One answer, its picture and its numbers.

    Args:
        base: the answer with all visual tokens, once there is one.
        picture: None while there is none: its place, of size `shape`, stays free. Of a clip, all time steps in a row.
        layer: what the picture shows, as for `draw.drawn`. seconds: of a clip's time steps.
        code: a program that gives this answer. save_as: a name for the picture's file.
    """
    info = info_of(run.method)
    where = WHERE[stage_of(info)] if info else "uncompressed"
    if run.state == "failed":
        body = f'<p class="failed" role="alert">{escape(run.text)}</p>'
    else:
        body = _answer(run, base) + _figure(run, picture, shape, layer, seconds) + _numbers(run)
        body += _actions(code, save_as) if run.report is not None and code else ""
    kind = "card base" if info is None else "card"
    return (
        f'<article class="{kind}" data-method="{escape(run.method or "full")}" data-state="{run.state}" '
        f'aria-busy="{str(run.busy).lower()}">'
        f"<header><h2>{escape(run.method or 'All tokens')}</h2><span>{where}</span></header>{body}</article>"
    )


def _figure(run: Run, picture: Image.Image | None, shape: tuple[int, int], layer: int, seconds: Sequence[float]) -> str:
    steps = max(1, len(seconds))
    ratio = f"aspect-ratio:{shape[0] // steps}/{shape[1]}"
    if picture is None:
        return f'<figure><div class="blank" style="{ratio}"></div><figcaption>&nbsp;</figcaption></figure>'
    text, counts = "as the model sees it", ""
    if run.report is not None:
        held = run.tokens(layer - 1) if layer else sum(span.source.numel() for span in run.report.spans)
        place = f"layer {layer} of {run.depth}" if layer else "from the vision tower"
        text = f"{place}: {held} of {run.report.tokens_in}{'' if seconds else ' tokens'}"
        if seconds:
            each = run.report.tokens_in // steps
            news = [
                f"{second:.1f} s: {count} of {each} tokens"
                for second, count in zip(seconds, held_by_step(run, layer), strict=True)
            ]
            counts = f' data-steps="{escape(json.dumps(news))}"'
    name = run.method or "all visual tokens"
    image = f'<img src="{uri(picture)}" decoding="sync" alt="{escape(name)}, {escape(text)}">'
    shown = f'<span class="film" style="{ratio};--n:{steps}"{counts}>{image}</span>'
    if run.method:  # a tap shows the original in its place
        shown = (
            f'<button type="button" class="flip" aria-pressed="false">{shown}'
            '<span class="badge"><span class="hidden">Press for the </span>original</span></button>'
        )
    return f'<figure>{shown}<figcaption><span class="when"></span><span>{escape(text)}</span></figcaption></figure>'


def _actions(code: str, save_as: str) -> str:
    return (
        f'<div class="actions"><button type="button" class="copy" data-code="{escape(code)}">Copy this as code</button>'
        f'<button type="button" class="save" data-name="{escape(save_as)}">Save picture</button></div>'
    )


def _answer(run: Run, base: Run | None) -> str:
    if run.state == "waiting":
        return '<p class="answer waiting">waiting for its turn…</p>'
    mark = ""
    if run.report is not None and run.method and base is not None and base.report is not None:
        same = same_answer(run, base)
        mark = '<span class="same">same answer</span>' if same else '<span class="other">another answer</span>'
    caret = '<i class="caret"></i>' if run.state == "running" else ""
    size = "answer long" if len(run.text) > 48 else "answer"
    return f'<p class="{size}"><q>{escape(run.text)}</q>{caret}{mark}</p>'


def _numbers(run: Run) -> str:
    rows = [(name, *_figures(value, share)) for name, value, share in measures(run)]
    return "<dl>" + "".join(f"<div><dt>{name}</dt>{cell}{bar}</div>" for name, cell, bar in rows) + "</dl>"


def _figures(value: str, share: float | None) -> tuple[str, str]:
    width = 0 if share is None else max(1.0, min(100.0, 100 * share))
    return f"<dd>{value}</dd>", f'<i class="bar" aria-hidden="true"><b style="width:{width:.1f}%"></b></i>'


def measures(run: Run) -> list[tuple[str, str, float | None]]:
    """(name, value, share of the uncompressed model's) of everything that is measured; "–" while it is not known."""
    names = ("Visual tokens", "First token", "Prefill FLOPs", "KV cache")
    if run.report is None:
        return [(name, "–", None) for name in names]
    report = run.report
    total, left = report.tokens_in, run.tokens(run.depth - 1)
    tokens = f"{total} → {left}" if run.method else f"{total}"
    first = "…" if run.seconds is None else f"{1000 * run.seconds:.0f} ms"
    if run.whole_seconds:  # of the same rounds: another card's were measured at another moment
        first = f"{1000 * run.whole_seconds:.0f} → {first}"
    if run.speed:
        first += f" <small>{run.speed}</small>"
    ratio = 1 / run.speed.ratio if run.speed else 1.0 if run.seconds and not run.method else None
    values: list[tuple[str, float | None]] = [(tokens, left / max(1, total)), (first, ratio)]
    for (full, kept), unit in ((report.flops, ""), (report.kv_bytes, "B")):
        less = kept / max(1, full)
        values.append((f"{_si(kept)}{unit}{_times(less, 'less', 'more') if run.method else ''}", less))
    return [(name, value, share) for name, (value, share) in zip(names, values, strict=True)]


def _times(share: float, better: str, worse: str) -> str:
    if 0.95 < share < 1.05 or share <= 0:
        return " <small>the same</small>"
    return f" <small>{1 / share:.1f}× {better}</small>" if share < 1 else f" <small>{share:.1f}× {worse}</small>"


def _si(value: float) -> str:
    for unit, scale in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= scale:
            return f"{value / scale:.3g} {unit}"
    return f"{value:.0f} "


def table(runs: Sequence[Run]) -> str:
    """All numbers side by side, with means over layers and what the methods have to say."""
    done = [run for run in runs if run.report is not None]
    if not done:
        return notice("", "Ask something first: the numbers of every answer are listed here.")
    names = [name for name, _, _ in measures(done[0])]
    head = "".join(f'<th scope="col">{name}</th>' for name in ("Method", "Answer", *names, "Tokens per layer"))
    rows, notes = "", []
    for run in done:
        assert run.report is not None
        cells = "".join(f"<td>{value}</td>" for _, value, _ in measures(run))
        held = [run.tokens(layer) for layer in range(run.depth)]
        per_layer = f"{sum(held) / len(held):.0f} on average<br><small>{_shortened(held)}</small>"
        name = escape(run.method or "all visual tokens")
        rows += f'<tr><th scope="row">{name}</th><td>{escape(run.text)}</td>{cells}<td>{per_layer}</td></tr>'
        own = (run.method or "").partition("(")[0] + ":"  # which many notes begin with
        notes += [f"{name}: {escape(note.removeprefix(own).strip())}" for note in run.report.notes]
    about = (
        "Time to first token: vision tower, prefill and first token, on this machine; the median of up to six rounds "
        "after a warm-up, in which each method takes turns with all tokens. How much faster: the ratio of two medians, "
        "in brackets where it lies. FLOPs and bytes are those of the language model's prefill, by formula."
    )
    below = "".join(f"<p>{text}</p>" for text in (about, *notes))
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="Numbers"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>{below}"
    )


def _shortened(held: Sequence[int]) -> str:
    """Runs of equal numbers, once each."""
    if len(held) > 8:
        held = [n for i, n in enumerate(held) if i == 0 or n != held[i - 1]][:8]
    return " → ".join(map(str, held)) if len(set(held)) > 1 else ""


def method_list() -> str:
    """Every method, what it does and where it comes from."""
    parts = []
    for stage, where in WHERE.items():
        items = ""
        for info in vtc.list_methods():
            if stage_of(info) == stage:
                paper = f"<cite>{escape(info.paper.title)}, arXiv {info.paper.arxiv}</cite>" if info.paper else ""
                only = "" if "image" in info.modality else " Clips only."
                only += f" Models of {' and '.join(info.only)} only." if info.only else ""
                items += f"<dt>{info.name}</dt><dd>{escape(info.summary)}{only} {paper}</dd>"
        parts.append(f"<section><h2>{where[0].upper()}{where[1:]}</h2><dl>{items}</dl></section>")
    return f'<div class="methods">{"".join(parts)}</div>'


def examples(items: Sequence[tuple[Media, str]], chosen: int | None) -> str:
    """Pictures to click; each is a button."""
    buttons = ""
    for i, (media, question) in enumerate(items):
        picture = f'<img src="{thumbnail(media.still, 112)}" alt="Example {i + 1}: {escape(question)}">'
        kind = "<span>clip</span>" if media.clip is not None else ""
        pressed = str(i == chosen).lower()
        buttons += f'<button type="button" data-index="{i}" aria-pressed="{pressed}" title="{escape(question)}">'
        buttons += f"{picture}{kind}</button>"
    return f'<div class="examples">{buttons}</div>'


def preview(media: Media) -> str:
    """What is being asked about."""
    if media.clip is not None:
        frames = media.frames[:: max(1, len(media.frames) // 4)][:4]
        pictures = "".join(f'<img src="{thumbnail(Image.fromarray(frame), 160)}" alt="">' for frame in frames)
        about = f"{media.name}, {len(media.clip)} frames of {media.clip.duration:.1f} s"
        kind, shown = "preview strip", f'<div role="img" aria-label="Four frames of the chosen clip">{pictures}</div>'
    else:
        about = f"{media.name}, {media.still.width} × {media.still.height}"
        kind, shown = "preview", f'<img src="{thumbnail(media.still, 640)}" alt="The chosen picture">'
    return f'<figure class="{kind}" data-kind="{media.kind}">{shown}<figcaption>{escape(about)}</figcaption></figure>'


def headline(text: str, more: str = "") -> str:
    """The verdict, over the cards."""
    if not text:
        return ""
    said = re.sub(r"(\([\d.]+–[\d.]+\))", r"<i>\1</i>", escape(text))  # an interval stays on one line
    return f'<p class="verdict">{said}{f" <span>{escape(more)}</span>" if more else ""}</p>'


def notice(kind: str, *sentences: str) -> str:
    """Sentences to the visitor; `kind` "error" is read out at once."""
    if not sentences:
        return ""
    role = "alert" if kind == "error" else "status"
    return f'<div class="notice {kind}" role="{role}">{" ".join(map(escape, map(presentable, sentences)))}</div>'
