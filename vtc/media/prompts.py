"""Turning a question and its pictures into what a processor wants, the same way for every family."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from vtc.media.video import Clip


def check_question(question: str, *placeholders: str) -> None:
    """Raise ValueError with one sentence if it is empty, or holds one of a model's placeholders or "<image>"."""
    if not question.strip():
        raise ValueError("the question is empty: ask something")
    for placeholder in {*placeholders, "<image>"} - {""}:
        if placeholder in question:
            raise ValueError(
                f"the question contains the placeholder {placeholder!r}, which is put in for you: leave it out"
            )


def placeholder(processor) -> str:
    """What stands for a picture in a prompt that a processor has not seen yet; mostly the token of one of its parts.
    "" where the chat template writes out all of them, so that the processor knows none."""
    return getattr(processor, "image_placeholder_token", None) or getattr(processor, "image_token", None) or ""


def visual_ids(processor) -> list[int]:
    """Ids of what stands for one visual token in `input_ids`, of pictures and of videos; where a processor names none,
    what its chat template writes most often for a picture."""
    names = [_written(processor), getattr(processor, "video_token", None)]
    if any(names):
        ids = processor.tokenizer.convert_tokens_to_ids([name for name in names if name])
        unknown = getattr(processor.tokenizer, "unk_token_id", None)  # of videos that become numbered pictures
        return [token for token in ids if token != unknown]
    shown, plain = (Counter(processor.tokenizer(prompt(processor, "?", n))["input_ids"]) for n in (1, 0))
    return [token for token, _ in (shown - plain).most_common(1)]


def _written(processor) -> str | None:
    """What a processor writes for one visual token of a picture, which Aya Vision's, Gemma 3's, Molmo 2's and Ovis 2's
    write instead of what stands for the picture in a prompt."""
    if said := {"Ovis2Processor": "<IMG_ATOM>", "Molmo2Processor": "<im_patch>"}.get(type(processor).__name__):
        return said
    named = getattr(processor, "img_patch_token", None) or getattr(processor.tokenizer, "image_token", None)
    return named or getattr(processor, "image_token", None)


def picture_inputs(processor, rows: Sequence[Sequence[Image.Image]]) -> dict[str, Any]:
    """What a processor takes of the pictures of each prompt: `images`, nested, as some treat one otherwise than
    several; of GOT-OCR's in a row, as a list in a list is a document of several pages to it."""
    if not any(rows):
        return {}
    if hasattr(processor, "multi_page"):
        return {"images": [picture for row in rows for picture in row]}
    # these, and Idefics', count the pictures of each prompt, also of one without
    each = hasattr(processor, "fake_image_token") or type(processor).__name__.startswith(("Gemma", "Lfm2Vl"))
    return {"images": [list(row) for row in rows if row or each]}


def as_named(given: Mapping[str, Any]) -> dict[str, Any]:
    """What a processor returned, under the names of today; Video-LLaVA's has an old one for pictures."""
    return {"pixel_values" if name == "pixel_values_images" else name: value for name, value in given.items()}


def prompt(processor, question: str, pictures: int = 1, videos: int = 0) -> str:
    """One user turn with `pictures` pictures and `videos` videos before the question, in the model's own chat format.

    Raises:
        ValueError: the question is empty or holds an image placeholder of its own, or the processor's chat template
            does not make room for every picture and video, or the model reads no videos.
    """
    token, film = placeholder(processor), getattr(processor, "video_token", None) or ""
    if videos and (not film or getattr(processor, "video_processor", None) is None):
        raise ValueError(f"this model does not read videos ({type(processor).__name__}): give it pictures")
    check_question(question, token, film)
    if getattr(processor, "chat_template", None):
        content = [{"type": "image"}] * pictures + [{"type": "video"}] * videos + [{"type": "text", "text": question}]
        text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    elif not token and pictures:
        raise ValueError(f"{type(processor).__name__} names no placeholder of a picture, and has no chat template")
    else:
        text = "USER: " + f"{token}\n" * pictures + f"{film}\n" * videos + f"{question} ASSISTANT:"
    if token and text.count(token) != pictures:
        raise ValueError(f"the prompt has room for {text.count(token)} pictures and {pictures} were given")
    if videos and text.count(film) != videos:
        raise ValueError(f"the prompt has room for {text.count(film)} videos and {videos} were given")
    return text


def prepare(
    processor, question: str, pictures: Sequence[Image.Image] = (), clips: Sequence[Clip] = (), **options: Any
) -> Any:
    """What a model's `generate` takes to answer one question about some pictures and clips, in a batch of one.

    Args:
        options: more for the processor, such as those of `vtc.downsample`.
    Raises:
        ValueError: whatever `prompt` refuses.
    """
    text = prompt(processor, question, len(pictures), len(clips))
    given = picture_inputs(processor, [pictures])
    if clips:
        given |= clip_inputs(processor, clips)
    return processor(text=[text], **given, **options, return_tensors="pt")


def clip_inputs(processor, clips: Sequence[Clip]) -> dict[str, Any]:
    """What a processor takes of clips: `videos`, `video_metadata`, and not to sample frames, which has been done.

    A clip of fewer frames than make one temporal patch repeats its last one: not every processor does that itself.
    """
    least = getattr(processor.video_processor, "temporal_patch_size", None) or 1
    videos, metadata = [], []
    for clip in clips:
        more = max(0, least - len(clip))
        told = clip.metadata()
        videos.append(np.concatenate([clip.frames, *[clip.frames[-1:]] * more]) if more else clip.frames)
        metadata.append(told | {"frames_indices": [*told["frames_indices"], *told["frames_indices"][-1:] * more]})
    return {"videos": videos, "video_metadata": metadata, "do_sample_frames": False}


def seen(picture: Image.Image, processor) -> Image.Image:
    """The part of a picture that reaches the model: LLaVA-1.5 processors pad it to a square or crop its middle.

    Any-resolution processors take the whole picture, whatever crop settings they carry.
    """
    images = processor.image_processor
    width, height = picture.size
    if hasattr(images, "image_grid_pinpoints") or hasattr(images, "min_pixels"):
        return picture
    if getattr(images, "do_pad", False) and type(images).__name__.startswith("LlavaImage"):
        side = max(width, height)
        square = Image.new("RGB", (side, side), tuple(round(255 * mean) for mean in images.image_mean))
        square.paste(picture, ((side - width) // 2, (side - height) // 2))
        return square
    if not getattr(images, "do_center_crop", False) or not images.size.get("shortest_edge"):
        return picture
    scale = images.size["shortest_edge"] / min(width, height)
    crop_width, crop_height = (images.crop_size[side] / scale for side in ("width", "height"))
    left, top = (width - crop_width) / 2, (height - crop_height) / 2
    right, bottom = round(left + crop_width), round(top + crop_height)
    left, top = round(left), round(top)  # of a side of one pixel both halves may round to the same one
    return picture.crop((left, top, max(left + 1, right), max(top + 1, bottom)))
