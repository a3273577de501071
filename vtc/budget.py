"""What `keep` means: a fraction in (0, 1] of a span's visual tokens, or a count per image or video."""

from __future__ import annotations

import math
from numbers import Integral, Real

_MEANING = "keep is a fraction in (0, 1] (a float) or a number of visual tokens per image, at least 1 (an int)"


def check_keep(keep: object) -> int | float:
    """Return `keep` as a plain int or float; raise TypeError or ValueError with one sentence if it means nothing."""
    if isinstance(keep, bool) or not isinstance(keep, Real):
        raise TypeError(f"keep={keep!r} is not a number: {_MEANING}.")
    if isinstance(keep, Integral):
        if keep < 1:
            raise ValueError(f"keep={keep} keeps nothing: {_MEANING}.")
        return int(keep)
    value = float(keep)
    if not math.isfinite(value) or not 0 < value <= 1:
        hint = f" Did you mean keep={round(value)}?" if math.isfinite(value) and value > 1 else ""
        raise ValueError(f"keep={value} is outside (0, 1]: {_MEANING}.{hint}")
    return value


def token_count(keep: int | float, total: int) -> int:
    """How many of `total` visual tokens `keep` asks for: max(1, round(keep * total)), never more than `total`.

    A half rounds to the even neighbour, as Python's `round` does.
    """
    count = keep if isinstance(keep, int) else max(1, round(keep * total))
    return min(count, total)


def check_layer(layer: object) -> int | float:
    """Return `layer` as a plain int or float; one sentence if it is no place between decoder layers."""
    if isinstance(layer, bool) or not isinstance(layer, Real):
        raise TypeError(f"layer {layer!r} is not a number: an int counts decoder layers, a float is a share of them.")
    if isinstance(layer, Integral):
        if layer < 1:
            raise ValueError(f"layer {layer} is outside the language model: the first place is 1, after one layer.")
        return int(layer)
    if not 0 < float(layer) < 1:
        raise ValueError(f"layer {float(layer)} is no share of the depth: expected a float in (0, 1), or an int.")
    return float(layer)


def layer_number(layer: int | float, depth: int, title: str) -> int:
    """The decoder layer (0-based) that `layer` means in a model of `depth` layers; never the first."""
    number = layer if isinstance(layer, int) else min(depth - 1, max(1, round(layer * depth)))
    if not 1 <= number < depth:
        raise ValueError(
            f"{title} acts before decoder layer {number}, but this model's layers are 0 to {depth - 1}; "
            "give layers= as fractions of the depth, such as 0.5."
        )
    return number


def scaled(shape: tuple[float, ...], last: int, total: int) -> tuple[int, ...]:
    """Counts after each step: the fractions `shape` raised to the power that makes the last one `last` of `total`."""
    power = math.log(last / total) / math.log(shape[-1]) if last < total else 0.0
    return tuple([max(last, round(total * share**power)) for share in shape[:-1]] + [last])


def layer_average(counts: tuple[int, ...], layers: tuple[int, ...], total: int, depth: int) -> float:
    """Mean number of visual tokens over `depth` layers, `counts[i]` of them from `layers[i]` on."""
    edges = [*layers, depth]
    return (total * layers[0] + sum(c * (edges[i + 1] - edges[i]) for i, c in enumerate(counts))) / depth


def counts_for_average(
    shape: tuple[float, ...], layers: tuple[int, ...], mean: int, total: int, depth: int, title: str
) -> tuple[int, ...]:
    """Counts after each step whose mean over all layers is nearest to `mean`; ValueError if it cannot be so small."""
    least = layer_average((1,) * len(shape), layers, total, depth)
    if mean < least:
        raise ValueError(
            f"{title} cannot keep {mean} of {total} visual tokens on average: before layer {layers[0]} of {depth} all "
            f"of them are there, which makes {math.ceil(least)} at least; prune earlier (layers=) or keep more."
        )
    low, high = 0.0, 100.0  # the mean falls as the power grows
    for _ in range(60):
        power = (low + high) / 2
        counts = tuple(max(1, round(total * share**power)) for share in shape)
        low, high = (power, high) if layer_average(counts, layers, total, depth) > mean else (low, power)
    return tuple(max(1, round(total * share**high)) for share in shape)


def check_first(first: object) -> int | float:
    """Return `first` as a plain int >= 0 or a float in (0, 1); one sentence if it is neither."""
    if isinstance(first, Integral) and not isinstance(first, bool) and first == 0:
        return 0
    return check_layer(first)


def check_recent(recent: object, name: str = "recent") -> int:
    """Return a number of tokens >= 0."""
    if isinstance(recent, bool) or not isinstance(recent, Integral):
        raise TypeError(f"{name}={recent!r} is not a number of tokens.")
    if recent < 0:
        raise ValueError(f"{name}={recent} is negative; expected a number of tokens, 0 or more.")
    return int(recent)
