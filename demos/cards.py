"""The HTML of the page's own parts: examples, cards, the table of numbers, the list of methods, notices."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from PIL import Image

import vtc
from vtc.demos.draw import thumbnail, uri
from vtc.demos.media import Media
from vtc.demos.studio import Run
from vtc.methods.base.notation import read_methods

WHERE = {
    "pixels": "before the vision tower",
    "encoder": "inside the vision tower",
    "input": "before the LLM",
    "layer": "inside the LLM",
    "cache": "in the KV cache",
}


def stage_of(info: vtc.MethodInfo) -> str:
    """Where a method is listed, by a key of `WHERE`; methods of several stages stand under "layer"."""
    return "layer" if "layer" in info.stage else info.stage.split("+")[0]


def info_of(method: str | None) -> vtc.MethodInfo | None:
    """Of the method that a string names, with options or without."""
    name = None if method is None else read_methods(method)[0][0]
    return next((info for info in vtc.list_methods() if info.name == name), None)


def card(
    run: Run, base: Run | None, picture: Image.Image | None, shape: tuple[int, int], layer: int, when: str = ""
) -> str:
    """One answer, its picture and its numbers.

    Args:
        base: the answer with all visual tokens, once there is one.
        picture: None while there is none: its place, of size `shape`, stays free.
        layer: what the picture shows, as for `draw.drawn`. when: the second it is from, if it is of a clip.
    """
    title = run.method or "All tokens"
    info = info_of(run.method)
    where = WHERE[stage_of(info)] if info else "uncompressed"
    if run.state == "failed":
        body = f'<p class="failed" role="alert">{escape(run.text)}</p>'
    else:
        body = _figure(run, picture, shape, layer, when) + _answer(run, base) + _numbers(run)
    kind = "card base" if info is None else "card"
    return (
        f'<article class="{kind}" data-method="{escape(run.method or "full")}" data-state="{run.state}" '
        f'aria-busy="{str(run.state in ("waiting", "running")).lower()}">'
        f"<header><h3>{escape(title)}</h3><span>{where}</span></header>{body}</article>"
    )


def _figure(run: Run, picture: Image.Image | None, shape: tuple[int, int], layer: int, when: str) -> str:
    ratio = f"aspect-ratio:{shape[0]}/{shape[1]}"
    if picture is None:
        return f'<figure><div class="blank" style="{ratio}"></div><figcaption>&nbsp;</figcaption></figure>'
    text = f"{when}as the model sees it"
    if run.report is not None:
        total = run.report.tokens_in
        held = run.tokens(layer - 1) if layer else sum(span.source.numel() for span in run.report.spans)
        place = f"layer {layer} of {run.depth}" if layer else "from the vision tower"
        text = f"{when}{place}: {held} of {total}" + ("" if when else " tokens")
    name = run.method or "all visual tokens"
    return (
        f'<figure><img src="{uri(picture)}" style="{ratio}" decoding="sync" alt="{escape(name)}, {escape(text)}">'
        f"<figcaption>{escape(text)}</figcaption></figure>"
    )


def _answer(run: Run, base: Run | None) -> str:
    if run.state == "waiting":
        return '<p class="answer waiting">waiting for its turn…</p>'
    mark = ""
    if run.state == "done" and run.method and base is not None and base.state == "done":
        same = run.text.casefold() == base.text.casefold()
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
    done = [run for run in runs if run.state == "done"]
    if not done:
        return notice("", "Ask something first: the numbers of every answer are listed here.")
    names = [name for name, _, _ in measures(done[0])]
    head = "".join(f'<th scope="col">{name}</th>' for name in ("", "Answer", *names, "Tokens per layer"))
    rows, notes = "", []
    for run in done:
        assert run.report is not None
        cells = "".join(f"<td>{value}</td>" for _, value, _ in measures(run))
        held = [run.tokens(layer) for layer in range(run.depth)]
        per_layer = f"{sum(held) / len(held):.0f} on average<br><small>{_shortened(held)}</small>"
        name = escape(run.method or "all visual tokens")
        rows += f'<tr><th scope="row">{name}</th><td>{escape(run.text)}</td>{cells}<td>{per_layer}</td></tr>'
        notes += [f"{name}: {escape(note)}" for note in run.report.notes]
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
                items += f"<dt>{info.name}</dt><dd>{escape(info.summary)}{only} {paper}</dd>"
        parts.append(f"<section><h3>{where[0].upper()}{where[1:]}</h3><dl>{items}</dl></section>")
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
        return f'<figure class="preview strip"><div>{pictures}</div><figcaption>{escape(about)}</figcaption></figure>'
    width, height = media.still.size
    about = f"{media.name}, {width} × {height}"
    source = thumbnail(media.still, 640)
    return (
        f'<figure class="preview"><img src="{source}" alt="The chosen picture">'
        f"<figcaption>{escape(about)}</figcaption></figure>"
    )


def notice(kind: str, *sentences: str) -> str:
    """Sentences to the visitor; `kind` "error" is read out at once."""
    if not sentences:
        return ""
    role = "alert" if kind == "error" else "status"
    return f'<div class="notice {kind}" role="{role}">{" ".join(map(escape, sentences))}</div>'
