"""The calls a user makes: wrap, unwrap, wrapped, report, select, encode, load."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from vtc.engine.per_crop import select_scoped
from vtc.engine.versions import check_versions
from vtc.engine.wrappers import look_through
from vtc.layout import single_span
from vtc.methods.base.method import Method
from vtc.methods.base.notation import split_outside
from vtc.methods.base.registry import resolve
from vtc.reports import Report
from vtc.selection import Selection
from vtc.signals import VisualTokens, given_signals

if TYPE_CHECKING:  # it imports transformers' parts, which `vtc.select` can do without
    from vtc.engine.denoising import DenoisingEngine
    from vtc.engine.encoded import Encoded
    from vtc.engine.engine import Engine
    from vtc.engine.tower_engine import TowerEngine

Model = TypeVar("Model", bound=nn.Module)
MethodLike = str | Method | Sequence[str | Method]
ATTRIBUTE = "_vtc_engine"


def wrap(
    model: Model,
    method: MethodLike,
    keep: int | float | None = None,
    *,
    processor: Any = None,
    family: str | None = None,
    **options: Any,
) -> Model:
    """Compress the visual tokens of `model` from now on, in place; nothing else about using it changes.

    Args:
        model: a ...ForConditionalGeneration of transformers of a supported family, or what PEFT, torch.compile or
            DataParallel made of one. Or a vision tower alone (transformers', timm's or open_clip's), or a model around
            one that generates no text (a whole CLIP, a classifier): its features keep their length, so that everything
            that is made of them works as before.
        method: a name ("divprune"), options with it or not ("todre(keep=0.1, mode=kcenter)"), or a Method
            (`vtc.ToDRE(keep=0.1)`); or several that act one after another, a list of these or "vtc-cls + fastv"
            (positions are renumbered if any of them asks for it).
        keep: float in (0, 1] = fraction of each image's visual tokens, int = count per image; None = the method's own.
        processor: the model's processor; needed for InternVL's videos only, which are images to the model: the words
            "Frame1: " before them make them one video. Without it each frame is an image with a budget of its own.
        family: "auto" tries a model of no listed family, with parts where most of transformers' models have them and
            its visual tokens in a square or a row; `vtc.check(model, ..., family="auto")` proves that it is right.
        options: the method's options, for example `positions="original"`.

    Returns:
        the same model. Wrapping again replaces the method. Logits and hidden states keep the prompt's length;
            `output_attentions=True` gives the attention of the shortened sequence.

    Raises:
        ValueError, TypeError: with one sentence, before anything is changed.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"expected a model to wrap, got {type(model).__name__}.")
    check_versions()
    inner, around = look_through(model)
    engine = _new_engine(inner, _resolve_all(method, keep, options), processor, around, family)
    old = _engine(model)
    if old is not None:
        old.detach()
    try:
        engine.attach()
    except BaseException:
        engine.detach()
        if old is not None:
            old.attach()
        raise
    setattr(inner, ATTRIBUTE, engine)
    return model


def unwrap(model: Model) -> Model:
    """Undo `wrap`: the model is exactly what it was. A model that is not wrapped is left alone."""
    engine = _engine(model)
    if engine is not None:
        engine.detach()
        delattr(engine.model, ATTRIBUTE)
    return model


@contextmanager
def wrapped(
    model: Model,
    method: MethodLike,
    keep: int | float | None = None,
    *,
    processor: Any = None,
    family: str | None = None,
    **options: Any,
) -> Iterator[Model]:
    """`wrap` for the length of a with block; afterwards the model is as before, wrapped or not."""
    old = _engine(model)
    wrap(model, method, keep, processor=processor, family=family, **options)
    try:
        yield model
    finally:
        unwrap(model)
        if old is not None:
            old.attach()
            setattr(old.model, ATTRIBUTE, old)


def report(model: nn.Module) -> Report:
    """What the last forward or generate of a wrapped model did; ValueError if the model is not wrapped.

    A thread that has used the model is told of its own last call, any other (one that reads from a streamer) of the
    latest of all.
    """
    engine = _engine(model)
    if engine is None:
        raise ValueError("this model is not wrapped; call vtc.wrap(model, ...) first.")
    return engine.report()


def select(
    method: str | Method,
    features: Tensor,
    grid: tuple[int, int, int] | None = None,
    keep: int | float | None = None,
    **signals: Any,
) -> Selection:
    """Run a method on bare tensors, without a model.

    Args:
        features: [N, D] visual tokens of one image or video.
        grid: (t, h, w) with t*h*w == N; needed by methods that work on the grid.
        keep: overrides the method's own.
        signals: what the method needs, by name: `cls_attention=` [N] or [L, N], `received_attention=` likewise,
            `keys=` [N, d], `text=` [T, D]; see `vtc.list_methods()`. The method's options may stand among them.
    """
    chosen = resolve(method, keep)
    options = {field.name: signals.pop(field.name) for field in fields(chosen) if field.name in signals}
    chosen = resolve(chosen, **options)
    if not isinstance(features, Tensor) or features.dim() != 2 or not features.shape[0]:
        shape = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
        raise ValueError(f"features must be a tensor [N, D] with N >= 1; got {shape}.")
    n = features.shape[0]
    sides = grid if isinstance(grid, tuple | list) and all(isinstance(s, int) and s > 0 for s in grid) else ()
    if grid is not None and (len(sides) != 3 or math.prod(sides) != n):
        raise ValueError(f"grid={grid} does not hold {n} tokens: expected (t, h, w) with t*h*w == {n}.")
    if grid is None and "grid" in chosen.requires():
        raise ValueError(f"{chosen.name} works on the grid: pass grid=(t, h, w).")
    span = single_span(n, grid)
    index = torch.arange(n, device=features.device)
    read = given_signals(signals, n, features.device, span.grid[0])
    return select_scoped(chosen, [VisualTokens(features, span, index, read)])[0].check()


def encode(model: nn.Module, methods: MethodLike, *, family: Any = None, **vision_inputs: Any) -> Encoded:
    """Run the vision tower once, to ask many questions and compare many methods afterwards.

    Args:
        model: a supported model, wrapped or not.
        methods: every method that will be wrapped when the result is used; their signals are computed along.
        family: as for `wrap`.
        vision_inputs: `pixel_values=` and what else the processor returned for the images (`image_sizes=`,
            `image_grid_thw=`); for InternVL also `input_ids=`, which tell how many tiles each image has. Or, for
            videos, `pixel_values_videos=`, `video_grid_thw=`, `second_per_grid_ts=`.

    Returns:
        Encoded; `model.generate(input_ids=..., attention_mask=..., **encoded.take([0, 0, 1]))` asks two questions
            about the first image and one about the second.
    """
    from vtc.engine.encoding import encode_with

    return encode_with(look_through(model)[0], _resolve_all(methods, None, {}), vision_inputs, family)


def load(
    name_or_path: str | Path = "tiny-llava",
    device: str | None = None,
    dtype: str | None = None,
    attn_implementation: str | None = None,
) -> tuple[Any, Any]:
    """Load a model and its processor: a shipped name, a local folder, or a Hugging Face Hub id.

    Of a bare classifier ("tiny-vit", or a folder that timm wrote) the second is what prepares pictures for it.

    Args:
        name_or_path: "tiny-llava", "tiny-next", "tiny-qwen" or "tiny-vit", which ship; a folder; or a Hub id
            ("owner/name").
        device: "cpu", "cuda", "auto" (spread over devices by accelerate) ...; default CUDA if there is one.
        dtype: "float32", "bfloat16", "float16"; default float32 on CPU, the checkpoint's own elsewhere.
        attn_implementation: "sdpa", "eager", "flash_attention_2" ...; default what transformers chooses.

    Raises:
        FileNotFoundError, ValueError: with one sentence, also for a checkpoint in the format of its own repository
            ("use its conversion, whose name ends in -hf"). What an old processor leaves out is filled in from the
            model's configuration, with a warning.
    """
    from vtc.models.tiny import find, is_classifier, names

    place = find(name_or_path)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if dtype is not None and not isinstance(getattr(torch, dtype, None), torch.dtype):
        raise ValueError(f"dtype={dtype!r} is not a torch dtype; use float32, bfloat16 or float16.")
    chosen: Any = getattr(torch, dtype) if dtype else (torch.float32 if device == "cpu" else "auto")
    if is_classifier(Path(place).expanduser()):
        from vtc.models import classifier

        return classifier.load(
            place, "cpu" if device == "auto" else device, torch.float32 if chosen == "auto" else chosen
        )
    from transformers import AutoProcessor

    from vtc.models import checkpoint

    try:
        checkpoint.check_format(place)
        kind = checkpoint.class_for(place)
        processor = AutoProcessor.from_pretrained(place)
        more: dict[str, Any] = {"device_map": "auto"} if device == "auto" else {}
        if attn_implementation:
            more["attn_implementation"] = attn_implementation
        model: Any = kind.from_pretrained(place, dtype=chosen, **more)
    except OSError as error:
        reason = str(error).strip().split("\n")[0].removesuffix(".")
        if isinstance(error.__context__, json.JSONDecodeError):
            reason = f"{reason} ({error.__context__})"
        raise FileNotFoundError(f"cannot load {place!r}: {reason}. Shipped models: {', '.join(names())}.") from error
    for said in checkpoint.complete(processor, model.config):
        warnings.warn(f"the processor of {place!r} {said}", stacklevel=2)
    return (model if device == "auto" else model.to(device)).eval(), processor


def _resolve_all(method: MethodLike, keep: int | float | None, options: dict[str, Any]) -> tuple[Method, ...]:
    given = method if isinstance(method, list | tuple) else [method]
    methods = [part for one in given for part in (split_outside(one, "+") if isinstance(one, str) else [one])]
    if not methods:
        raise ValueError("the list of methods is empty; name at least one.")
    if len(methods) > 1 and (keep is not None or options):
        raise TypeError("with several methods, give keep and options to each: [vtc.VTCCLS(keep=192), ...].")
    return tuple(resolve(m, keep, **options) for m in methods)  # type: ignore[arg-type]


def _new_engine(
    model: nn.Module,
    methods: tuple[Method, ...],
    processor: Any,
    around: tuple[nn.Module, ...],
    family: str | None,
) -> Engine | TowerEngine | DenoisingEngine:
    from vtc.methods.late_step import DENOISING
    from vtc.models.registry import adapter_for, is_alone

    if is_alone(model):
        from vtc.engine.tower_engine import TowerEngine

        return TowerEngine(model, methods)
    if getattr(getattr(model, "config", None), "model_type", None) in DENOISING:
        from vtc.engine.denoising import DenoisingEngine

        return DenoisingEngine(model, methods)
    from vtc.engine.engine import Engine
    from vtc.engine.memory import MemoryEngine

    kind = MemoryEngine if adapter_for(model, family).placement == "memory" else Engine
    return kind(model, methods, processor, around, family)


def _engine(model: nn.Module) -> Engine | TowerEngine | DenoisingEngine | None:
    return look_through(model)[0].__dict__.get(ATTRIBUTE)
