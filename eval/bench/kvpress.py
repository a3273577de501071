"""vtc's cache methods beside those of kvpress: one model, one process, what each keeps, and what decoding then takes.

Both compress the cache of the same prompt, all tokens of it (scope="all"). Compared is, in each layer and KV head, the
set of tokens held. A decode step is timed after that, in turn; bytes are those that the cache's tensors occupy.

kvpress (https://github.com/NVIDIA/kvpress) is not among vtc's requirements, and not one that would fit: it asks for an
older transformers, with whose newer versions its presses work all the same when their hook is handed what it reads.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

import vtc
from vtc.engine.versions import cache_of
from vtc.eval.bench.pairs import Middle
from vtc.models import adapter_for

COLUMNS = {
    "method": "method",
    "press": "kvpress",
    "keep": "keep",
    "equal": "heads equal",
    "overlap": "overlap",
    "vtc_bytes": "bytes",
    "press_bytes": "kvpress",
    "vtc_ms": "ms/token",
    "press_ms": "kvpress",
}
WARM = 2  # decode steps before the first that counts


@dataclass(frozen=True)
class Pair:
    """A method and a press with one definition, or with two that a page explains.

    Attributes:
        method: `{keep}` is the number of tokens, `{window}` that of the queries heard.
        press: its class; `options` may hold "window_size", filled in, and "press", of another class.
        attention: "eager" where the press reads the attention of the model itself.
    """

    method: str
    press: str
    options: tuple[tuple[str, Any], ...] = ()
    attention: str = "sdpa"


SNAP = (("window_size", None),)
PAIRS = (
    Pair("streaming(keep={keep}, scope=all, sinks=4)", "StreamingLLMPress", (("n_sink", 4),)),
    Pair("knorm(keep={keep}, scope=all, sinks=0)", "KnormPress"),
    Pair("keydiff(keep={keep}, scope=all, sinks=0)", "KeyDiffPress"),
    Pair("snapkv(keep={keep}, scope=all, sinks=0, window={window})", "SnapKVPress", SNAP),
    Pair("snapkv(keep={keep}, scope=all, sinks=0, window=1, kernel=1, per_head=False)", "TOVAPress"),
    Pair("pyramidkv(keep={keep}, scope=all, sinks=0, window={window})", "PyramidKVPress", SNAP),
    Pair(
        "adakv(keep={keep}, scope=all, sinks=0, window={window}, floor=0.0)",
        "AdaKVPress",
        (("press", "SnapKVPress"), ("alpha_safeguard", 0.0), *SNAP),
    ),
    Pair(
        "adakv(keep={keep}, scope=all, sinks=0, window={window})",
        "AdaKVPress",
        (("press", "SnapKVPress"), ("alpha_safeguard", 0.2), *SNAP),
    ),
    Pair(
        "h2o(keep={keep}, scope=all, recent=0.0, per_head=True, corrected=True)",
        "ObservedAttentionPress",
        attention="eager",
    ),
)


@dataclass
class Line:
    """One comparison; `overlap` is the mean Jaccard index of the heads' sets, milliseconds those of each step."""

    method: str
    press: str
    keep: int | float
    heads: int
    equal: int
    overlap: float
    nbytes: tuple[int, int]
    ms: tuple[Middle, Middle]


def check() -> None:
    """Raise ValueError with one sentence where kvpress is not there."""
    if find_spec("kvpress") is None:
        raise ValueError(
            "kvpress is not installed: run `pip install --no-deps --target kvpress_site kvpress requests cachetools "
            "fire termcolor` and this command with PYTHONPATH=kvpress_site (its own requirements would replace transformers)."
        )


def measure(
    model: Any,
    inputs: dict[str, Any],
    keeps: Sequence[int | float],
    window: int,
    steps: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Line]:
    """Every pair at every budget.

    Args:
        inputs: of one prompt. keeps: shares of the prompt's tokens, or numbers of them. steps: decode steps timed.
        progress: called with (comparisons made, all).
    """
    lines, length = [], inputs["input_ids"].shape[1]
    for number, (keep, pair) in enumerate((keep, pair) for keep in keeps for pair in PAIRS):
        progress(number, len(keeps) * len(PAIRS))
        count = keep if isinstance(keep, int) else max(1, round(keep * length))
        lines.append(compared(model, inputs, pair, keep, min(count, length - 1), window, steps))
    progress(len(keeps) * len(PAIRS), len(keeps) * len(PAIRS))
    return lines


def compared(
    model: Any, inputs: dict[str, Any], pair: Pair, keep: int | float, count: int, window: int, steps: int
) -> Line:
    """One pair at one budget."""
    before, length = model.config._attn_implementation, inputs["input_ids"].shape[1]
    model.set_attn_implementation(pair.attention)
    method = pair.method.format(keep=count, window=window)
    ms: tuple[list[float], list[float]] = ([], [])
    try:
        with torch.inference_mode():
            full = model(**inputs, use_cache=True).past_key_values
            with vtc.wrapped(model, method):
                own = model(**inputs, use_cache=True).past_key_values
            with pressed(model, made(pair, count, length, window)):
                other = model(**inputs, use_cache=True).past_key_values
            hidden = [vars(layer).pop("masked_key_indices", None) for layer in _attentions(model)]
            sets = [*zip(held(own, full), held_by_press(other, full, hidden), strict=True)]
            nbytes = vtc.cache_bytes(own).total, vtc.cache_bytes(other).total
            for step in range(steps + WARM):
                with vtc.wrapped(model, method):
                    ms[0].append(decoded(model, own, length + step))
                with hiding(model, hidden):
                    ms[1].append(decoded(model, other, length + step))
    finally:
        model.set_attn_implementation(before)
    alike = [len(a & b) / len(a | b) for a, b in sets]
    times = [Middle.of([1000 * x for x in steps_[WARM:]]) for steps_ in ms]
    equal = sum(a == b for a, b in sets)
    return Line(method, pair.press, keep, len(sets), equal, sum(alike) / len(alike), nbytes, (times[0], times[1]))


def made(pair: Pair, count: int, length: int, window: int) -> Any:
    """The press of a pair that keeps `count` of `length` tokens: presses take the share that goes, and round down."""
    import kvpress

    options = dict(pair.options)
    ratio = {"compression_ratio": 1 - (count + 0.01) / length}
    if "window_size" in options:
        options["window_size"] = window
    inner = options.pop("press", None)
    if inner is None:
        return getattr(kvpress, pair.press)(**ratio, **options)
    window_size = {"window_size": options.pop("window_size")}
    return getattr(kvpress, pair.press)(press=getattr(kvpress, inner)(**ratio, **window_size), **options)


@contextmanager
def pressed(model: Any, press: Any) -> Iterator[None]:
    """A press on a prefill: its own hook, handed the words that it knows from earlier versions of transformers."""

    def hook(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        x = args[0] if args else kwargs["hidden_states"]
        places = torch.arange(x.shape[1], device=x.device)
        given = {**kwargs, "hidden_states": x, "past_key_values": cache_of(kwargs), "cache_position": places}
        return press.forward_hook(module, args, given, list(output))

    press.post_init_from_model(model)
    hooks = [layer.register_forward_hook(hook, with_kwargs=True) for layer in _attentions(model)]
    try:
        yield
    finally:
        for one in hooks:
            one.remove()


def _attentions(model: Any) -> list[Any]:
    return [layer.self_attn for layer in adapter_for(model).language_model(model).layers]


@contextmanager
def hiding(model: Any, hidden: Sequence[Any]) -> Iterator[None]:
    """In which presses that hide tokens find which: they note it on the attention modules."""
    for layer, masked in zip(_attentions(model), hidden, strict=True):
        if masked is not None:
            layer.masked_key_indices = masked
    try:
        yield
    finally:
        for layer in _attentions(model):
            vars(layer).pop("masked_key_indices", None)


def decoded(model: Any, cache: Any, place: int) -> float:
    """Seconds of one decode step at position `place`."""
    device = model.device
    word, position = torch.tensor([[10]], device=device), torch.tensor([[place]], device=device)
    _wait(device)
    began = time.perf_counter()
    model(input_ids=word, past_key_values=cache, position_ids=position, use_cache=True)
    _wait(device)
    return time.perf_counter() - began


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


# -- what is held ----------------------------------------------------------------------------------------------


def held(cache: Any, full: Any) -> list[set[int]]:
    """Of each KV head, layer by layer: which tokens of the whole cache a compressed one of vtc holds."""
    found = []
    for mine, whole in zip(cache.layers, full.layers, strict=True):
        keys = mine.whole()[0] if hasattr(mine, "whole") else mine.keys
        real = getattr(mine, "tags", {}).get("real")
        found += _places(keys[0], whole.keys[0], None if real is None else real[0])
    return found


def held_by_press(cache: Any, full: Any, hidden: Sequence[Any]) -> list[set[int]]:
    """The same of a pressed one, whose `hidden` tokens (by layer; None = none) are there but not seen."""
    found = []
    for masked, mine, whole in zip(hidden, cache.layers, full.layers, strict=True):
        heads = _places(mine.keys[0], whole.keys[0], None)
        if masked is not None:
            for head, token in zip(masked[1].tolist(), masked[2].tolist(), strict=True):
                heads[head].discard(token)
        found += heads
    return found


def _places(keys: Tensor, among: Tensor, real: Tensor | None) -> list[set[int]]:
    """Of each head, which rows of `among` [G, S, d] those of `keys` [G, M, d] are."""
    heads = []
    for g in range(len(keys)):
        own = keys[g] if real is None else keys[g][real[g].to(keys.device)]
        same = torch.cdist(own.double(), among[g].double())
        heads.append(set(same.argmin(dim=1).tolist()))
    return heads


# -- what is shown ---------------------------------------------------------------------------------------------


def rows(lines: Sequence[Line]) -> list[dict[str, Any]]:
    """Every number of every line."""
    return [
        {
            "method": line.method,
            "press": line.press,
            "keep": line.keep,
            "heads": line.heads,
            "equal": line.equal,
            "overlap": round(line.overlap, 4),
            "vtc_bytes": line.nbytes[0],
            "press_bytes": line.nbytes[1],
            "vtc_ms": round(line.ms[0].median, 3),
            "press_ms": round(line.ms[1].median, 3),
        }
        for line in lines
    ]


def cells(found: Sequence[dict[str, Any]]) -> list[list[str]]:
    """The same for a table; methods by name and the options that are not said of all."""
    return [
        [
            _short(row["method"]),
            row["press"].removesuffix("Press"),
            f"{row['keep']:g}",
            f"{row['equal']} of {row['heads']}",
            f"{row['overlap']:.3f}",
            f"{row['vtc_bytes'] / 1024:.0f} KiB",
            f"{row['press_bytes'] / 1024:.0f} KiB",
            f"{row['vtc_ms']:.2f}",
            f"{row['press_ms']:.2f}",
        ]
        for row in found
    ]


def _short(method: str) -> str:
    name, _, options = method.partition("(")
    own = [part for part in options.rstrip(")").split(", ") if not part.startswith(("keep", "scope", "sinks=0"))]
    return f"{name}({', '.join(own)})" if own else name
