"""From the requests of lmms-eval to what a processor takes: one row of text, pictures and clips each."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

import vtc
from vtc.media.prompts import picture_inputs, placeholder

_PICTURES = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tiff", ".webp"}


@dataclass
class Row:
    """One prompt in the model's own chat format, with a placeholder for each of its pictures and clips."""

    text: str = ""
    pictures: list[Image.Image] = field(default_factory=list)
    clips: list[vtc.Clip] = field(default_factory=list)


def user_turn(text: str, visuals: Sequence[Any] | None) -> list[dict[str, Any]]:
    """The conversation of a simple request: its visuals, then its text."""
    return [{"role": "user", "content": [*(_part(v) for v in visuals or ()), {"type": "text", "text": text}]}]


def _part(visual: Any) -> dict[str, Any]:
    path = visual.get("path", "") if isinstance(visual, dict) else visual
    still = Path(path).suffix.lower() in _PICTURES if isinstance(path, str | Path) else isinstance(path, Image.Image)
    kind = visual.get("type") if isinstance(visual, dict) else None
    return {"type": kind or ("image" if still else "video"), "url": visual}


def read(messages: Sequence[dict[str, Any]], processor: Any, load_clip: Callable[..., vtc.Clip]) -> Row:
    """Load what the messages of a conversation name and write them out as a prompt.

    Where their text has as many placeholders ("<image>") as pictures, these go there, if the model's chat format puts
    pictures between words; else placeholders are left out.

    Args:
        messages: {"role", "content"}; content is a text or parts {"type": "text" | "image" | "video", ...}.
        load_clip: (path, start, end) -> Clip.
    Raises:
        OSError, ValueError: a picture or a video cannot be read.
        NotImplementedError: the model cannot take what is there: sound, videos for a model without a reader, ...
        RuntimeError: the model's chat format has no room for every picture and video.
    """
    row, turns = Row(), []
    for message in messages:
        content = message["content"]
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else list(content)
        turns.append({"role": message["role"], "content": _interleave(parts, processor)})
    for part in (part for turn in turns for part in turn["content"]):
        if part["type"] == "image":
            row.pictures.append(_picture(part["url"]))
        elif part["type"] == "video":
            if getattr(processor, "video_processor", None) is None:
                name = type(processor).__name__
                raise NotImplementedError(f"this model does not read videos ({name}): give it tasks with pictures.")
            row.clips.append(_clip(part, load_clip))
        elif part["type"] != "text":
            raise NotImplementedError(f"vtc compresses visual tokens: requests with {part['type']} are not supported.")
    bare = [[{k: p[k] for k in ("type", "text") if k in p} for p in turn["content"]] for turn in turns]
    row.text = _prompt([{**turn, "content": parts} for turn, parts in zip(turns, bare, strict=True)], processor)
    for token, things, name in (
        (placeholder(processor), row.pictures, "pictures"),
        (getattr(processor, "video_token", None), row.clips, "videos"),
    ):
        if token and row.text.count(token) != len(things):
            raise RuntimeError(f"the prompt has room for {row.text.count(token)} {name} and {len(things)} were given.")
    return row


def _interleave(parts: list[dict[str, Any]], processor: Any) -> list[dict[str, Any]]:
    """The parts of a message, with its pictures at the placeholders of its text if there is one for each."""
    tokens = {"<image>", "<video>", placeholder(processor), getattr(processor, "video_token", None)} - {None, ""}
    pattern = "|".join(map(re.escape, sorted(tokens, key=len, reverse=True)))
    visuals = [part for part in parts if part["type"] != "text"]
    texts = [part["text"] for part in parts if part["type"] == "text"]
    if len(re.findall(pattern, "\0".join(texts))) != len(visuals):
        return [{**p, "text": re.sub(pattern, "", p["text"])} if p["type"] == "text" else p for p in parts]
    if not visuals:
        return parts
    queue, placed = iter(visuals), []
    for text in texts:
        pieces = re.split(pattern, text)
        for number, piece in enumerate(pieces):
            placed += [{"type": "text", "text": piece}] if piece else []
            placed += [next(queue)] if number < len(pieces) - 1 else []
    return placed


def _prompt(turns: list[dict[str, Any]], processor: Any) -> str:
    if getattr(processor, "chat_template", None):
        return processor.apply_chat_template(turns, add_generation_prompt=True)
    tokens = {"image": f"{placeholder(processor)}\n", "video": f"{getattr(processor, 'video_token', '')}\n"}
    spoken = ["".join(tokens.get(p["type"]) or p["text"] for p in turn["content"]) for turn in turns]
    return " ".join(f"{t['role'].upper()}: {s}" for t, s in zip(turns, spoken, strict=True)) + " ASSISTANT:"


def _picture(source: Any) -> Image.Image:
    source = source.get("path") or source.get("url") if isinstance(source, dict) else source
    if not isinstance(source, str | Path | Image.Image):
        raise NotImplementedError(f"a picture comes as {type(source).__name__}: expected a PIL picture or a path.")
    return vtc.load_picture(source)


def _clip(part: dict[str, Any], load_clip: Callable[..., vtc.Clip]) -> vtc.Clip:
    source, start, end = part["url"], part.get("start_time"), part.get("end_time")
    if isinstance(source, dict):
        start, end = source.get("video_start", start), source.get("video_end", end)
        source = source.get("path") or source.get("url") or source.get("video")
    if not isinstance(source, str | Path):
        raise NotImplementedError(f"a video comes as {type(source).__name__}: expected the path of a file.")
    return load_clip(source, start or 0.0, end)


def sample_clip(path: str | Path, start: float, end: float | None, frames: int, fps: float | None) -> vtc.Clip:
    """`fps` frames per second of a video, but at most `frames`, then evenly spaced; without `fps` always `frames`."""
    if fps is not None:
        length = vtc.load_clip(path, 1, None, start, end).duration
        if (min(length, end or length) - start) * fps <= frames - 1:
            return vtc.load_clip(path, None, fps, start, end)
    return vtc.load_clip(path, frames, None, start, end)


def batch(rows: Sequence[Row], processor: Any) -> Any:
    """Inputs of a model for rows whose clips are equally long, padded on the left: input_ids [B, S] and so on."""
    given = picture_inputs(processor, [row.pictures for row in rows])
    if clips := [clip for row in rows for clip in row.clips]:
        given |= vtc.clip_inputs(processor, clips)
    texts = [row.text for row in rows]
    return processor(text=texts, **given, padding=True, padding_side="left", return_tensors="pt")
