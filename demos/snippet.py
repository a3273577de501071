"""An answer of the page as a program: what "Copy this as code" copies."""

from __future__ import annotations

import json

from vtc.demos.examples import shipped_path
from vtc.demos.media import FRAMES, MAX_SIDE, Media
from vtc.demos.studio import MAX_NEW_TOKENS, Run


def snippet(model: str, media: Media, question: str, run: Run) -> str:
    """A complete program that gives the same answer.

    It reads pictures that ship where vtc is installed, and uploads from the folder it runs in, by their names.
    """
    shipped = shipped_path(media)
    file = _quoted(media.name) if shipped is None else f'Path(vtc.__file__).parent / "{shipped}"'
    lines = ["from pathlib import Path\n"] if shipped else []
    lines += ["import vtc\n", f"model, processor = vtc.load({_quoted(model)})"]
    lines += _media(media, file) if not run.resizes else _smaller(media, file, run.keep)
    options = ", **small.options" if run.resizes else ""
    shown = "small.media" if run.resizes else "clip" if media.clip else "picture"
    given = f"clips=[{shown}]" if media.clip else f"[{shown}]"
    lines += [
        f"inputs = vtc.prepare(processor, {_quoted(question.strip())}, {given}{options})",
        "inputs = inputs.to(model.device, model.dtype)\n",
    ]
    answer = [f"ids = model.generate(**inputs, max_new_tokens={MAX_NEW_TOKENS}, do_sample=False)"]
    if run.method is not None and not run.resizes:
        lines.append(f"with vtc.wrapped(model, {_quoted(run.method)}, {run.keep:g}):")
        lines += [f"    {line}" for line in (*answer, "print(vtc.report(model))")]
    else:
        lines += answer
    lines += ['answer = ids[:, inputs["input_ids"].shape[1] :]']
    lines += ["print(processor.batch_decode(answer, skip_special_tokens=True)[0].strip())"]
    return "\n".join(lines) + "\n"


def _media(media: Media, file: str) -> list[str]:
    if media.clip is not None:
        return [f"clip = vtc.load_clip({file}, frames={FRAMES})"]
    lines = [f"picture = vtc.load_picture({file})"]
    if max(media.still.size) == MAX_SIDE:
        lines.append(f"picture.thumbnail(({MAX_SIDE}, {MAX_SIDE}))  # as the demo does")
    return lines


def _smaller(media: Media, file: str, keep: float) -> list[str]:
    whole = "clip" if media.clip else "picture"
    return [*_media(media, file), f"small = vtc.downsample({whole}, processor, {keep:g})"]


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
