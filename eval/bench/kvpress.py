"""vtc's cache methods beside those of kvpress: one model, one process, what each keeps, and what decoding then takes.

Both compress the cache of the same prompt, all tokens of it (scope="all"). Compared is, in each layer and KV head, the
set of tokens held. A decode step is timed after that, in turn; bytes are those that the cache's tensors occupy.

kvpress (https://github.com/NVIDIA/kvpress) is not among vtc's requirements, and not one that would fit: it asks for an
older transformers, with whose newer versions its presses work all the same when their hook is handed what it reads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

import vtc
from vtc.engine.versions import cache_of
from vtc.eval.bench.pairs import Middle
from vtc.eval.bench.pairs import pair as in_turn
from vtc.eval.bench.roofs import clock
from vtc.models import adapter_for

COLUMNS = {
    "method": "method",
    "press": "kvpress",
    "keep": "keep",
    "equal": "heads equal",
    "overlap": "overlap",
    "vtc_bytes": "KiB",
    "press_bytes": "its KiB",
    "vtc_ms": "ms/token",
    "press_ms": "its ms",
    "ratio": "its to ours",
}
WARM = 2  # decode steps before the first that counts


@dataclass(frozen=True)
class Pair:
    """A method and a press with one definition, or with two that a page explains.

    Attributes:
        label: of the table. method: `{keep}` is the number of tokens, `{window}` that of the queries heard.
        press: its class; `options` may hold "window_size", filled in, and "press", of another class.
        attention: "eager" where the press reads the attention of the model itself.
    """

    label: str
    method: str
    press: str
    options: tuple[tuple[str, Any], ...] = ()
    attention: str = "sdpa"


SNAP = (("window_size", None),)
PAIRS = (
    Pair("streaming", "streaming(keep={keep}, scope=all, sinks=4)", "StreamingLLMPress", (("n_sink", 4),)),
    Pair("knorm", "knorm(keep={keep}, scope=all, sinks=0)", "KnormPress"),
    Pair("keydiff", "keydiff(keep={keep}, scope=all, sinks=0)", "KeyDiffPress"),
    Pair("snapkv", "snapkv(keep={keep}, scope=all, sinks=0, window={window})", "SnapKVPress", SNAP),
    Pair("snapkv as TOVA", "snapkv(keep={keep}, scope=all, sinks=0, window=1, kernel=1, per_head=False)", "TOVAPress"),
    Pair("pyramidkv", "pyramidkv(keep={keep}, scope=all, sinks=0, window={window})", "PyramidKVPress", SNAP),
    Pair(
        "pyramidkv, flat",
        "pyramidkv(keep={keep}, scope=all, sinks=0, window={window}, beta=1)",
        "PyramidKVPress",
        (("beta", 1), *SNAP),
    ),
    Pair(
        "adakv, no floor",
        "adakv(keep={keep}, scope=all, sinks=0, window={window}, floor=0.0)",
        "AdaKVPress",
        (("press", "SnapKVPress"), ("alpha_safeguard", 0.0), *SNAP),
    ),
    Pair(
        "adakv",
        "adakv(keep={keep}, scope=all, sinks=0, window={window})",
        "AdaKVPress",
        (("press", "SnapKVPress"), ("alpha_safeguard", 0.2), *SNAP),
    ),
    Pair(
        "h2o by means",
        "h2o(keep={keep}, scope=all, recent=0.0, per_head=True, corrected=True)",
        "ObservedAttentionPress",
        attention="eager",
    ),
)


@dataclass
class Line:
    """One comparison; `overlap` is the mean Jaccard index of the heads' sets, `ratio` a press's time of a step to vtc's
    of the same."""

    pair: Pair
    method: str
    keep: int | float
    heads: int
    equal: int
    overlap: float
    nbytes: tuple[int, int]
    ms: tuple[Middle, Middle]
    ratio: Middle


def check() -> None:
    """Raise ValueError with one sentence where kvpress is not there."""
    if find_spec("kvpress") is None:
        raise ValueError(
            "kvpress is not installed: run `pip install --no-deps --target kvpress_site kvpress requests cachetools "
            "fire termcolor` and this command with PYTHONPATH=kvpress_site (what it requires would replace "
            "transformers)."
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
    seconds: tuple[list[float], list[float]] = ([], [])
    try:
        with torch.inference_mode():
            full = filled(model, inputs)
            with vtc.wrapped(model, method):
                own = filled(model, inputs)
            with pressed(model, made(pair, count, length, window)):
                other = filled(model, inputs)
            hidden = [vars(layer).pop("masked_key_indices", None) for layer in _attentions(model)]
            sets = [*zip(held(own, full), held_by_press(other, full, hidden), strict=True)]
            nbytes = vtc.cache_bytes(cache_of(own)).total, vtc.cache_bytes(cache_of(other)).total
            for step in range(steps + WARM):
                ours = partial(decoded, model, own, length + step, partial(vtc.wrapped, model, method))
                its = partial(decoded, model, other, length + step, partial(hiding, model, hidden))
                in_turn(ours, its, seconds)
    finally:
        model.set_attn_implementation(before)
    alike = [len(a & b) / len(a | b) for a, b in sets]
    mine, others = (x[WARM:] for x in seconds)
    times = Middle.of(mine).scaled(1000), Middle.of(others).scaled(1000)
    ratio = Middle.of([b / a for a, b in zip(mine, others, strict=True)])
    equal = sum(a == b for a, b in sets)
    return Line(pair, method, keep, len(sets), equal, sum(alike) / len(alike), nbytes, times, ratio)


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


def filled(model: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    """The cache of a prefill, as the keyword argument of the next step."""
    out = model(**inputs, use_cache=True, logits_to_keep=1)
    return {"cache" if "cache" in list(out) else "past_key_values": cache_of(out)}


def decoded(model: Any, cache: dict[str, Any], place: int, way: Callable[[], AbstractContextManager[Any]]) -> float:
    """Seconds of one decode step at position `place`, in what `way` opens."""
    device = model.device
    word, position = torch.tensor([[10]], device=device), torch.tensor([[place]], device=device)
    step = partial(model, input_ids=word, **cache, position_ids=position, use_cache=True)
    with way():
        return clock(step, device)


# -- what is held ----------------------------------------------------------------------------------------------


def held(cache: dict[str, Any], full: dict[str, Any]) -> list[set[int]]:
    """Of each KV head, layer by layer: which tokens of the whole cache a compressed one of vtc holds."""
    found = []
    for mine, whole in zip(cache_of(cache).layers, cache_of(full).layers, strict=True):
        keys = mine.whole()[0] if hasattr(mine, "whole") else mine.keys
        real = getattr(mine, "tags", {}).get("real")
        found += _places(keys[0], whole.keys[0], None if real is None else real[0])
    return found


def held_by_press(cache: dict[str, Any], full: dict[str, Any], hidden: Sequence[Any]) -> list[set[int]]:
    """The same of a pressed one, whose `hidden` tokens (by layer; None = none) are there but not seen."""
    found = []
    for masked, mine, whole in zip(hidden, cache_of(cache).layers, cache_of(full).layers, strict=True):
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
            "label": line.pair.label,
            "method": line.method,
            "press": line.pair.press,
            "keep": line.keep,
            "heads": line.heads,
            "equal": line.equal,
            "overlap": round(line.overlap, 4),
            "vtc_bytes": line.nbytes[0],
            "press_bytes": line.nbytes[1],
            "vtc_ms": round(line.ms[0].median, 3),
            "press_ms": round(line.ms[1].median, 3),
            "ratio": round(line.ratio.median, 3),
            "ratio_low": round(line.ratio.low, 3),
            "ratio_high": round(line.ratio.high, 3),
        }
        for line in lines
    ]


def cells(found: Sequence[dict[str, Any]]) -> list[list[str]]:
    """The same for a table."""
    return [
        [
            row["label"],
            row["press"].removesuffix("Press"),
            f"{row['keep']:g}",
            f"{row['equal']} of {row['heads']}",
            f"{row['overlap']:.3f}",
            f"{row['vtc_bytes'] / 1024:.0f}",
            f"{row['press_bytes'] / 1024:.0f}",
            f"{row['vtc_ms']:.2f}",
            f"{row['press_ms']:.2f}",
            f"{row['ratio']:.2f} ({row['ratio_low']:.2f}–{row['ratio_high']:.2f})",
        ]
        for row in found
    ]
