"""What `keep` means: a fraction in (0, 1] of a span's visual tokens, or a count per image or video."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral

from vtc.checks import check_number

_MEANING = "a fraction in (0, 1] of the visual tokens (a float), or a number of them per image, at least 1 (an int)"


def check_keep(keep: object) -> int | float:
    """Return `keep` as a plain int or float; raise TypeError or ValueError with one sentence if it means nothing."""
    try:
        if isinstance(keep, Integral):
            return check_number(keep, "keep", 1, integer=True, what=_MEANING)
        return check_number(keep, "keep", above=0, high=1, what=_MEANING)
    except ValueError as error:
        hint = f" Did you mean keep={round(keep)}?" if isinstance(keep, float) and 1 < keep < math.inf else ""
        raise ValueError(f"{error}{hint}") from None


def read_keep(text: str) -> int | float:
    """A budget in a command line: "64" is a count, "0.1" a fraction; errors are those of `check_keep`."""
    try:
        value = int(text) if text.strip().lstrip("+-").isdigit() else float(text)
    except ValueError:
        value = text
    return check_keep(value)


def token_count(keep: int | float, total: int) -> int:
    """How many of `total` visual tokens `keep` asks for: max(1, round(keep * total)), never more than `total`.

    A half rounds to the even neighbour, as Python's `round` does.
    """
    count = keep if isinstance(keep, int) else max(1, round(keep * total))
    return min(count, total)


def fitted_grid(height: int, width: int, count: int) -> tuple[int, int]:
    """The largest grid of at most `count` cells in the proportions of `height` x `width`, which is one itself if it
    fits: each side less than a cell from them, and of equally many cells those nearest to them.

    Example: 12 x 16 for 64 cells: 7 x 9 has 63 (6.9 x 9.2 would be exact); 8 x 8 is another shape. 12 x 12 for 14
    cells: 3 x 4 has 12 (3.5 x 3.5 would be exact) where 3 x 3 has 9.
    """
    if height * width <= count:
        return height, width
    best: list[tuple[int, float, int, int]] = []
    for h in range(1, min(height, count) + 1):
        w = min(width, count // h, ((h + 1) * width - 1) // height + 1)
        if (h - 1) * width < (w + 1) * height:
            best.append((h * w, -abs(math.log(h * width / (w * height))), h, w))
    return max(best)[2:]


def fitted_frames(grid: tuple[int, int, int], count: int) -> tuple[int, int, int]:
    """`fitted_grid` of a picture or video (t, h, w), all of whose time steps stay, with a cell each at least."""
    t, h, w = grid
    return (t, *fitted_grid(h, w, max(1, count // t)))


def check_layer(layer: object, name: str, least: int = 1) -> int | float:
    """Return a place in the language model: an int >= `least` counts decoder layers, a float in (0, 1) is a share."""
    what = "a number of decoder layers (an int), or a share of the depth in (0, 1) (a float)"
    if isinstance(layer, Integral):
        return check_number(layer, name, least, integer=True, what=what)
    return check_number(layer, name, above=0, below=1, what=what)


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


def proportional(shape: Sequence[float], widths: Sequence[int], mean: float, most: int) -> tuple[int, ...]:
    """Counts in the proportions of `shape`, each from 1 to `most`, whose mean over `widths` is nearest to `mean`.

    A mean near `most` makes the large ones `most` and the small ones more than their share: at `most`, all are.

    Args:
        widths: of each count, how many layers have it.
    """
    low, high = 0.0, most / min(shape)  # the mean grows with the scale
    for _ in range(60):
        scale = (low + high) / 2
        low, high = (low, scale) if _mean(_clipped(shape, scale, most), widths) > mean else (scale, high)
    below, above = _clipped(shape, low, most), _clipped(shape, high, most)
    return min(below, above, key=lambda counts: abs(_mean(counts, widths) - mean))


def _clipped(shape: Sequence[float], scale: float, most: int) -> tuple[int, ...]:
    return tuple(max(1, min(most, round(scale * share))) for share in shape)


def _mean(counts: Sequence[int], widths: Sequence[int]) -> float:
    return sum(count * width for count, width in zip(counts, widths, strict=True)) / sum(widths)


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


def split_budget(total: int, sizes: Sequence[float]) -> list[int]:
    """Share `total` among blocks in proportion to their sizes: largest remainders, never more than a block holds.

    Sizes may also be shares that add up to 1.
    """
    exact = [total * size / max(1, sum(sizes)) for size in sizes]
    shares = [math.floor(x) for x in exact]
    by_remainder = sorted(range(len(sizes)), key=lambda i: shares[i] - exact[i])
    for i in by_remainder[: total - sum(shares)]:
        shares[i] += 1
    return shares


SCHEDULES = ("constant", "decreasing", "increasing", "geometric")


def merged_counts(total: int, last: int, blocks: int, schedule: str) -> tuple[int, ...]:
    """How many of `total` tokens are left after each of `blocks` blocks, `last` of them in the end.

    A block takes at most half of what is left. Within that, "constant" takes equally many in each block; "decreasing"
    and "increasing" change linearly from twice that to none, and the other way round; "geometric" takes equal shares.

    Example: 16 tokens, 4 in the end, four blocks: 13 10 7 4; decreasing 10 6 4 4; geometric 11 8 6 4. One in the end:
    8 4 2 1 in any case, as each block leaves at least half.

    Raises:
        ValueError: so few cannot be reached.
    """
    if last << blocks < total:
        least = -(-total // 2**blocks)
        raise ValueError(
            f"{last} of {total} patches cannot be reached in {blocks} block{'s' * (blocks > 1)} of the vision tower, "
            f"each of which takes at most half: keep {least} or more."
        )
    slope = {"decreasing": -1.0, "increasing": 1.0}.get(schedule, 0.0)
    weights = [1 + slope * (2 * i / (blocks - 1) - 1) if blocks > 1 else 1.0 for i in range(blocks)]
    counts, left = [], total
    for i in range(blocks):
        gone = (total - last) * sum(weights[: i + 1]) / sum(weights)
        wanted = round(total * (last / total) ** ((i + 1) / blocks)) if schedule == "geometric" else round(total - gone)
        left = max(min(wanted, left, last << (blocks - 1 - i)), left - left // 2, last)
        counts.append(left)
    return tuple(counts)
