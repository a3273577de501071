"""The arguments of `--model_args`, checked in full before any weights are loaded."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForImageTextToText

import vtc
from vtc.budget import read_keep
from vtc.checks import check_number
from vtc.eval.lmms import FAMILIES
from vtc.hints import did_you_mean
from vtc.methods.base.notation import read_methods
from vtc.models import tiny

_OWN = ("pretrained", "method", "keep", "device", "dtype", "batch_size", "attn_implementation", "max_frames", "fps")


@dataclass(frozen=True)
class Settings:
    """What a run is to do; `methods` is empty for the uncompressed model."""

    pretrained: str
    methods: tuple[vtc.Method, ...]
    device: str | None = None
    dtype: str | None = None
    batch_size: int = 1
    attn_implementation: str | None = None
    max_frames: int = 32  # of a video
    fps: float | None = None  # None = max_frames of every video, however long


def parse(arguments: dict[str, Any]) -> Settings:
    """Settings from what lmms-eval read off the command line.

    Args:
        arguments: `pretrained` and `method` are required. `method` is a name, several joined by "+", or "none"; `keep`
            then holds as many budgets, joined by "+". What is none of the fields of Settings is an option of the
            method, or of those of several that have it; lists are written [0.25,0.5]. From Python, where nothing splits
            it at commas, `method` may also bring its options along: "fastv(keep=0.2, layers=(2,))".
    Raises:
        ValueError, TypeError: with one sentence.
    """
    given = {name: value for name, value in arguments.items() if value is not None}
    given.pop("max_batch_size", None)  # only for batch sizes that lmms-eval finds by itself
    for name, example in (("pretrained", "a folder or a Hub id"), ("method", "such as divprune, or none")):
        if name not in given:
            raise ValueError(f"--model_args lacks {name}=...: {example}.")
    options = {name: _literal(given.pop(name)) for name in list(given) if name not in _OWN}
    method, keep = str(given.pop("method")), given.pop("keep", None)
    for name in ("batch_size", "max_frames"):
        count = given.get(name, getattr(Settings, name))
        given[name] = check_number(int(count) if str(count).isdecimal() else count, name, 1, integer=True)
    if given.get("fps") is not None:
        check_number(given["fps"], "fps", above=0, below=1000, what="a number of frames per second")
    for name in ("device", "dtype"):
        given |= {name: str(given[name])} if name in given else {}
    if "device" in given and given["device"] != "auto":
        try:
            torch.device(given["device"])
        except RuntimeError:
            raise ValueError(f"device={given['device']!r} is not a device: try cpu, cuda, cuda:0 or auto.") from None
    return Settings(methods=_methods(method, keep, options), **{**given, "pretrained": str(given["pretrained"])})


def _methods(text: str, keep: Any, options: dict[str, Any]) -> tuple[vtc.Method, ...]:
    named = [] if text.lower() == "none" else read_methods(text)
    if text.lower() == "none" and keep is not None:
        raise ValueError(f"keep={keep} is about what a method keeps, and method=none has all: leave one out.")
    budgets = [] if keep is None else str(keep).split("+")
    if budgets and len(budgets) != len(named):
        raise ValueError(
            f"keep={keep} holds {len(budgets)} budgets for {len(named)} methods: give one each, joined by '+'."
        )
    has = {name: next((info.options for info in vtc.list_methods() if info.name == name), ()) for name, _ in named}
    chosen = tuple(
        vtc.resolve(
            vtc.resolve(name, **written),
            None if budget is None else read_keep(budget),
            **{option: value for option, value in options.items() if option in has[name]},
        )
        for (name, written), budget in zip(named, budgets or [None] * len(named), strict=True)
    )
    known = [*_OWN, *(option for own in has.values() for option in own)]
    for option in options:
        if option not in known:
            hint = did_you_mean(option, known)
            raise TypeError(f"--model_args has no {option!r} with method={text}; it has {', '.join(known)}.{hint}")
    return chosen


def check_model(name: str, settings: Settings) -> str:
    """Where to load the model of `--model name` from, once its configuration alone has shown that it will work.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        ValueError, TypeError: it is of another family, or vtc refuses to wrap it; with one sentence.
    """
    source = tiny.source(settings.pretrained)
    try:
        config = AutoConfig.from_pretrained(source)
    except OSError as error:
        reason = str(error).strip().split("\n")[0]
        raise FileNotFoundError(f"pretrained={source} has no configuration to load: {reason}") from error
    if config.model_type not in FAMILIES[name]:
        right = next((other for other, types in FAMILIES.items() if config.model_type in types), None)
        remedy = f"use --model {right}" if right else f"vtc has {', '.join(FAMILIES)}"
        raise ValueError(
            f"--model {name} runs checkpoints of type {' or '.join(FAMILIES[name])}, and {settings.pretrained} is of "
            f"type {config.model_type}: {remedy}."
        )
    if settings.methods:
        with torch.device("meta"):  # the same modules without their weights
            vtc.wrap(AutoModelForImageTextToText.from_config(config), list(settings.methods))
    return source


def _literal(value: Any) -> Any:
    """lmms-eval reads numbers and booleans; lists and None are left as text."""
    try:
        read = ast.literal_eval(value) if isinstance(value, str) else value
    except (ValueError, SyntaxError):
        return value
    return tuple(read) if isinstance(read, list) else read
